"""Trainings: the averaged weights, the best temperature, and scores that doubt cannot buy."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dada_det.search.training import ADAMW, SGD, TrainingRecipe, image_scores, mean_gradient, temperature_of, train


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (200,), generator=generator)
    return 2.0 * F.one_hot(labels, 3) + torch.randn(200, 3, generator=generator), labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_temperature_is_where_the_loss_is_least(scale: float) -> None:
    logits, labels = problem()
    found = temperature_of(scale * logits, labels)
    losses = {t: float(F.cross_entropy(scale * logits.double() / t, labels))
              for t in (found, *torch.logspace(-1, 1.2, 200).tolist())}
    assert min(losses.values()) == pytest.approx(losses[found], abs=1e-6)
    assert found / scale == pytest.approx(temperature_of(logits, labels), rel=1e-4)


def test_scores_do_not_depend_on_how_sure_the_network_is() -> None:
    logits, labels = problem()
    plain, sure = image_scores(logits, labels), image_scores(5 * logits, labels)
    assert torch.allclose(plain, sure, atol=1e-4)
    assert plain[1].mean() == (logits.argmax(1) == labels).double().mean()
    unsure = image_scores(torch.zeros(200, 3), labels)
    assert unsure[0].mean() == pytest.approx(-math.log(3)) and unsure[0].mean() < plain[0].mean()


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.parametrize("name", [SGD, ADAMW])
def test_a_training_ends_with_the_mean_of_its_last_weights(name: str) -> None:
    recipe = TrainingRecipe(steps=6, lr=0.1, weight_decay=0.01, averaged=0.5, clip_grad=100.0, optimizer=name)
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(network.state_dict())
    train(network, batches, recipe, seed=0)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01) \
        if name == SGD else torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.01)
    states = []
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 6)) / 2
        images, labels = batches(step)
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        states.append({name: tensor.clone() for name, tensor in plain.state_dict().items()})
    for name, tensor in network.state_dict().items():
        assert torch.allclose(tensor, torch.stack([state[name] for state in states[3:]]).mean(0), atol=1e-6)


def test_equal_seeds_give_equal_trainings_with_dropout() -> None:
    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
        torch.rand(5)
        train(network, batches, TrainingRecipe(steps=4, lr=0.1), seed)
        return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])

    assert torch.equal(trained(1), trained(1)) and not torch.equal(trained(1), trained(2))


def test_the_optimizer_has_the_configs_further_arguments() -> None:
    built = TrainingRecipe(1, 0.1, optimizer=ADAMW, options={"betas": (0.9, 0.95)}).build([nn.Parameter(torch.zeros(1))])
    assert built.param_groups[0]["betas"] == (0.9, 0.95)
    damped = TrainingRecipe(1, 0.1, options={"dampening": 0.1}).build([nn.Parameter(torch.zeros(1))])
    assert damped.param_groups[0]["dampening"] == 0.1 and not damped.param_groups[0]["nesterov"]
    plain = TrainingRecipe(1, 0.1, nesterov=False).build([nn.Parameter(torch.zeros(1))])
    assert plain.param_groups[0]["momentum"] == 0.9 and not plain.param_groups[0]["nesterov"]


def test_a_batch_in_parts_has_the_gradient_of_the_whole_and_no_pass_is_larger() -> None:
    seen = []

    class Noting(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return super().forward(images)

    network = Noting(4, 3)
    images, labels = batches(0)
    whole = mean_gradient(network, images, labels)
    for at_once, sizes in ((3, [3, 3, 2]), (7, [4, 4]), (8, [8])):
        seen.clear()
        parts = mean_gradient(network, images, labels, at_once)
        assert seen == sizes
        assert all(torch.allclose(parts[name], whole[name], atol=1e-6) for name in whole)
