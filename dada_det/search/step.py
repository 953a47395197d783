"""What every algorithm of the search shares: the batch, the parts of a step, and what an algorithm must say of itself.

B images of a training batch, D draws of each, V validation images, C channels, H height, W width. Targets are a
classifier's labels, long [B], or a detector's (dada_det.search.alignment.Targets).
Upper problem: minimise L_val(w'), w' = w - zeta grad_w L_train(w, policy). Where its gradient is taken, at w or after the
step to w', is each algorithm's choice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NotRequired, Protocol, Self, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from dada_det.augment.transform import Draws, apply_draws
from dada_det.search import alignment
from dada_det.search.alignment import Targets, Weights
from dada_det.search.curvature import RunningDirection
from dada_det.search.ranks import mean_weights

# Targets come out as the kind that goes in.
Apply = Callable[[Tensor, Targets, Draws, str], tuple[Tensor, Targets]]
Provenance = dict[str, str | int]
ResultFiles = dict[str, dict[str, object]]  # name of a file in the work folder -> its JSON object


class ParameterGroup(TypedDict):
    """A parameter group of Adam. It may have its own rate: `lr`, or `lr_mult` times the config's."""

    params: Iterable[Tensor]
    lr: NotRequired[float]
    lr_mult: NotRequired[float]


class NoiseRows(Protocol):
    """Everything that draws take from chance, a row a draw."""

    def __getitem__(self, rows: slice | Tensor, /) -> Self: ...

    def to(self, like: Tensor) -> Self:
        """The same noise on the device and in the dtype of `like`."""
        ...


N = TypeVar("N", bound=NoiseRows)


@dataclass(frozen=True)
class Batch(Generic[N]):
    """What one step works on: uint8 images, their targets, and the noise of its draws.

    Args:
        noise: D * B rows, draw by draw, what `Algorithm.draw_noise` made.
        common_noise: one row, the same on all processes.
        network_seed: what a network with dropout draws from; every pass of the step uses the same seed, so that a finite
            difference sees one network, not two.
        number: the step's, from 0 over all epochs.
        validates: whether the step has a validation pass.
    """

    images_BCHW: Tensor
    targets_B: Targets
    val_images_VCHW: Tensor
    val_targets_V: Targets
    noise: N
    common_noise: N
    network_seed: int = 0
    number: int = 0
    validates: bool = True


class StepSettings(Protocol):
    """The settings that all algorithms have; shared code reads only these."""

    @property
    def ranges(self) -> str: ...  # the table of the magnitudes' ranges: "strength" | "autoaugment"

    @property
    def draws_per_image(self) -> int: ...  # policies that each training image draws in a step: D

    @property
    def val_batches(self) -> int: ...  # V over B

    @property
    def val_every(self) -> int: ...  # steps from one validation pass to the next; above 1 it needs running_v

    @property
    def warmup_epochs(self) -> int: ...  # epochs that train the weights alone

    @property
    def running_v(self) -> bool: ...  # v is the running mean over steps of its direction, divided by the curvature


def apply_to_images(images_BCHW: Tensor, targets_B: Targets, draws: Draws, ranges: str) -> tuple[Tensor, Targets]:
    """The policies applied to the images alone: an operation leaves a label as it is."""
    return apply_draws(images_BCHW, draws, ranges), targets_B


@dataclass(frozen=True)
class Step:
    """The parts that a step works with; the updates are called in the order that the algorithm prescribes."""

    network: nn.Module  # a classifier, or an alignment.LossNetwork
    settings: StepSettings
    normalise: Callable[[Tensor], Tensor]  # uint8 images -> what the network takes
    update_weights: Callable[[Weights], None]  # takes the gradient of L_train
    update: Callable[[str], None]  # a step of the optimiser of that name; the gradients are in the parameters' .grad
    apply: Apply = apply_to_images  # (uint8 images, targets, draws, ranges) -> (uint8 images, targets)
    low: torch.dtype | None = None  # torch.bfloat16: of the training and validation gradient, never of rewards
    running: RunningDirection | None = None  # where settings.running_v


class Algorithm(nn.Module, Generic[N]):
    """What a search learns and how: everything in which DADA, DDAS and DAAS differ. Each is one of these, in its own file.

    Its parameters and buffers are part of the search's checkpoints; it does not own the network. An algorithm sets

    Args:
        settings: its own, StepSettings among them.
        provenance: the first entries of the provenance of what it writes, {"method": .., ..}.
        identity: plain values by name; a resumed search must have the same.
    """

    settings: StepSettings
    provenance: Provenance
    identity: dict[str, object]

    def groups(self) -> dict[str, list[ParameterGroup]]:
        """Adam's parameter groups by the optimiser's name; `<name>_optimizer` in the config has Adam's options."""
        raise NotImplementedError

    def draw_noise(self, n: int, generator: torch.Generator) -> N:
        """The noise of n = D * B draws, draw by draw, on the CPU. All processes draw the same and keep their rows."""
        raise NotImplementedError

    def step(self, parts: Step, batch: Batch[N], zeta: float, epoch: int) -> dict[str, Tensor]:
        """One step: it updates the weights once, and what is learned if it is its turn.

        Returns the scalars that are logged, "loss" among them.

        Args:
            zeta: the weights' learning rate.
        """
        raise NotImplementedError

    def after_epoch(self, epoch: int) -> None:
        """Called on every process after epoch `epoch` (from 0), before its results and its checkpoint are written."""

    def results(self, provenance: Provenance, optimizers: dict[str, torch.optim.Optimizer]) -> ResultFiles:
        """What has been found so far, as JSON values by the name of the file in the work folder."""
        raise NotImplementedError

    def closing(self, work_dir: str) -> str:
        """The end of the command's last line: what was written where, and what is used most."""
        raise NotImplementedError


def augment(parts: Step, images_BCHW: Tensor, targets_B: Targets, draws: Draws) -> tuple[Tensor, Targets]:
    """(images as the network takes them, their targets) after the drawn policies; images_BCHW are uint8."""
    images_BCHW, targets_B = parts.apply(images_BCHW, targets_B, draws, parts.settings.ranges)
    return parts.normalise(images_BCHW), targets_B


def validation_gradient(parts: Step, weights: Weights, batch: Batch) -> Weights:
    """v: the gradient of L_val at `weights`, or with settings.running_v the running mean over steps of its direction.

    A running mean takes its passes from the batches that validate, one with BatchNorm's statistics of the validation batch,
    the next with its running ones: the former normalise away a shift that all validation images share, the latter see
    little else. Leaves the network in train mode. The result is the mean itself: not to be changed.
    """
    network, running, by_running_statistics = parts.network, parts.running, False
    if running is not None:
        if not batch.validates:
            return running.v.means
        by_running_statistics = batch.number // parts.settings.val_every % 2 == 1
    network.train(not by_running_statistics)
    v = mean_weights(alignment.gradient_at(network, weights, parts.normalise(batch.val_images_VCHW), batch.val_targets_V,
                                           parts.low))
    network.train()
    if running is None:
        return v
    running.v.add(v, 1 / alignment.norm(v).clamp_min(1e-12))
    return running.v.means
