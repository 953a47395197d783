"""What every algorithm of the search shares: the batch, the parts of a step, and what an algorithm must say of itself.

B images of a training batch, D draws of each, V validation images, C channels, H height, W width. Targets are a
classifier's labels, long [B], or a detector's: whatever has a length, rows by a slice or an index tensor, and .repeat(n).
Upper problem: minimise L_val(w'), w' = w - zeta grad_w L_train(w, policy), one virtual step ahead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dada_det.augment.transform import Draws, apply_draws
from dada_det.search import alignment
from dada_det.search.alignment import Weights
from dada_det.search.curvature import RunningMean
from dada_det.search.ranks import mean_weights

VAL_STATISTICS = ("batch", "running", "both")
Apply = Callable[[Tensor, Any, Draws, str], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Batch:
    """What one step works on: uint8 images, their targets, and the noise of its draws.

    noise has D * B rows, draw by draw, what `Algorithm.draw_noise` made; shared_noise is the first of all processes' rows,
    the same on each. network_seed is what a network with dropout draws from: every pass of the step from the same, so that
    a finite difference sees one network, not two. number is the step's, from 0 over all epochs; validates: whether it has a
    validation pass.
    """

    images_BCHW: Tensor
    targets_B: Any
    val_images_VCHW: Tensor
    val_targets_V: Any
    noise: Any
    shared_noise: Any
    network_seed: int = 0
    number: int = 0
    validates: bool = True


class StepSettings(Protocol):
    """The settings that an algorithm has in common with the others; the rooms that they share read these alone."""

    @property
    def ranges(self) -> str: ...  # of the magnitudes: "strength" | "autoaugment"

    @property
    def draws(self) -> int: ...  # policies drawn for each training image in a step: D

    @property
    def val_batches(self) -> int: ...  # V over B

    @property
    def val_every(self) -> int: ...  # steps from one validation pass to the next; above 1 it needs a v_decay

    @property
    def warmup_epochs(self) -> int: ...  # epochs that train the weights alone

    @property
    def val_statistics(self) -> str: ...  # one of VAL_STATISTICS; "both" needs a v_decay

    @property
    def v_decay(self) -> float | None: ...  # of the running mean of v's direction; None: this step's v as it is

    @property
    def preconditioned(self) -> bool: ...  # whether v is divided by the weights' curvature


def apply_to_images(images_BCHW: Tensor, targets_B: Any, draws: Draws, ranges: str) -> tuple[Tensor, Any]:
    """The policies on the images alone: an operation leaves a label as it is."""
    return apply_draws(images_BCHW, draws, ranges), targets_B


@dataclass(frozen=True)
class Step:
    """The parts that a step works with; the updates are called in the order that the algorithm prescribes."""

    network: nn.Module  # a classifier, or an alignment.LossNetwork
    settings: StepSettings
    normalise: Callable[[Tensor], Tensor]  # uint8 images -> what the network takes
    update_weights: Callable[[Weights], None]  # takes the gradient of L_train
    update: Callable[[str], None]  # a step of the optimiser of that name; the gradients stand in the parameters' .grad
    apply: Apply = apply_to_images  # (uint8 images, targets, draws, ranges) -> (uint8 images, targets), draw by draw
    low: torch.dtype | None = None  # torch.bfloat16: of the training and validation gradient; rewards stay in float32
    squares: RunningMean | None = None  # of L_train's gradient, where settings.preconditioned
    v_mean: RunningMean | None = None  # of the validation gradient's direction, where settings.v_decay is a number


class Algorithm(nn.Module):
    """What a search learns and how: all in which DADA, DDAS and DAAS differ. Each is one of these, in a file of its own.

    Its parameters and buffers are part of the search's checkpoints; it does not own the network. What it has to say:

    settings: its own, StepSettings among them; provenance: {"method": .., ..}, the head of that in what it writes;
    identity: what a search that --resume goes on with must share, plain values by name.
    """

    settings: Any
    provenance: dict[str, Any]
    identity: dict[str, Any]

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Adam's parameter groups by the optimiser's name; `<name>_optimizer` in the config has Adam's options. A group
        may have a rate of its own, "lr", or "lr_mult" times the config's."""
        raise NotImplementedError

    def draw_noise(self, n: int, generator: torch.Generator) -> Any:
        """What n = D * B draws (draw by draw) take from chance, on the CPU: it has rows by a slice or an index tensor, and
        .to(like). All processes draw the same and keep their rows."""
        raise NotImplementedError

    def step(self, parts: Step, batch: Batch, zeta: float, epoch: int) -> dict[str, Tensor]:
        """One step, which updates the weights once and what is learned if it is its turn; returns what is logged, "loss"
        (a scalar) among it. zeta: the weights' learning rate."""
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """Called on every process after step `step` (from 0) of `steps`."""

    def after_epoch(self, epoch: int) -> None:
        """Called on every process after epoch `epoch` (from 0), before its results are written and its checkpoint is."""

    def results(self, provenance: dict[str, Any], optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """What has been found so far, as plain JSON values by the name of the file in the work folder."""
        raise NotImplementedError

    def closing(self, work_dir: str) -> str:
        """The end of the command's last line: what was written where, and what is most used."""
        raise NotImplementedError


def augment(parts: Step, images_BCHW: Tensor, targets_B: Any, draws: Draws) -> tuple[Tensor, Any]:
    """The drawn policies applied to uint8 images and their targets; the images as the network takes them."""
    images_BCHW, targets_B = parts.apply(images_BCHW, targets_B, draws, parts.settings.ranges)
    return parts.normalise(images_BCHW), targets_B


def validation_gradient(parts: Step, weights: Weights, batch: Batch) -> Weights:
    """grad L_val at `weights`, or the running mean over steps of its direction; leaves the network in train mode.

    BatchNorm by the statistics of the validation batch normalises a shift away that all its images share; by the running
    ones it sees little else. "both": the passes take turns.
    """
    statistics = parts.settings.val_statistics
    if statistics == "both":
        statistics = ("batch", "running")[batch.number // parts.settings.val_every % 2]
    parts.network.train(statistics == "batch")
    v = mean_weights(alignment.gradient_at(parts.network, weights, parts.normalise(batch.val_images_VCHW),
                                           batch.val_targets_V, parts.low))
    parts.network.train()
    if parts.v_mean is None:
        return v
    parts.v_mean.add(v, 1 / alignment.norm(v).clamp_min(1e-12))
    return parts.v_mean.means
