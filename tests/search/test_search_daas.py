"""DAAS's step in float64 against autograd, one path in all of its passes, and what it draws and writes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dada_det.augment.space import SearchSpace
from dada_det.errors import UserError
from dada_det.models.darts import GATES, SuperNet
from dada_det.models.genotype import Genotype
from dada_det.search import alignment, estimators
from dada_det.search.daas import Daas, settings_for
from dada_det.search.step import Batch, Step, augment

B, SIDE, CLASSES, LR = 6, 8, 3, 0.1
OPERATIONS = ("Rotate", "Solarize", "Brightness")
CELLS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


class Case:
    """A step in the midst of a search of 11 epochs; the weights move by plain SGD, what else is learned does not move."""

    def __init__(self, warmup_epochs: int = 0) -> None:
        torch.manual_seed(0)
        self.network = SuperNet(CLASSES, channels=2, cells=2, nodes=2, operations=CELLS).double()
        self.algorithm = Daas(SearchSpace(OPERATIONS), settings_for(warmup_epochs=warmup_epochs), self.network, 11).double()
        for parameter in self.algorithm.parameters():
            nn.init.normal_(parameter, std=0.7)
        images = torch.randint(0, 256, (2, B, 3, SIDE, SIDE), dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (2, B))
        noise = self.algorithm.draw_noise(B, torch.Generator().manual_seed(2))
        self.batch = Batch(images[0], labels[0], images[1], labels[1], noise, noise[:1])
        self.updated: list[str] = []
        self.parts = Step(self.network, self.algorithm.settings, self.normalise, self.update_weights, self.updated.append)

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        return images.double() / 127.5 - 1

    def update_weights(self, gradient: dict[str, Tensor]) -> None:
        self.updated.append("weights")
        with torch.no_grad():
            for name, weight in alignment.learned(self.network).items():
                weight -= LR * gradient[name]

    def step(self, epoch: int = 5) -> dict[str, Tensor]:
        return self.algorithm.step(self.parts, self.batch, LR, epoch)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in alignment.weights_of(network).items()}


def test_the_architecture_gets_the_straight_through_gradient_at_the_new_weights() -> None:
    """Autograd through y = (1 + relaxed - relaxed.detach()) operation(x) on every edge (Jang et al., 2017)."""
    case = Case()
    case.step()
    architecture = case.algorithm.architecture_2EO
    z = architecture.log_softmax(2) + case.batch.shared_noise.gumbel_B2EO[0]
    temperature = case.algorithm.temperature(5)
    assert temperature == pytest.approx(5.05)  # half the way from 10 to 0.1
    relaxed = (z / temperature).softmax(2).amax(2)  # the largest is the drawn one
    gates = 1 + relaxed - relaxed.detach()
    with case.network.on(z.argmax(2).tolist()):
        logits = functional_call(case.network, {GATES: gates}, (case.normalise(case.batch.val_images_VCHW),))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, case.batch.val_targets_V), architecture)
    assert architecture.grad is not None and expected.abs().max() > 1e-4
    torch.testing.assert_close(architecture.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_policy_gets_the_score_of_the_alignment_on_the_same_path() -> None:
    """Rewards by central differences along grad L_val at the new weights, less their mean, over their spread."""
    case = Case()
    before = weights_of(case.network)
    case.step()
    after, distribution, noise = weights_of(case.network), case.algorithm.distribution, case.batch.noise.policy
    choices, _ = case.algorithm.path(case.batch.shared_noise.gumbel_B2EO[0], 1.0)
    sample = distribution.sample(noise)
    images, labels = augment(case.parts, case.batch.images_BCHW, case.batch.targets_B, distribution.space.draws(
        sample.c_B, sample.b_B2, sample.magnitudes_B2, noise.signs_B2, noise.centers_B22))
    with case.network.on(choices):
        v = alignment.gradient_at(case.network, after, case.normalise(case.batch.val_images_VCHW), case.batch.val_targets_V)
        (rewards,) = alignment.rewards(case.network, before, v, (images, labels), relative_step=1e-5)
    advantages = rewards - (rewards.sum() - rewards) / (B - 1)  # the mean of the others
    advantages = advantages / advantages.square().mean().sqrt()
    expected = estimators.marginal_score(advantages, distribution.logits_N(), distribution.flag_logits_N2(),
                                         distribution.magnitude_logits_N2(), 0.8, distribution.pairs_N2, sample)
    parameters = distribution.preferences_N, distribution.flags_N2, distribution.magnitudes_N2
    for parameter, gradient in zip(parameters, expected, strict=True):
        wanted = -gradient.detach()  # optimisers minimise
        # The step's difference is one-sided: about one per cent.
        torch.testing.assert_close(parameter.grad, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


def test_weights_then_architecture_then_policy_and_one_path_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    case, paths = Case(), []
    case.network.register_forward_pre_hook(lambda network, _: paths.append(network.choices_2E) and None)
    buffers = []
    update = case.update_weights
    object.__setattr__(case.parts, "update_weights", lambda gradient: (update(gradient), buffers.append(
        {name: buffer.clone() for name, buffer in case.network.named_buffers()})))
    case.step()
    assert case.updated == ["weights", "architecture", "policy"]
    assert len(paths) == 3 and all(path is paths[0] for path in paths)  # training, validation, one end of the difference
    assert all(torch.equal(buffer, buffers[0][name]) for name, buffer in case.network.named_buffers())
    assert not case.network.choices_2E


def test_warm_up_trains_the_weights_alone() -> None:
    case = Case(warmup_epochs=3)
    case.step(epoch=2)
    assert case.updated == ["weights"]
    case.step(epoch=3)
    assert case.updated == ["weights", "weights", "architecture", "policy"]


def test_paths_are_drawn_from_the_softmax_and_are_those_of_all_rows() -> None:
    algorithm = Case().algorithm
    generator = torch.Generator().manual_seed(3)
    n = 3000
    counts = torch.zeros(2, 5, 4)
    for _ in range(n):
        noise = algorithm.draw_noise(2, generator)
        assert torch.equal(noise.gumbel_B2EO[0], noise.gumbel_B2EO[1])
        choices = torch.tensor(algorithm.path(noise.gumbel_B2EO[0], 1.0)[0])
        counts += F.one_hot(choices, 4)
    p = algorithm.architecture_2EO.detach().softmax(2)
    assert ((counts / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize(("epochs", "expected"), [(3, [10, 5.05, 0.1]), (1, [10])])
def test_the_temperature_falls_from_10_to_a_tenth(epochs: int, expected: list[float]) -> None:
    network = SuperNet(CLASSES, 2, 2, 1, CELLS)
    algorithm = Daas(SearchSpace(OPERATIONS), settings_for(), network, epochs)
    assert [algorithm.temperature(epoch) for epoch in range(epochs)] == pytest.approx(expected)


def test_what_it_writes() -> None:
    case = Case()
    optimizers = {name: torch.optim.Adam(groups) for name, groups in case.algorithm.groups().items()}
    assert set(optimizers) == {"policy", "architecture"}
    results = case.algorithm.results({"seed": 4}, optimizers)
    assert set(results) == {"genotype.json", "policy.json", "search.json"}
    genotype = Genotype.from_dict(results["genotype.json"])
    assert len(genotype.normal) == 2 and genotype.provenance == {"seed": 4}
    architecture = results["search.json"]["architecture"]
    assert architecture["operations"] == list(CELLS) and torch.tensor(architecture["normal"]).shape == (5, 4)
    assert torch.tensor(architecture["reduction"]).sum(1).tolist() == pytest.approx([1] * 5)
    assert "3 of 3 sub-policies" in case.algorithm.closing("w") and "w/genotype.json" in case.algorithm.closing("w")


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"mode": "paper"}, "search has no entry mode for the method daas; entries: warmup_epochs"),
    ({"warmup_epochs": -1}, "search.warmup_epochs is -1; give a whole number of at least 0"),
    ({"warmup_epochs": "x"}, "search.warmup_epochs is 'x'; give a whole number")])
def test_settings_that_do_not_exist(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        settings_for(**changes)
