"""Options of the default step against autograd in float64: the weights' mixture, straight-through magnitudes, entropy, what
is shared, validation and reward statistics, logarithms of losses."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dada_det.augment.space import SearchSpace
from dada_det.search import alignment
from dada_det.search.curvature import RunningMean
from dada_det.search.dada import Dada
from dada_det.search.distribution import SHARED, PolicyGradient
from dada_det.search.policy_gradient import policy_gradient
from dada_det.search.settings import ESTIMATORS, settings_for
from dada_det.search.step import Batch, Step, augment

B, SIZE, CLASSES = 8, 10, 3
OPERATIONS = ("Rotate", "Solarize", "Brightness")


def case(**changes: Any) -> tuple[Dada, Step, Batch]:
    """A step in the midst of a search, on random images; its updates do nothing, so the gradients stay in .grad."""
    torch.manual_seed(0)
    plain = {"preconditioned": False, "v_decay": 0.0, "val_statistics": "batch", "clean": 0.0, "log_losses": False,
             "draws": 1}
    settings = settings_for("default", **{**plain, **changes})
    algorithm = Dada(SearchSpace(OPERATIONS), settings).double()
    for parameter in algorithm.distribution.parameters():
        nn.init.normal_(parameter, std=0.7)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, CLASSES)).double()
    images = torch.randint(0, 256, (2, B, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (2, B))
    noise = algorithm.draw_noise(settings.draws * B, torch.Generator().manual_seed(1))
    batch = Batch(images[0], labels[0], images[1], labels[1], noise, noise[:1])
    return algorithm, Step(network, settings, lambda pixels: pixels.double() / 127.5 - 1, lambda gradient: None,
                           lambda name: None, v_mean=RunningMean(network, settings.v_decay)), batch


def gradient_of(algorithm: Dada, parts: Step, batch: Batch, **changes: Any) -> dict[str, Tensor]:
    """What the step hands to the policy's optimiser, turned round: it minimises."""
    kept = algorithm.settings
    algorithm.settings = replace(kept, **changes)
    algorithm.default_step(parts, batch, learn=True)
    algorithm.settings = kept
    return {name: -parameter.grad for name, parameter in algorithm.distribution.named_parameters()}


def augmented(algorithm: Dada, parts: Step, batch: Batch, draws: int = 1) -> Tensor:
    sample = algorithm.distribution.sample(batch.noise)
    return augment(parts, batch.images_BCHW.repeat(draws, 1, 1, 1), None, algorithm.draws(sample, batch.noise, draws * B))[0]


@pytest.mark.parametrize("draws", [1, 2])
def test_straight_through_magnitudes_equal_autograd_through_the_pixel_sum(draws: int) -> None:
    """Eq. 10: m joins every pixel of the images that its operation acted on, with the value 0 and the derivative 1."""
    algorithm, parts, batch = case(spread=None, estimator="score", normalise=False, draws=draws, shared="none")
    sample, network = algorithm.distribution.sample(batch.noise), parts.network
    torch.testing.assert_close(sample.logit_m_B2, algorithm.distribution.magnitudes_N2.detach()[sample.c_B])  # not drawn
    images, labels = augmented(algorithm, parts, batch, draws), batch.targets_B.repeat(draws)
    weights = alignment.weights_of(network)
    v = alignment.gradient_at(network, weights, parts.normalise(batch.val_images_VCHW), batch.val_targets_V)
    v = {name: tensor / alignment.norm(v) for name, tensor in v.items()}
    leaf_N2 = algorithm.distribution.magnitudes_N2.detach().clone().requires_grad_()
    m_B2 = leaf_N2.sigmoid()[sample.c_B]
    moved = images + ((m_B2 - m_B2.detach()) * sample.b_B2).sum(1)[:, None, None, None]
    rewards = torch.func.jvp(lambda w: alignment.losses_at(network, w, moved, labels), (weights,), (v,))[1]
    (exact,) = torch.autograd.grad(rewards.mean(), leaf_N2)
    got = gradient_of(algorithm, parts, batch)["magnitudes_N2"]
    assert exact.abs().max() > 1e-4 and 0 < sample.b_B2.sum() < sample.b_B2.numel()
    torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@pytest.mark.parametrize("changes", [{}, {"spread": None, "estimator": "score"}])
def test_dividing_by_the_spread_divides_every_gradient(changes: dict[str, Any]) -> None:
    """The pixels' sums with the rewards, so that no option changes their weight against each other."""
    algorithm, parts, batch = case(**changes)
    plain = gradient_of(algorithm, parts, batch, normalise=False)
    spread = algorithm.default_step(parts, batch, learn=True)["spread"]
    assert abs(spread.item() - 1) > 0.1
    for name, gradient in gradient_of(algorithm, parts, batch).items():
        torch.testing.assert_close(gradient, plain[name] / spread)


@pytest.mark.parametrize("shared", SHARED)
def test_the_entropys_gradient_equals_autograd(shared: str) -> None:
    distribution = case(shared=shared)[0].distribution
    log_p_N = distribution.logits_N().log_softmax(0)
    wanted = torch.autograd.grad(-(log_p_N.exp() * log_p_N).sum(), list(distribution.parameters()), allow_unused=True)
    zeros_N2 = torch.zeros_like(distribution.flags_N2)
    distribution.backward(PolicyGradient(distribution.entropy_gradient_N(), zeros_N2, zeros_N2))
    for parameter, exact in zip(distribution.parameters(), wanted, strict=True):
        torch.testing.assert_close(-parameter.grad, torch.zeros_like(parameter) if exact is None else exact)


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


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("clean", [0.0, 0.5, 1.0])
def test_the_weights_see_a_share_of_the_images_as_they_are(clean: float, draws: int) -> None:
    """The mixture's gradient, by hand; and the policy's, from R(augmented) - R(as it is) of every image by forward mode."""
    algorithm, parts, batch = case(clean=clean, draws=draws, estimator="score", normalise=False, baseline="unaugmented")
    trained: list[alignment.Weights] = []
    parts = replace(parts, update_weights=trained.append)
    weights, images = alignment.weights_of(parts.network), augmented(algorithm, parts, batch, draws)
    unaugmented, labels, share = parts.normalise(batch.images_BCHW), batch.targets_B, int(clean * B)
    mixture = torch.cat([unaugmented[:share], images[share:B]])
    gradient = alignment.gradient_at(parts.network, weights, mixture, labels)
    v = alignment.gradient_at(parts.network, weights, parts.normalise(batch.val_images_VCHW), batch.val_targets_V)
    v = {name: tensor / alignment.norm(v) for name, tensor in v.items()}
    rewards, baseline = (alignment.rewards_forward_mode(parts.network, weights, v, shown, labels.repeat(len(shown) // B))
                         for shown in (images, unaugmented))
    distribution, sample = algorithm.distribution, algorithm.distribution.sample(batch.noise)
    wanted = policy_gradient(algorithm.settings, distribution, algorithm.control_variate, rewards - baseline.repeat(draws),
                             None, sample, batch.noise)[0]
    found = gradient_of(algorithm, parts, batch)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, gradient[name])
    for name, exact in (("preferences_N", wanted.logits_N), ("flags_N2", wanted.flag_logits_N2),
                        ("magnitudes_N2", wanted.magnitudes_N2)):
        assert exact.abs().max() > 1e-4
        torch.testing.assert_close(found[name], exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_step_adds_the_entropy_to_the_preferences_alone(estimator: str) -> None:
    """The same draws with and without it: the difference is the coefficient times the entropy's gradient."""
    algorithm, parts, batch = case(estimator=estimator, shared="none")
    plain = gradient_of(algorithm, parts, batch)
    found = gradient_of(algorithm, parts, batch, entropy=0.3)
    exact = algorithm.distribution.entropy_gradient_N()
    assert exact.abs().max() > 0.01
    for name in plain:
        added = 0.3 * exact if name == "preferences_N" else torch.zeros_like(plain[name])
        torch.testing.assert_close(found[name] - plain[name], added, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("statistics", "every", "number", "running"), [
    ("batch", 1, 1, False), ("running", 1, 0, True), ("both", 1, 4, False), ("both", 1, 5, True), ("both", 2, 4, False),
    ("both", 2, 6, True)])
def test_the_validation_gradient_sees_the_statistics_that_the_setting_names(
        statistics: str, every: int, number: int, running: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd at the weights in train or eval mode; the step leaves the network in train mode."""
    algorithm, parts, batch = case(val_statistics=statistics, val_every=every)
    batch = replace(batch, number=number)
    network = nn.Sequential(nn.BatchNorm2d(3), *parts.network).double()
    directions = []
    kept = alignment.ends

    def ends(weights: alignment.Weights, direction: alignment.Weights) -> alignment.Ends:
        directions.append(dict(direction))
        return kept(weights, direction)

    monkeypatch.setattr(alignment, "ends", ends)
    parts = replace(parts, network=network, v_mean=RunningMean(network, 0.0))
    before = copy.deepcopy(network)
    before.train(not running)
    loss = nn.functional.cross_entropy(before(parts.normalise(batch.val_images_VCHW)), batch.val_targets_V)
    own = torch.autograd.grad(loss, list(before.parameters()))
    length = torch.cat([tensor.flatten() for tensor in own]).norm()
    wanted = dict(zip(alignment.weights_of(network), (tensor / length for tensor in own), strict=True))
    algorithm.default_step(parts, batch, learn=True)
    assert network.training and directions
    torch.testing.assert_close(directions[0], wanted)


def test_between_two_validation_passes_the_rewards_are_along_the_mean_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step without a pass; before the first pass there is no direction, and nothing is learned."""
    algorithm, parts, batch = case(val_every=2, estimator="score", baseline="none", normalise=False)
    assert parts.v_mean is not None
    passes = []
    kept = alignment.gradient_at
    monkeypatch.setattr(alignment, "gradient_at", lambda *arguments: passes.append(None) or kept(*arguments))
    none_yet = gradient_of(algorithm, parts, replace(batch, validates=False))
    assert not passes and not any(gradient.any() for gradient in none_yet.values())
    gradient_of(algorithm, parts, batch)
    mean = {name: tensor.clone() for name, tensor in parts.v_mean.means.items()}
    found = gradient_of(algorithm, parts, replace(batch, validates=False))
    assert len(passes) == 1
    rewards = alignment.rewards_forward_mode(parts.network, alignment.weights_of(parts.network), mean,
                                             augmented(algorithm, parts, batch), batch.targets_B)
    wanted = policy_gradient(algorithm.settings, algorithm.distribution, algorithm.control_variate, rewards, None,
                             algorithm.distribution.sample(batch.noise), batch.noise)[0].logits_N
    torch.testing.assert_close(found["preferences_N"], wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
    for name, tensor in parts.v_mean.means.items():
        assert torch.equal(tensor, mean[name])


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("changes", [{"estimator": "score"}, {"estimator": "score", "spread": None, "shared": "none"}])
def test_rewards_of_log_losses_by_the_statistics_that_the_setting_names(statistics: str, changes: dict[str, Any]) -> None:
    """d log(1 + l) along v, by forward mode through a network in train or eval mode; BatchNorm keeps its buffers."""
    algorithm, parts, batch = case(reward_statistics=statistics, log_losses=True, baseline="none", **changes)
    network = nn.Sequential(nn.BatchNorm2d(3), *parts.network).double()
    network(2 * torch.randn(50, 3, SIZE, SIZE).double() + 1)  # running statistics that are not the batch's
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights = alignment.weights_of(network)
    v = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    sample = algorithm.distribution.sample(batch.noise)
    found, pixel_sums = algorithm.rewards(replace(parts, network=network), alignment.ends(weights, dict(v)), batch, sample)
    assert network.training and (pixel_sums is None) == (algorithm.settings.spread is not None)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name])
    network.train(statistics == "batch")
    images = augmented(algorithm, parts, batch)
    losses = alignment.losses_at(network, weights, images, batch.targets_B)
    exact = alignment.rewards_forward_mode(network, weights, v, images, batch.targets_B) / (losses + 1)
    network.train(statistics != "batch")
    other = alignment.rewards_forward_mode(network, weights, v, images, batch.targets_B) / (losses + 1)
    torch.testing.assert_close(found, exact.detach(), rtol=1e-2, atol=1e-2 * exact.abs().max().item())
    assert (other - exact).norm() > 0.1 * exact.norm()
