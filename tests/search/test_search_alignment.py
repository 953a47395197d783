"""The reward of each image against autograd, through the enumerated virtual step too, in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dada_det.search import alignment

ZETA = 0.1


def small_net(batch_norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), *([nn.BatchNorm2d(4)] if batch_norm else []), nn.Tanh(), nn.Flatten(),
              nn.Linear(4 * 6 * 6, 5)]
    return nn.Sequential(*layers).double()


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(0, 5, (n,), generator=generator))


@pytest.mark.parametrize(("mode", "tolerance"), [("forward", 1e-6), ("central", 1e-6)])
def test_hypergradient_of_each_image_equals_autograd_through_the_enumerated_virtual_step(
        problem: Callable, mode: str, tolerance: float) -> None:
    """Every image with a policy of its own: d L_val(w') / d policy_i = -zeta d E_q[R_i] / d policy_i, image by image."""
    small = problem("mild")
    leaves = [tensor.expand(len(small.labels_M), *tensor.shape).clone().requires_grad_() for tensor in small.parameters]
    weights = {name: tensor.clone().requires_grad_() for name, tensor in small.weights.items()}
    loss = (small.probabilities(*leaves) * small.losses(weights)).sum((1, 2, 3)).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    virtual = {name: small.weights[name] - small.zeta * g for name, g in zip(weights, gradients, strict=True)}
    val_loss = alignment.losses_at(small.network, virtual, small.val_images, small.val_labels_V).mean()
    exact = torch.autograd.grad(val_loss, leaves)

    v = alignment.gradient_at(small.network, {name: tensor.detach() for name, tensor in virtual.items()},
                              small.val_images, small.val_labels_V)
    place = (small.network, small.weights, v)
    rewards = (alignment.rewards_forward_mode(*place, *small.outcomes()) if mode == "forward" else
               alignment.rewards(*place, *small.outcomes(), relative_step=1e-4))
    expected = (small.probabilities(*leaves) * rewards.view_as(small.rewards)).sum((1, 2, 3)).mean()
    for got, want in zip(torch.autograd.grad(expected, leaves), exact, strict=True):
        error_M = (-small.zeta * got - want).flatten(1).norm(dim=1)
        assert (error_M < tolerance * want.flatten(1).norm(dim=1)).all(), error_M


@pytest.mark.parametrize("batch_norm", [False, True])
def test_reward_of_an_image_is_the_inner_product_of_its_gradient_with_v(batch_norm: bool) -> None:
    """Also with BatchNorm, where the loss of an image depends on the whole batch."""
    net = small_net(batch_norm)
    weights = alignment.weights_of(net)
    batch = images(5, 1)
    v = alignment.gradient_at(net, weights, *images(8, 4))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    losses_B = alignment.losses_at(net, leaves, *batch)
    own = [torch.autograd.grad(loss, list(leaves.values()), retain_graph=True) for loss in losses_B]
    exact = torch.stack([torch.stack([(g * v[name]).sum() for name, g in zip(leaves, gs, strict=True)]).sum() for gs in own])
    torch.testing.assert_close(alignment.rewards_forward_mode(net, weights, v, *batch), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alignment.rewards(net, weights, v, *batch, relative_step=1e-4), exact, rtol=1e-6, atol=1e-8)
    one_sided = alignment.rewards(net, weights, v, *batch, relative_step=1e-4, losses_B=losses_B.detach())
    torch.testing.assert_close(one_sided, exact, rtol=1e-3, atol=1e-5)


def test_pixel_sums_are_the_derivative_for_a_brightness_added_to_every_pixel() -> None:
    net = small_net()
    weights, (x, y) = alignment.weights_of(net), images(4, 1)
    losses, sums = alignment.losses_and_pixel_sums(net, weights, x, y)
    shift = 1e-5
    moved = alignment.losses_at(net, weights, x + shift, y).detach()
    torch.testing.assert_close((moved - losses) / shift, sums, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_rewards_of_log_losses_are_those_of_the_losses_over_one_more_than_the_loss(batch_norm: bool) -> None:
    net = small_net(batch_norm)
    weights, (x, y) = alignment.weights_of(net), images(5, 1)
    v = alignment.gradient_at(net, weights, *images(8, 4))
    losses = alignment.losses_at(net, weights, x, y).detach()
    exact = alignment.rewards_forward_mode(net, weights, v, x, y) / (1 + losses)
    direction = dict(v)
    ends = alignment.ends_consuming(weights, direction, 1e-4)
    assert not direction and v
    torch.testing.assert_close(alignment.rewards_between(net, ends, x, y, log=True), exact, rtol=1e-6, atol=1e-8)


def test_passes_of_the_search_leave_batchnorm_as_plain_training_does() -> None:
    net = small_net(batch_norm=True).train()
    plain = copy.deepcopy(net)
    x, y = images(6, 1)
    gradient, losses = alignment.training_gradient(net, x, y)
    weights = alignment.weights_of(net)
    v = alignment.gradient_at(net, alignment.step(weights, gradient, -ZETA), *images(8, 2))
    alignment.rewards(net, weights, v, x, y)
    alignment.rewards(net, weights, v, x, y, losses_B=losses)
    alignment.rewards(net, weights, v, *images(4, 3))  # other images, and another number of them
    alignment.rewards_forward_mode(net, weights, v, x, y)
    alignment.losses_and_pixel_sums(net, weights, x, y)
    alignment.rewards_between(net, alignment.ends_consuming(weights, v), x, y)

    loss = nn.functional.cross_entropy(plain(x), y)
    loss.backward()
    assert losses.mean().item() == pytest.approx(loss.item(), abs=0)
    for (name, buffer), other in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    for (name, parameter), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert torch.equal(gradient[name], other.grad), name
    assert int(net[1].num_batches_tracked) == 1 and net[1].running_mean.abs().sum() > 0


def test_many_tensors_are_handled_at_once_whatever_their_layout() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.rand(4, 3, 3, 3).to(memory_format=torch.channels_last), "b": torch.rand(5, 4, 1, 1),
               "c": torch.rand(6)}
    v = {name: torch.rand_like(tensor) for name, tensor in weights.items()}
    flat, along = (torch.cat([tensor.flatten() for tensor in of.values()]) for of in (weights, v))
    torch.testing.assert_close(alignment.norm(v), along.norm())
    torch.testing.assert_close(alignment.inner(weights, v), flat @ along)
    products = torch.cat([alignment.in_memory_order(weights[name] * v[name]) for name in v])
    torch.testing.assert_close(products.sum(), flat @ along)  # what a GPU sums
    for size in (-0.25, torch.tensor(-0.25)):
        moved = alignment.step(weights, v, size)
        assert all(torch.equal(moved[name], weights[name] - 0.25 * v[name]) for name in v)
        assert moved["a"].is_contiguous(memory_format=torch.channels_last)
    kept = {name: tensor.clone() for name, tensor in v.items()}
    above, below, epsilon = alignment.ends_consuming(weights, given := dict(v))
    assert not given and all(torch.equal(v[name], kept[name]) for name in v)
    for name, tensor in weights.items():
        torch.testing.assert_close(above[name] - tensor, epsilon * v[name], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(tensor - below[name], epsilon * v[name], rtol=1e-3, atol=1e-7)


def test_a_gradient_has_the_strides_of_its_weight() -> None:
    """torch's functions of many tensors take one launch each where the layouts differ."""
    weight = torch.rand(4, 3, 3, 3).to(memory_format=torch.channels_last)
    gradient = torch.rand(4, 3, 3, 3)
    laid = alignment.laid_out_as(weight, gradient)
    assert torch.equal(laid, gradient) and laid.stride() == weight.stride()
    narrow = torch.rand(4, 3, 1, 1)
    other = narrow.to(memory_format=torch.channels_last).as_strided((4, 3, 1, 1), (3, 1, 3, 3))
    laid = alignment.laid_out_as(narrow, other)
    assert laid.stride() == narrow.stride() and laid.data_ptr() == other.data_ptr() and torch.equal(laid, other)
    assert alignment.laid_out_as(weight, weight) is weight


def test_copies_are_equal_and_new() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(2).double()).train()
    buffers = dict(net.named_buffers())
    made = alignment.copies(buffers)
    assert made.keys() == buffers.keys()
    for name, buffer in buffers.items():
        assert torch.equal(made[name], buffer) and made[name].dtype == buffer.dtype
        assert made[name].data_ptr() != buffer.data_ptr()
