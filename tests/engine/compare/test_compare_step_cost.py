"""What a step costs: bytes that are alive at once, processor time, and a classifier's bare step."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dada_det.engine.compare.step_cost import (
    TrainingStep,
    build_optimizer,
    classifier_step,
    core_seconds,
    peak_bytes,
    step_seconds,
)
from dada_det.engine.pretrain.classifier import Classifier


def test_peak_bytes_are_those_alive_at_once() -> None:
    def run() -> None:
        first = torch.empty(3_000_000, dtype=torch.uint8)
        del first
        pair = torch.empty(1_000_000, dtype=torch.uint8), torch.empty(1_000_000, dtype=torch.uint8)
        del pair

    module = nn.Linear(500, 500)
    optimizer = torch.optim.SGD(module.parameters(), momentum=0.9, lr=0.1)
    module(torch.ones(1, 500)).sum().backward()
    optimizer.step()
    weights = 4 * (500 * 500 + 500)  # and as much momentum and gradient
    assert peak_bytes(TrainingStep(run, module, [optimizer])) - 3 * weights == pytest.approx(3_000_000, rel=0.01)


def test_a_bare_step_is_a_plain_step_of_the_optimiser() -> None:
    torch.manual_seed(0)
    models = [Classifier({"name": "convnet", "num_classes": 3, "image_size": 16}, label_smoothing=0.1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    bare = classifier_step(models[0], build_optimizer(models[0], {"type": "SGD", "lr": 0.1}), images, labels, "float32")
    assert step_seconds(bare) > 0
    functional.cross_entropy(models[1].network(images), labels, label_smoothing=0.1).backward()
    torch.optim.SGD(models[1].parameters(), lr=0.1).step()
    assert all(torch.equal(ours, plain) for ours, plain in zip(*(model.parameters() for model in models), strict=True))


def test_core_seconds_are_of_each_sample() -> None:
    def make(index: int) -> int:
        return sum(range(200_000 * index))

    short, long = core_seconds(make, [1, 20])
    assert 0 < short < long
