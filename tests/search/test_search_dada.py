"""DADA's steps against autograd in float64: the weights' mixture, rewards, the validation direction, what is shared, and the
paper's straight-through magnitudes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dada_det.augment.space import SearchSpace
from dada_det.devices import float32_arithmetic
from dada_det.search import alignment, estimators
from dada_det.search.curvature import RunningDirection, precondition
from dada_det.search.dada import Dada
from dada_det.search.distribution import PolicyGradient, Sample
from dada_det.search.settings import ENTRIES, MODES, dada_settings
from dada_det.search.step import Batch, Step, augment, validation_gradient
from tests.messages import refused

B, SIZE, CLASSES, ZETA = 8, 10, 3, 0.1
OPERATIONS = ("Rotate", "Solarize", "Brightness")


def case(mode: str = "default", batch_norm: bool = False, **changes: Any) -> tuple[Dada, Step, Batch]:
    """A step in the midst of a search, on random images; its updates do nothing, so the gradients stay in .grad."""
    torch.manual_seed(0)
    settings = dada_settings(mode, **changes)
    algorithm = Dada(SearchSpace(OPERATIONS, settings.ranges), settings).double()
    for parameter in algorithm.distribution.parameters():
        if mode == "paper":
            nn.init.uniform_(parameter, 0.2, 0.8)
        else:
            nn.init.normal_(parameter, std=0.3)
    norm = [nn.BatchNorm2d(3)] if batch_norm else []
    network = nn.Sequential(*norm, nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, CLASSES)).double()
    if batch_norm:
        network(2 * torch.randn(50, 3, SIZE, SIZE).double() + 1)  # running statistics that are not the batch's
    images = torch.randint(0, 256, (2, B, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (2, B))
    noise = algorithm.draw_noise(settings.draws_per_image * B, torch.Generator().manual_seed(3))
    batch = Batch(images[0], labels[0], images[1], labels[1], noise, noise[:1])
    running = RunningDirection(network).double() if settings.running_v else None
    return algorithm, Step(network, settings, lambda pixels: pixels.double() / 127.5 - 1, lambda gradient: None,
                           lambda name: None, running=running), batch


def augmented(algorithm: Dada, parts: Step, batch: Batch, n: int) -> Tensor:
    """The first n draws' images, as the network takes them."""
    sample = algorithm.distribution.sample(batch.noise)
    images = batch.images_BCHW.repeat(n // B, 1, 1, 1)
    return augment(parts, images, batch.targets_B, algorithm.draws(sample, batch.noise, n))[0]


def validation_direction(parts: Step, batch: Batch) -> alignment.Weights:
    """v of length 1, with BatchNorm in train mode."""
    v = alignment.gradient_at(parts.network, alignment.weights_of(parts.network), parts.normalise(batch.val_images_VCHW),
                              batch.val_targets_V)
    return {name: tensor / alignment.norm(v) for name, tensor in v.items()}


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("unaugmented", [0.0, 0.5, 1.0])
def test_the_weights_train_on_a_mixture_and_every_draw_gets_a_reward(unaugmented: float, draws: int) -> None:
    """The mixture's gradient by hand; the policy's from R of log(1 + loss) of every draw, by forward mode, less the mean of
    the others, over their spread, along the preconditioned v."""
    algorithm, parts, batch = case(unaugmented=unaugmented, draws_per_image=draws)
    trained: list[alignment.Weights] = []
    parts = replace(parts, update_weights=trained.append)
    n, weights = draws * B, alignment.weights_of(parts.network)
    images, labels, count = augmented(algorithm, parts, batch, n), batch.targets_B, int(unaugmented * B)
    mixture = torch.cat([parts.normalise(batch.images_BCHW)[:count], images[count:B]])
    gradient = alignment.gradient_at(parts.network, weights, mixture, labels)
    v = precondition(validation_direction(parts, batch), {name: g.square() for name, g in gradient.items()}, gradient)
    losses = alignment.losses_at(parts.network, weights, images, labels.repeat(draws))
    rewards = alignment.rewards_forward_mode(parts.network, weights, v, images, labels.repeat(draws)) / (1 + losses)
    advantages = (rewards - (rewards.sum() - rewards) / (n - 1)).detach()
    distribution = algorithm.distribution
    wanted = estimators.marginal_score(
        advantages / advantages.std(correction=0), distribution.logits_N().detach(),
        distribution.flag_logits_N2().detach(), distribution.magnitude_logits_N2().detach(), 1.5, distribution.pairs_N2,
        distribution.sample(batch.noise))
    algorithm.default_step(parts, batch, learn=True)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, gradient[name])
    for parameter, exact in zip((distribution.preferences_N, distribution.flags_N2, distribution.magnitudes_N2), wanted,
                                strict=True):
        assert exact.abs().max() > 1e-3
        # Optimisers minimise; the step takes finite differences.
        torch.testing.assert_close(-parameter.grad, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


def test_warm_up_trains_the_weights_alone() -> None:
    algorithm, parts, batch = case(warmup_epochs=2)
    trained: list[alignment.Weights] = []
    log = algorithm.step(replace(parts, update_weights=trained.append), batch, ZETA, epoch=1)
    assert set(log) == {"loss"} and len(trained) == 1
    assert all(parameter.grad is None for parameter in algorithm.parameters())
    assert set(algorithm.step(parts, batch, ZETA, epoch=2)) == {"loss", "advantage", "spread"}


def test_what_is_shared_gets_the_sum_over_all_slots_that_hold_the_operation() -> None:
    distribution = case()[0].distribution
    n = len(distribution.space)
    logits_N, flags_N2, magnitudes_N2 = (torch.randn(*shape).double() for shape in ((n,), (n, 2), (n, 2)))
    distribution.backward(PolicyGradient(logits_N, flags_N2, magnitudes_N2))
    for shared_O, own_N2 in ((distribution.operation_preferences_O, logits_N[:, None].expand(n, 2)),
                             (distribution.operation_flags_O, flags_N2),
                             (distribution.operation_magnitudes_O, magnitudes_N2)):
        assert shared_O is not None
        for index, gradient in enumerate(shared_O.grad):
            torch.testing.assert_close(-gradient, own_N2[distribution.pairs_N2 == index].sum())
    torch.testing.assert_close(-distribution.flags_N2.grad, flags_N2)
    torch.testing.assert_close(-distribution.magnitudes_N2.grad, magnitudes_N2)


@pytest.mark.parametrize(("every", "number", "by_running"), [(1, 4, False), (1, 5, True), (2, 4, False), (2, 6, True)])
def test_validation_passes_take_turns_between_batchnorms_statistics(every: int, number: int, by_running: bool) -> None:
    """The first running mean is a tenth of the direction, by autograd at the weights in train or eval mode."""
    _, parts, batch = case(batch_norm=True, val_every=every)
    before = copy.deepcopy(parts.network).train(not by_running)
    loss = nn.functional.cross_entropy(before(parts.normalise(batch.val_images_VCHW)), batch.val_targets_V)
    own = torch.autograd.grad(loss, list(before.parameters()))
    length = torch.cat([tensor.flatten() for tensor in own]).norm()
    found = validation_gradient(parts, alignment.weights_of(parts.network), replace(batch, number=number))
    assert parts.network.training
    for tensor, wanted in zip(found.values(), own, strict=True):
        torch.testing.assert_close(tensor, 0.1 * wanted / length)


def test_between_two_validation_passes_the_mean_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _, parts, batch = case()
    weights, passes, kept = alignment.weights_of(parts.network), [], alignment.gradient_at
    monkeypatch.setattr(alignment, "gradient_at", lambda *arguments: passes.append(None) or kept(*arguments))
    mean = {name: tensor.clone() for name, tensor in validation_gradient(parts, weights, batch).items()}
    again = validation_gradient(parts, weights, replace(batch, validates=False))
    assert len(passes) == 1 and any(tensor.any() for tensor in mean.values())
    assert all(torch.equal(again[name], tensor) for name, tensor in mean.items())


def test_without_a_running_mean_the_validation_gradient_is_that_of_the_batch() -> None:
    _, parts, batch = case(batch_norm=True)
    weights = alignment.weights_of(parts.network)
    wanted = alignment.gradient_at(parts.network, weights, parts.normalise(batch.val_images_VCHW), batch.val_targets_V)
    found = validation_gradient(replace(parts, running=None), weights, replace(batch, number=1))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_rewards_are_of_log_losses_by_running_statistics() -> None:
    """d log(1 + l) along v, by forward mode through a network in eval mode; BatchNorm keeps its buffers."""
    algorithm, parts, batch = case(batch_norm=True, draws_per_image=1)
    network = parts.network
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights = alignment.weights_of(network)
    v = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    sample = algorithm.distribution.sample(batch.noise)
    found = algorithm.advantages(parts, alignment.ends_consuming(weights, dict(v)),
                                 *algorithm.drawn(parts, batch, sample))
    assert network.training
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name])
    images = augmented(algorithm, parts, batch, B)
    exact = {}
    for training in (False, True):
        network.train(training)
        losses = alignment.losses_at(network, weights, images, batch.targets_B)
        rewards = alignment.rewards_forward_mode(network, weights, v, images, batch.targets_B) / (losses + 1)
        exact[training] = (rewards - (rewards.sum() - rewards) / (B - 1)).detach()
    torch.testing.assert_close(found, exact[False], rtol=1e-2, atol=1e-2 * exact[False].abs().max().item())
    assert (exact[True] - exact[False]).norm() > 0.1 * exact[False].norm()


def test_a_classifiers_rewards_may_take_tf32_and_a_detectors_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, parts, batch = case(draws_per_image=1)
    seen = []
    monkeypatch.setattr(alignment, "rewards_between", lambda network, ends, images, targets, log: seen.append(
        torch.backends.cudnn.allow_tf32) or torch.zeros(len(images)))
    drawn = algorithm.drawn(parts, batch, algorithm.distribution.sample(batch.noise))
    with float32_arithmetic():
        algorithm.advantages(parts, ({}, {}, torch.ones(())), *drawn)
        algorithm.advantages(replace(parts, network=alignment.LossNetwork()), ({}, {}, torch.ones(())), *drawn)
        assert seen == [True, False] and not torch.backends.cudnn.allow_tf32


def test_the_papers_magnitudes_equal_autograd_through_the_pixel_sum() -> None:
    """Eq. 10: m joins every pixel of the images that its operation acted on, with the value 0 and the derivative 1."""
    algorithm, parts, batch = case("paper", estimator="score")
    network, distribution = parts.network, algorithm.distribution
    one = distribution.sample(batch.common_noise)
    sample = Sample(one.c_B.expand(B), *(drawn.expand(B, 2) for drawn in (one.b_B2, one.logit_m_B2, one.magnitudes_B2)))
    images, labels = augment(parts, batch.images_BCHW, batch.targets_B, algorithm.draws(sample, batch.noise, B))
    weights = alignment.weights_of(network)
    virtual = alignment.step(weights, alignment.gradient_at(network, weights, images, labels), -ZETA)
    v = alignment.gradient_at(network, virtual, parts.normalise(batch.val_images_VCHW), batch.val_targets_V)
    leaf_N2 = distribution.magnitudes_N2.detach().clone().requires_grad_()
    m_2 = leaf_N2[one.c_B[0]]
    moved = images + ((m_2 - m_2.detach()) * one.b_B2[0]).sum()
    rewards = torch.func.jvp(lambda w: alignment.losses_at(network, w, moved, labels), (weights,), (v,))[1]
    (exact,) = torch.autograd.grad(rewards.mean(), leaf_N2)
    algorithm.paper_step(parts, batch, ZETA)
    assert one.b_B2.any() and exact.abs().max() > 1e-6
    torch.testing.assert_close(-distribution.magnitudes_N2.grad, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def test_each_mode_has_its_entries_and_at_most_eight() -> None:
    for mode, entries in ENTRIES.items():
        assert len(entries) < 8  # beside the mode itself
        assert dada_settings(mode, **{name: getattr(MODES[mode], name) for name in entries}) == MODES[mode]
    for mode, entry in (("default", "estimator"), ("default", "temperature"), ("paper", "spread"), ("paper", "unaugmented")):
        with refused(f"entry {entry}", f"mode {mode}", "ranges"):
            dada_settings(mode, **{entry: None})
