"""DAAS's step in float64: its gradients against exact ones, one path in all of its passes, what it draws and writes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.augment.space import SearchSpace
from dada_det.models.darts import SuperNet
from dada_det.models.genotype import Genotype
from dada_det.search import alignment, estimators
from dada_det.search.daas import Daas, daas_settings, path_score
from dada_det.search.step import Batch, Step, augment
from tests.messages import refused

B, SIDE, CLASSES, LR = 6, 8, 3, 0.1
OPERATIONS = ("Rotate", "Solarize", "Brightness")
CELLS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


class Case:
    """A step of a search; the weights move by plain SGD, what else is learned does not move."""

    def __init__(self, warmup_epochs: int = 0, nodes: int = 2) -> None:
        torch.manual_seed(0)
        self.network = SuperNet(CLASSES, channels=2, cells=2, nodes=nodes, operations=CELLS).double()
        self.algorithm = Daas(SearchSpace(OPERATIONS), daas_settings(warmup_epochs=warmup_epochs), self.network).double()
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
            for name, weight in alignment.trainable(self.network).items():
                weight -= LR * gradient[name]

    def step(self, epoch: int = 5) -> dict[str, Tensor]:
        return self.algorithm.step(self.parts, self.batch, LR, epoch)

    def paths(self) -> Tensor:
        """The drawn operations of the path that trains, with equal chances, and of those that are compared, [3,2,E]."""
        logits_P2EO = self.algorithm.architecture_2EO.detach().log_softmax(2).repeat(3, 1, 1, 1)
        logits_P2EO[0] = 0
        return (logits_P2EO + self.batch.common_noise.gumbel_BP2EO[0]).argmax(3)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in alignment.weights_of(network).items()}


def val_loss(case: Case, choices: list[list[int]]) -> Tensor:
    with torch.no_grad(), case.network.on(choices):
        return F.cross_entropy(case.network(case.normalise(case.batch.val_images_VCHW)), case.batch.val_targets_V)


def test_the_architecture_gets_half_the_difference_of_two_paths_at_the_new_weights() -> None:
    """(L_a - L_b) / 2 (grad log p(a) - grad log p(b)), by autograd; a and b are drawn apart from the path that trains."""
    case = Case()
    case.step()
    architecture = case.algorithm.architecture_2EO
    log_p = architecture.log_softmax(2)
    trained, *paths = case.paths()
    assert len(paths) == 2 and not torch.equal(paths[0], paths[1]) and not any(torch.equal(trained, path) for path in paths)
    losses = [val_loss(case, path.tolist()) for path in paths]
    scores = [torch.autograd.grad(log_p.gather(2, path[..., None]).sum(), architecture, retain_graph=True)[0]
              for path in paths]
    expected = (losses[0] - losses[1]) / 2 * (scores[0] - scores[1])
    assert architecture.grad is not None and expected.abs().max() > 1e-3
    torch.testing.assert_close(architecture.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("paths", [2, 3])
def test_the_mean_over_draws_is_the_gradient_of_the_expected_loss(paths: int) -> None:
    """E[L_val] summed over all 256 paths of a space of four edges, by autograd; within 4 standard errors."""
    case = Case(nodes=1)
    architecture = case.algorithm.architecture_2EO
    every = list(itertools.product(range(4), repeat=4))
    losses = torch.stack([val_loss(case, [list(path[:2]), list(path[2:])]) for path in every])
    log_p = architecture.log_softmax(2).view(4, 4)
    expected_loss = sum(log_p[range(4), path].sum().exp() * loss for path, loss in zip(every, losses, strict=True))
    (exact,) = torch.autograd.grad(expected_loss, architecture)
    generator, estimates = torch.Generator().manual_seed(4), []
    for _ in range(1500):
        choices = case.algorithm.paths(case.algorithm.draw_noise(1, generator).gumbel_BP2EO[0])[-paths:]
        index = (choices.flatten(1) * torch.tensor([64, 16, 4, 1])).sum(1)  # in `every`
        estimates.append(path_score(losses[index], choices, architecture))
    draws = torch.stack(estimates)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    assert exact.norm() > 5 * error.norm()  # a gradient of zero would not pass


def test_the_policy_gets_the_score_of_the_alignment_on_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards by central differences along grad L_val at the new weights, less their mean, over their spread."""
    monkeypatch.setattr(alignment, "ONE_SIDED_STEP", 1e-6)  # the difference itself is tested in test_search_alignment.py
    case = Case()
    before = weights_of(case.network)
    case.step()
    after, distribution, noise = weights_of(case.network), case.algorithm.distribution, case.batch.noise.policy
    choices = case.paths()[0].tolist()
    sample = distribution.sample(noise)
    images, labels = augment(case.parts, case.batch.images_BCHW, case.batch.targets_B, distribution.space.draws(
        sample.c_B, sample.b_B2, sample.magnitudes_B2, noise.signs_B2, noise.centers_B22))
    with case.network.on(choices):
        v = alignment.gradient_at(case.network, after, case.normalise(case.batch.val_images_VCHW), case.batch.val_targets_V)
        rewards = alignment.rewards(case.network, before, v, images, labels, relative_step=1e-5)
    advantages = rewards - (rewards.sum() - rewards) / (B - 1)  # the mean of the others
    advantages = advantages / advantages.square().mean().sqrt()
    expected = estimators.marginal_score(advantages, distribution.logits_N(), distribution.flag_logits_N2(),
                                         distribution.magnitude_logits_N2(), 0.8, distribution.pairs_N2, sample)
    parameters = distribution.preferences_N, distribution.flags_N2, distribution.magnitudes_N2
    for parameter, gradient in zip(parameters, expected, strict=True):
        wanted = -gradient.detach()  # optimisers minimise
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_weights_then_policy_on_one_path_then_architecture_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    case, paths = Case(), []
    case.network.register_forward_pre_hook(lambda network, _: paths.append(network.choices_2E) and None)
    buffers = []
    update = case.update_weights
    object.__setattr__(case.parts, "update_weights", lambda gradient: (update(gradient), buffers.append(
        {name: buffer.clone() for name, buffer in case.network.named_buffers()})))
    case.step()
    assert case.updated == ["weights", "policy", "architecture"]
    training, validation, end, first, second = paths  # end: of the difference
    assert training is validation is end and training != first != second
    assert all(torch.equal(buffer, buffers[0][name]) for name, buffer in case.network.named_buffers())
    assert not case.network.choices_2E


def test_warm_up_trains_the_weights_alone() -> None:
    case = Case(warmup_epochs=3)
    case.step(epoch=2)
    assert case.updated == ["weights"]
    case.step(epoch=3)
    assert case.updated == ["weights", "weights", "policy", "architecture"]


def test_paths_are_drawn_from_the_softmax_and_are_those_of_all_rows() -> None:
    algorithm = Case().algorithm
    generator, p = torch.Generator().manual_seed(3), algorithm.architecture_2EO.detach().softmax(2)
    drawn = []
    for _ in range(1000):
        noise = algorithm.draw_noise(2, generator)
        assert torch.equal(noise.gumbel_BP2EO[0], noise.gumbel_BP2EO[1])
        drawn.append(algorithm.paths(noise.gumbel_BP2EO[0]))
    frequencies = F.one_hot(torch.cat(drawn), 4).double().mean(0)
    assert ((frequencies - p).abs() < 5 * (p * (1 - p) / 3000).sqrt()).all()


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


@pytest.mark.parametrize(("changes", "names"), [
    ({"mode": "paper"}, ("mode", "daas", "warmup_epochs")),
    ({"warmup_epochs": -1}, ("search.warmup_epochs is -1", "whole number of at least 0")),
    ({"warmup_epochs": "x"}, ("search.warmup_epochs is 'x'", "whole number"))])
def test_settings_that_do_not_exist(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    with refused(*names):
        daas_settings(**changes)
