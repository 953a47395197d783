"""DDAS's search (ICCV 2021, arXiv 2104.04282): two levels over atoms, an expected loss, and its exact one-step gradient.

B images of a training batch, V of a validation batch, K copies of a batch under a policy each, A atoms, E epochs.
An image is augmented with probability sigma(t), by a policy: an ordered pair (i, j) of atoms with probability pi_i pi_j,
pi = softmax(alpha). A step draws K policies uniformly. D_k is the batch under policy k, D_0 the unaugmented batch, and

    L_T = (1 - sum_k q_k) L(D_0) + sum_k q_k L(D_k),   q_k = sigma(t) pi_i pi_j / Z,   Z = sum_k pi_i pi_j held fixed.

The weights q enter linearly, so one virtual step w' = w - zeta grad L_T has a gradient without second derivatives:

    d L_val(w') / d theta = -zeta sum_k d_k d q_k / d theta,   d_k = g_k - g_0,   g_k = <grad L(D_k; w), grad L_val(w')>.

g_k is the mean over copy k of the rewards of dada_det.search.alignment, and d_k subtracts the unaugmented batch's as a
baseline. L_T needs the gradient of every copy anyway, so g_k is its inner product with v: exact, without another pass (a
central difference would take two forward passes a copy). The paper's atoms also hold Blur, Smooth and two flips, which our
fifteen operations lack (Sharpness at its low end is Smooth, and the crop mirrors). Its level 0 is the unaugmented image,
one atom here.
"""

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from dada_det.augment.schedule import Schedule, Stage
from dada_det.augment.space import LAST_LEVEL, AtomSpace
from dada_det.devices import move_all
from dada_det.errors import UserError
from dada_det.search import alignment
from dada_det.search.curvature import precondition
from dada_det.search.ranks import mean_over_ranks, mean_weights
from dada_det.search.results import most_used
from dada_det.search.step import (
    Algorithm,
    Batch,
    ParameterGroup,
    Provenance,
    ResultFiles,
    Step,
    augment,
    validation_gradient,
)


@dataclass(frozen=True)
class DdasSettings:
    """The settings of a search by DDAS; a config's `search` changes single entries. The defaults are the paper's on CIFAR.

    Args:
        levels: of the operations that have a magnitude (the paper has level 0 too).
        draws_per_image: K.
        probability: sigma(t) at the start.
        probability_lr: Adam's rate for t; policy_optimizer.lr is alpha's.
        val_batches: V over B, 256 images for 32.
        running_v: DADA's validation direction (`validation_gradient`) in the place of this step's gradient.
    """

    levels: tuple[int, ...] = (2, 10, 14)
    draws_per_image: int = 3
    probability: float = 0.35
    probability_lr: float = 1e-3
    val_batches: int = 8
    running_v: bool = False
    ranges = "strength"  # no entry: level 0 is the image as it is
    val_every = 1  # no entry
    warmup_epochs = 0  # no entry

    def __post_init__(self) -> None:
        """UserError for a value that does not exist."""
        levels = tuple(self.levels) if isinstance(self.levels, tuple | list) else ()
        start, rate = self.probability, self.probability_lr
        fine: dict[str, dict[str, bool]] = {
            f"different whole numbers from 1 to {LAST_LEVEL}": {"levels": 0 < len(levels) == len(set(levels)) and all(
                isinstance(level, int) and 1 <= level <= LAST_LEVEL for level in levels)},
            "a whole number of at least 1": {entry: isinstance(number, int) and number >= 1 for entry, number in
                                             (("draws_per_image", self.draws_per_image),
                                              ("val_batches", self.val_batches))},
            "a number between 0 and 1": {"probability": isinstance(start, float) and 0 < start < 1},
            "a number of at least 0": {"probability_lr": isinstance(rate, int | float) and rate >= 0},
            "True or False": {"running_v": isinstance(self.running_v, bool)}}
        for wanted, entries in fine.items():
            for entry in (entry for entry, good in entries.items() if not good):
                raise UserError(f"search.{entry} is {getattr(self, entry)!r}; give {wanted}")
        object.__setattr__(self, "levels", levels)


def ddas_settings(**changes: object) -> DdasSettings:
    """The paper's settings with single entries changed.

    Raises:
        UserError: an entry is unknown or its value impossible.
    """
    known = [field.name for field in fields(DdasSettings)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} in the method ddas; entries: {', '.join(known)}")
    return DdasSettings(**changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PairNoise:
    """The noise of K * B draws, copy by copy: the pair of atoms, the same for a whole copy, and each image's own chance."""

    pairs_B2: Tensor
    signs_B2: Tensor
    centers_B22: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "PairNoise":
        return PairNoise(self.pairs_B2[rows], self.signs_B2[rows], self.centers_B22[rows])

    def to(self, like: Tensor) -> "PairNoise":
        signs_B2, centers_B22 = self.signs_B2.to(like.dtype), self.centers_B22.to(like.dtype)
        return PairNoise(*move_all([self.pairs_B2, signs_B2, centers_B22], like.device))


class Ddas(Algorithm[PairNoise]):
    """alpha and t, and what they were after each epoch so far."""

    def __init__(self, space: AtomSpace, settings: DdasSettings, epochs: int) -> None:
        super().__init__()
        self.space = space
        self.settings: DdasSettings = settings
        self.alpha_A = nn.Parameter(torch.zeros(len(space)))
        self.t = nn.Parameter(torch.tensor(settings.probability).logit())
        self.past_EA: Tensor  # sigma(t) and pi at the end of each epoch
        self.register_buffer("past_EA", torch.zeros(epochs, 1 + len(space)))
        self.provenance = {"method": "ddas"}
        self.identity = {"method": "ddas", "search": asdict(settings),
                         "operations": list(dict.fromkeys(atom.name for atom in space.atoms if atom.name is not None))}

    def groups(self) -> dict[str, list[ParameterGroup]]:
        return {"policy": [{"params": [self.alpha_A]}, {"params": [self.t], "lr": self.settings.probability_lr}]}

    def draw_noise(self, n: int, generator: torch.Generator) -> PairNoise:
        copies = self.settings.draws_per_image
        pairs_K2 = torch.randint(len(self.space), (copies, 2), generator=generator)
        signs_B2 = torch.randint(2, (n, 2), generator=generator) * 2.0 - 1
        return PairNoise(pairs_K2.repeat_interleave(n // copies, 0), signs_B2, torch.rand(n, 2, 2, generator=generator))

    def copy_weights(self, pairs_K2: Tensor) -> Tensor:
        """Returns q_k, the weights of the copies in L_T, [K].

        Args:
            pairs_K2: the atoms of each policy.
        """
        p_K = self.alpha_A.softmax(0)[pairs_K2].prod(1)
        return self.t.sigmoid() * p_K / p_K.sum().detach()

    def step(self, parts: Step, batch: Batch[PairNoise], zeta: float, epoch: int) -> dict[str, Tensor]:
        network, copies, n = parts.network, self.settings.draws_per_image, len(batch.images_BCHW)
        noise = batch.noise
        draws = self.space.draws(noise.pairs_B2, noise.signs_B2, noise.centers_B22)
        images, targets = augment(parts, batch.images_BCHW.repeat(copies, 1, 1, 1), batch.targets_B.repeat(copies), draws)
        copy = [slice(k * n, (k + 1) * n) for k in range(copies)]
        passes = [(parts.normalise(batch.images_BCHW), batch.targets_B), *((images[rows], targets[rows]) for rows in copy)]
        gradients, losses = [], []
        for one in passes:
            gradient, losses_B = alignment.training_gradient(network, *one, parts.low)
            gradients.append(mean_weights(gradient))
            losses.append(losses_B.mean())
        q_K = self.copy_weights(noise.pairs_B2[::n])
        q_0K = torch.cat([1 - q_K.sum(0, keepdim=True), q_K]).detach()
        expected = {name: torch.stack([gradient[name] for gradient in gradients], -1) @ q_0K.to(tensor)
                    for name, tensor in gradients[0].items()}
        weights = alignment.weights_of(network)
        v = validation_gradient(parts, alignment.step(weights, expected, -zeta), batch)
        if parts.running is not None:
            parts.running.squares.add(expected, expected)
            v = precondition(v, parts.running.squares.means, expected)
        g_0K = torch.stack([alignment.inner(gradient, v) for gradient in gradients])
        norm = self.learn(g_0K[1:] - g_0K[0], q_K)
        parts.update("policy")
        parts.update_weights(expected)
        return {"loss": mean_over_ranks([torch.stack(losses) @ q_0K.to(losses[0])])[0], "advantage": norm}

    def learn(self, advantages_K: Tensor, q_K: Tensor) -> Tensor:
        """Puts the gradient of -sum_k d_k q_k / ||d||_1 into .grad, and returns ||d||_1."""
        norm = advantages_K.abs().sum().clamp_min(1e-30)
        self.zero_grad()
        torch.autograd.backward(-(advantages_K / norm) @ q_K)
        return norm

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        self.past_EA[epoch] = torch.cat([self.t.sigmoid()[None], self.alpha_A.softmax(0)])

    def schedule(self, provenance: Provenance) -> Schedule:
        """Returns the epochs so far as a schedule that spans a whole training."""
        rows = [row for row in self.past_EA.double().tolist() if row[0] > 0]  # an epoch to come has no probability yet
        return Schedule(self.space.ranges, self.space.atoms, tuple(
            Stage((epoch + 1) / len(rows), row[0], tuple(row[1:])) for epoch, row in enumerate(rows)), dict(provenance))

    def use(self) -> dict[str, float]:
        """How many times each operation acts on an image after the last epoch, on average; most used first."""
        use: dict[str, float] = dict.fromkeys((atom.name for atom in self.space.atoms if atom.name is not None), 0.0)
        now = self.schedule({}).stages[-1]
        for atom, preference in zip(self.space.atoms, now.preferences, strict=True):
            if atom.name is not None:
                use[atom.name] += 2 * now.probability * preference
        return dict(sorted(use.items(), key=lambda item: -item[1]))

    def results(self, provenance: Provenance, optimizers: dict[str, torch.optim.Optimizer]) -> ResultFiles:
        """policy.json, which is the schedule's average, and schedule.json."""
        schedule = self.schedule(provenance)
        return {"policy.json": schedule.average().to_dict(), "schedule.json": schedule.to_dict()}

    def closing(self, work_dir: str) -> str:
        return (f"{len(self.schedule({}).stages)} epochs' probabilities of {len(self.space)} atoms in "
                f"{work_dir}/schedule.json, their average in policy.json beside it; probability of augmentation "
                f"{self.t.sigmoid().item():.2f}, {most_used(self.use())}")
