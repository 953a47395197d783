"""bfloat16 (CPU autocast) for the passes with a gradient, float32 for the rewards: what survives, against float64.

64 photograph-like images, a small network with BatchNorm after 60 steps of training.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.models.classifiers import convnet
from dada_det.search import alignment
from dada_det.search.alignment import Weights

ZETA = 0.01


def images_of(seed: int) -> tuple[Tensor, Tensor]:
    """32 smooth images [32,3,24,24] of four classes that differ in colour, with noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(32) % 4
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[labels]
    noise = F.interpolate(torch.randn(32, 3, 6, 6, generator=generator), 24, mode="bilinear")
    return noise + 0.7 * colours[:, :, None, None], labels


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = convnet(4).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    for step in range(60):
        images, labels = images_of(step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def truth(network: nn.Module) -> Tensor:
    """The rewards of every image [32] in float64, by forward mode."""
    exact = copy.deepcopy(network).double()
    (images, labels), weights = images_of(1000), alignment.weights_of(exact)
    v = direction(exact, None, torch.float64)
    return alignment.rewards_forward_mode(exact, weights, v, images.double(), labels)


def direction(network: nn.Module, low: torch.dtype | None, dtype: torch.dtype = torch.float32) -> Weights:
    """v: the validation gradient after the virtual step, both gradients in `low`."""
    (images, labels), (val_images, val_labels) = images_of(1000), images_of(1001)
    weights = alignment.weights_of(network)
    gradient = alignment.gradient_at(network, weights, images.to(dtype), labels, low)
    return alignment.gradient_at(network, alignment.step(weights, gradient, -ZETA), val_images.to(dtype), val_labels, low)


def error(rewards: Tensor, truth: Tensor) -> float:
    """The relative error of the rewards' differences from their mean, which is what a policy learns from."""
    centred, wanted = rewards.double() - rewards.double().mean(), truth - truth.mean()
    return ((centred - wanted).norm() / wanted.norm()).item()


def test_gradients_in_bfloat16_and_rewards_in_float32(network: nn.Module, truth: Tensor) -> None:
    images, labels = images_of(1000)
    weights, v = alignment.weights_of(network), direction(network, torch.bfloat16)
    losses_low = alignment.losses_at(network, weights, images, labels, torch.bfloat16)
    errors = {
        "float32": error(alignment.rewards(network, weights, direction(network, None), images, labels), truth),
        "ours": error(alignment.rewards(network, weights, v, images, labels), truth),
        "ends in bfloat16": error(bfloat16_rewards(network, weights, v, images, labels), truth),
        "one end in bfloat16": error(alignment.rewards(network, weights, v, images, labels, losses_B=losses_low), truth)}
    print(errors)
    assert errors["float32"] < 0.03 and errors["ours"] < 0.06
    assert min(errors["ends in bfloat16"], errors["one end in bfloat16"]) > 2 * errors["ours"]


def bfloat16_rewards(network: nn.Module, weights: Weights, v: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """The central difference of two bfloat16 passes."""
    epsilon = alignment.RELATIVE_STEP / alignment.norm(v)
    ends = [alignment.losses_at(network, alignment.step(weights, v, sign * epsilon), images, labels, torch.bfloat16)
            for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * epsilon)


def test_bfloat16_reaches_the_gradients_and_leaves_the_weights_dtype(network: nn.Module) -> None:
    images, labels = images_of(1000)
    network = copy.deepcopy(network)
    full, losses = alignment.training_gradient(network, images, labels)
    low, losses_low = alignment.training_gradient(network, images, labels, torch.bfloat16)
    assert {tensor.dtype for tensor in [*low.values(), losses_low]} == {torch.float32}
    assert not torch.equal(losses, losses_low)
    flat = [torch.cat([tensor.flatten() for tensor in gradient.values()]) for gradient in (full, low)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99
