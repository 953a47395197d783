"""The reward of each image against autograd through the enumerated virtual step, in float64 on a net without BatchNorm."""

import copy

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


def test_hypergradient_equals_autograd_through_the_enumerated_virtual_step() -> None:
    """Three policies of probability p_k, each with its own augmented batch: d L_val(w') / d p = -zeta R_k exactly."""
    net = small_net()
    weights = alignment.weights_of(net)
    batches = [images(6, seed) for seed in (1, 2, 3)]
    val_images, val_labels = images(8, 4)
    logits = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    losses = torch.stack([alignment.losses_at(net, leaves, *batch).mean() for batch in batches])
    gradients = torch.autograd.grad((logits.softmax(0) * losses).sum(), list(leaves.values()), create_graph=True)
    virtual = {name: weights[name] - ZETA * g for name, g in zip(leaves, gradients, strict=True)}
    (exact,) = torch.autograd.grad(alignment.losses_at(net, virtual, val_images, val_labels).mean(), logits)

    detached = {name: tensor.detach() for name, tensor in virtual.items()}
    v = alignment.gradient_at(net, detached, val_images, val_labels)
    for mode, tolerance in (("forward", 1e-6), ("central", 1e-4)):
        if mode == "forward":
            rewards = [alignment.rewards_forward_mode(net, weights, v, *batch).mean() for batch in batches]
        else:
            rewards = [alignment.rewards(net, weights, v, *batch, relative_step=1e-4).mean() for batch in batches]
        (reward_gradient,) = torch.autograd.grad((logits.softmax(0) * torch.stack(rewards)).sum(), logits)
        torch.testing.assert_close(-ZETA * reward_gradient, exact, rtol=tolerance, atol=1e-12)


def test_reward_of_an_image_is_the_inner_product_of_its_gradient_with_v() -> None:
    net = small_net()
    weights = alignment.weights_of(net)
    batch = images(5, 1)
    v = alignment.gradient_at(net, weights, *images(8, 4))
    own = [alignment.gradient_at(net, weights, batch[0][i:i + 1], batch[1][i:i + 1]) for i in range(5)]
    exact = torch.stack([sum(((g[name] * v[name]).sum() for name in v), torch.zeros(())) for g in own])
    torch.testing.assert_close(alignment.rewards_forward_mode(net, weights, v, *batch), exact)
    torch.testing.assert_close(alignment.rewards(net, weights, v, *batch, relative_step=1e-4), exact, rtol=1e-6, atol=1e-8)
    losses = alignment.losses_at(net, weights, *batch).detach()
    one_sided = alignment.rewards(net, weights, v, *batch, relative_step=1e-4, losses_B=losses)
    torch.testing.assert_close(one_sided, exact, rtol=1e-3, atol=1e-5)


def test_pixel_sums_are_the_derivative_for_a_brightness_added_to_every_pixel() -> None:
    net = small_net()
    weights, (x, y) = alignment.weights_of(net), images(4, 1)
    losses, sums = alignment.losses_and_pixel_sums(net, weights, x, y)
    shift = 1e-5
    moved = alignment.losses_at(net, weights, x + shift, y).detach()
    torch.testing.assert_close((moved - losses) / shift, sums, rtol=1e-3, atol=1e-5)


def test_passes_of_the_search_leave_batchnorm_as_plain_training_does() -> None:
    net = small_net(batch_norm=True).train()
    plain = copy.deepcopy(net)
    x, y = images(6, 1)
    gradient, losses = alignment.training_gradient(net, x, y)
    weights = alignment.weights_of(net)
    v = alignment.gradient_at(net, alignment.step(weights, gradient, -ZETA), *images(8, 2))
    alignment.rewards(net, weights, v, x, y)
    alignment.rewards_forward_mode(net, weights, v, x, y)
    alignment.losses_and_pixel_sums(net, weights, x, y)

    loss = nn.functional.cross_entropy(plain(x), y)
    loss.backward()
    assert losses.mean().item() == pytest.approx(loss.item(), abs=0)
    for (name, buffer), other in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    for (name, parameter), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert torch.equal(gradient[name], other.grad), name
    assert int(net[1].num_batches_tracked) == 1
