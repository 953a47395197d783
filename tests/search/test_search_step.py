"""Networks that give their own losses, frozen and idle weights, and targets that move with the images: the shared core.

B images, P points (y, x) of an image, in pixels.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.augment import Draws, apply_draws
from dada_det.augment.space import AtomSpace, SearchSpace
from dada_det.search import alignment
from dada_det.search.alignment import LossNetwork
from dada_det.search.curvature import RunningDirection, RunningMean
from dada_det.search.dada import Dada
from dada_det.search.ddas import Ddas, ddas_settings
from dada_det.search.settings import dada_settings
from dada_det.search.step import Algorithm, Batch, Step

B, SIZE, CLASSES = 6, 10, 3


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, CLASSES)).double()


class OwnLosses(LossNetwork):
    """The classifier's cross-entropies as losses of its own, beside weights that are frozen or used in no pass."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = classifier()
        self.frozen = nn.Linear(2, 2).double().requires_grad_(False)
        self.idle = nn.Linear(2, 2).double()

    def forward(self, images_BCHW: Tensor, targets_B: Any) -> Tensor:
        return F.cross_entropy(self.classifier(images_BCHW), targets_B, reduction="none")


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(B, 3, SIZE, SIZE, generator=generator, dtype=torch.float64),
            torch.randint(0, CLASSES, (B,), generator=generator))


def test_a_network_s_own_losses_give_what_cross_entropies_give() -> None:
    plain, own = classifier(), OwnLosses()
    gradient, losses = alignment.training_gradient(own, *batch(0))
    wanted, wanted_losses = alignment.training_gradient(plain, *batch(0))
    assert torch.equal(losses, wanted_losses)
    assert {name for name in gradient if not name.startswith("classifier")} == {"idle.weight", "idle.bias"}
    for name, tensor in wanted.items():
        assert torch.equal(gradient[f"classifier.{name}"], tensor)
    assert not gradient["idle.weight"].any() and gradient["idle.weight"].shape == (2, 2)
    weights, own_weights = alignment.weights_of(plain), alignment.weights_of(own)
    assert own_weights.keys() == gradient.keys() == RunningMean(own, 0.9).means.keys()
    v, own_v = (alignment.gradient_at(network, w, *batch(1)) for network, w in ((plain, weights), (own, own_weights)))
    for compute in (lambda *place: alignment.rewards(*place, *batch(2)),
                    lambda *place: alignment.rewards_forward_mode(*place, *batch(2)),
                    lambda net, w, v: alignment.losses_and_pixel_sums(net, w, *batch(2))[1]):
        torch.testing.assert_close(compute(own, own_weights, own_v), compute(plain, weights, v))


def test_the_inner_product_with_v_is_the_mean_reward() -> None:
    network = classifier()
    weights, v = alignment.weights_of(network), alignment.gradient_at(network, alignment.weights_of(network), *batch(1))
    gradient, _ = alignment.training_gradient(network, *batch(0))
    torch.testing.assert_close(alignment.inner(gradient, v), alignment.rewards_forward_mode(network, weights, v,
                                                                                            *batch(0)).mean())


class Points:
    """The brightest point of each image, as a detector's targets: a list that has rows and can be repeated."""

    def __init__(self, points: list[Tensor]) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: slice | Tensor) -> "Points":
        return Points(self.points[rows] if isinstance(rows, slice) else [self.points[row] for row in rows.tolist()])

    def repeat(self, n: int) -> "Points":
        return Points(self.points * n)

    def __add__(self, other: "Points") -> "Points":
        return Points(self.points + other.points)

    @classmethod
    def of(cls, images_BCHW: Tensor) -> "Points":
        brightest = images_BCHW.sum(1).flatten(1).argmax(1)
        return cls([torch.stack([place // SIZE, place % SIZE]) for place in brightest])


class PointLoss(LossNetwork):
    """The squared distance of a predicted point from the image's own; checks that every image comes with its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * SIZE * SIZE, 2).double()
        self.seen = 0

    def forward(self, images_BCHW: Tensor, targets_B: Any) -> Tensor:
        where = Points.of(images_BCHW.detach())
        for point, own in zip(where.points, targets_B.points, strict=True):
            assert torch.equal(point, own)
        self.seen += len(targets_B)
        return (self.layer(images_BCHW.flatten(1)) - torch.stack(targets_B.points)).square().sum(1) / 100


def move(images_BCHW: Tensor, targets_B: Any, draws: Draws, ranges: str) -> tuple[Tensor, Any]:
    """Points follow their images; the room that plays the detector's part."""
    images_BCHW = apply_draws(images_BCHW, draws, ranges)
    assert len(targets_B) == len(images_BCHW)
    return images_BCHW, Points.of(images_BCHW)


ALGORITHMS = {"default": lambda: Dada(SearchSpace(("TranslateX", "TranslateY")), dada_settings(draws_per_image=2)),
              "paper": lambda: Dada(SearchSpace(("TranslateX", "Invert")), dada_settings("paper")),
              "ddas": lambda: Ddas(AtomSpace.of_levels(("TranslateX", "Invert"), (7, 14)), ddas_settings(), epochs=1)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_targets_move_with_their_images_through_every_algorithm(name: str) -> None:
    """One step each on images with one bright point: no pass sees an image with another's or an unmoved target."""
    algorithm: Algorithm = ALGORITHMS[name]().double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (2, B, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    for half in images:
        for index, image in enumerate(half):
            image[:, 3 + index % 4, 4 + index % 3] = 200
    targets = [Points.of(half) for half in images]
    noise = algorithm.draw_noise(algorithm.settings.draws_per_image * B, generator).to(torch.zeros((), dtype=torch.float64))
    network, updated = PointLoss(), []
    settings = algorithm.settings
    parts = Step(network, settings, lambda pixels: pixels.double() / 255, lambda gradient: updated.append(gradient),
                 lambda optimizer: updated.append(optimizer), move,
                 running=RunningDirection(network).double() if settings.running_v else None)
    log = algorithm.step(parts, Batch(images[0], targets[0], images[1], targets[1], noise, noise[:1]), 0.1, epoch=1)
    assert log["loss"].isfinite() and network.seen >= 4 * B
    assert sorted(map(str, map(type, updated))) == ["<class 'dict'>", "<class 'str'>"]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in algorithm.parameters())
