"""DDAS's step against autograd through the virtual step of its expected loss, in float64; its levels, draws and results.

B images, V validation images, K copies, A atoms.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dada_det.augment import Policy
from dada_det.augment.schedule import Schedule
from dada_det.augment.space import AtomSpace
from dada_det.search import alignment
from dada_det.search.curvature import RunningDirection
from dada_det.search.ddas import Ddas, ddas_settings
from dada_det.search.step import Batch, Step, augment
from tests.messages import refused

B, V, SIZE, CLASSES, ZETA = 6, 8, 10, 3, 0.1
OPERATIONS = ("Rotate", "Invert", "Brightness", "Solarize")


class Case:
    """A step in the midst of a search, on random images and without BatchNorm; the updates keep what they are given."""

    def __init__(self, epochs: int = 3, parts: dict[str, Any] | None = None, **changes: Any) -> None:
        torch.manual_seed(0)
        settings = ddas_settings(**changes)
        self.algorithm = Ddas(AtomSpace.of_levels(OPERATIONS, settings.levels), settings, epochs).double()
        nn.init.normal_(self.algorithm.alpha_A, std=0.7)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, CLASSES)).double()
        images = torch.randint(0, 256, (2, V, 3, SIZE, SIZE), dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (2, V))
        noise = self.algorithm.draw_noise(settings.draws_per_image * B, torch.Generator().manual_seed(1))
        self.noise = noise.to(torch.zeros(1, dtype=torch.float64))
        self.batch = Batch(images[0, :B], labels[0, :B], images[1], labels[1], self.noise, self.noise[:1])
        self.updates: list[Any] = []
        self.parts = Step(self.network, settings, lambda pixels: pixels.double() / 127.5 - 1, self.updates.append,
                          self.updates.append, **(parts(self.network) if parts else {}))

    def step(self) -> dict[str, Tensor]:
        return self.algorithm.step(self.parts, self.batch, ZETA, epoch=0)

    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """D_0 .. D_K with their labels."""
        images, labels = self.batch.images_BCHW, self.batch.targets_B
        found = [(self.parts.normalise(images), labels)]
        for k in range(self.algorithm.settings.draws_per_image):
            own = self.noise[k * B:(k + 1) * B]
            draws = self.algorithm.space.draws(own.pairs_B2, own.signs_B2, own.centers_B22)
            found.append(augment(self.parts, images, labels, draws))
        return found


def expected_loss(case: Case, weights: alignment.Weights) -> Tensor:
    """L_T by its formula, with a graph to alpha and t."""
    losses = [alignment.losses_at(case.network, weights, *copy).mean() for copy in case.copies()]
    pi, sigma = case.algorithm.alpha_A.softmax(0), case.algorithm.t.sigmoid()
    pairs = case.noise.pairs_B2[::B].tolist()
    p = [pi[i] * pi[j] for i, j in pairs]
    z = sum(p).detach()
    shares = [sigma * one / z for one in p]
    return (1 - sum(shares)) * losses[0] + sum(share * loss for share, loss in zip(shares, losses[1:], strict=True))


@pytest.mark.parametrize("copies", [1, 3])
def test_the_gradient_equals_autograd_through_the_virtual_step_of_the_expected_loss(copies: int) -> None:
    case = Case(draws_per_image=copies)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in alignment.weights_of(case.network).items()}
    gradients = torch.autograd.grad(expected_loss(case, leaves), list(leaves.values()), create_graph=True)
    virtual = {name: leaf - ZETA * g for (name, leaf), g in zip(leaves.items(), gradients, strict=True)}
    val_loss = alignment.losses_at(case.network, virtual, case.parts.normalise(case.batch.val_images_VCHW),
                                   case.batch.val_targets_V).mean()
    exact = torch.autograd.grad(val_loss, [case.algorithm.alpha_A, case.algorithm.t])

    norm = case.step()["advantage"]  # what the gradient was divided by; so was the virtual step's length, zeta
    found = [ZETA * norm * parameter.grad for parameter in (case.algorithm.alpha_A, case.algorithm.t)]
    for got, want in zip(found, exact, strict=True):
        assert want.abs().max() > 1e-6
        assert (got - want).norm() <= 1e-10 * want.norm()


def test_the_weights_take_the_gradient_of_the_expected_loss_after_the_policy() -> None:
    case = Case()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in alignment.weights_of(case.network).items()}
    exact = torch.autograd.grad(expected_loss(case, leaves), list(leaves.values()))
    loss = case.step()["loss"]
    policy, gradient = case.updates
    assert policy == "policy"
    for got, want in zip(gradient.values(), exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(loss, expected_loss(case, leaves).detach())


def test_an_advantage_is_the_mean_reward_of_a_copy_less_that_of_the_batch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """DADA's rewards, by forward mode, along the same v."""
    case, kept = Case(), []
    monkeypatch.setattr(Ddas, "learn", lambda self, advantages_K, q_K: kept.append(advantages_K) or torch.zeros(()))
    case.step()
    gradient, weights = case.updates[1], alignment.weights_of(case.network)
    v = alignment.gradient_at(case.network, alignment.step(weights, gradient, -ZETA),
                              case.parts.normalise(case.batch.val_images_VCHW), case.batch.val_targets_V)
    rewards = [alignment.rewards_forward_mode(case.network, weights, v, *copy).mean() for copy in case.copies()]
    torch.testing.assert_close(kept[0], torch.stack(rewards[1:]) - rewards[0], rtol=1e-10, atol=1e-14)


def test_dada_s_validation_direction_gives_another_gradient() -> None:
    found = []
    for running_v in (False, True):
        case = Case(parts=lambda network: {"running": RunningDirection(network).double()} if running_v else {},  # noqa: B023
                    running_v=running_v)
        case.step()
        found.append(case.algorithm.alpha_A.grad)
    assert not torch.allclose(found[0], found[1], rtol=0.01)


def test_draws_are_uniform_ordered_pairs_with_replacement_the_same_for_a_copy() -> None:
    algorithm = Case(draws_per_image=2).algorithm
    generator = torch.Generator().manual_seed(0)
    pairs = torch.stack([algorithm.draw_noise(2 * 4, generator).pairs_B2.view(2, 4, 2) for _ in range(3000)])
    assert (pairs == pairs[:, :, :1]).all()
    counts = torch.bincount((pairs[:, :, 0, 0] * len(algorithm.space) + pairs[:, :, 0, 1]).flatten(),
                            minlength=len(algorithm.space) ** 2)
    mean = 6000 / len(counts)
    assert (counts - mean).abs().max() < 5 * math.sqrt(mean)


def test_the_atoms_of_the_paper_s_levels() -> None:
    """ImageNet's 28: the image as it is, three without a magnitude, twelve at half and at full strength."""
    space = AtomSpace.of_levels(("Rotate", "Invert", "Cutout"), (7, 14))
    assert [(atom.name, atom.magnitude) for atom in space.atoms] == [
        (None, 0.0), ("Invert", 0.0), ("Rotate", 0.5), ("Rotate", 1.0), ("Cutout", 0.5), ("Cutout", 1.0)]


def test_every_epoch_becomes_a_stage_and_their_mean_the_policy() -> None:
    case = Case(epochs=4)
    algorithm = case.algorithm.float()
    for epoch in range(2):
        with torch.no_grad():
            algorithm.t.copy_(torch.tensor([0.3, 0.6][epoch]).logit())
            algorithm.alpha_A.normal_()
        algorithm.after_epoch(epoch)
        last = algorithm.alpha_A.softmax(0)
    results = algorithm.results({"method": "ddas"}, {})
    schedule = Schedule.from_dict(results["schedule.json"])
    assert [stage.until for stage in schedule.stages] == [0.5, 1.0]
    assert [stage.probability for stage in schedule.stages] == pytest.approx([0.3, 0.6])
    assert list(schedule.stages[1].preferences) == pytest.approx(last.tolist())
    policy = Policy.from_dict(results["policy.json"])
    assert policy == schedule.average() and policy.provenance == {"method": "ddas"}
    use = algorithm.use()
    rotate = sum(p for atom, p in zip(schedule.atoms, last.tolist(), strict=True) if atom.name == "Rotate")
    assert use["Rotate"] == pytest.approx(2 * 0.6 * rotate) and list(use.values()) == sorted(use.values(), reverse=True)


@pytest.mark.parametrize(("changes", "names"), [
    ({"mode": "default"}, ("mode", "ddas", "levels, draws_per_image")),
    ({"levels": (0, 14)}, ("search.levels is (0, 14)", "1 to 14")),
    ({"levels": ()}, ("search.levels is ()", "1 to 14")), ({"levels": (7, 7)}, ("search.levels is (7, 7)", "1 to 14")),
    ({"levels": 7}, ("search.levels is 7", "1 to 14")),
    ({"draws_per_image": 0}, ("search.draws_per_image is 0", "whole number of at least 1")),
    ({"val_batches": 0.5}, ("search.val_batches is 0.5", "whole number of at least 1")),
    ({"probability": 1.0}, ("search.probability is 1.0", "between 0 and 1")),
    ({"probability_lr": -1}, ("search.probability_lr is -1", "at least 0")),
    ({"running_v": 1}, ("search.running_v is 1", "True or False"))])
def test_mistakes_get_one_sentence(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    with refused(*names):
        ddas_settings(**changes)
