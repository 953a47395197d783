"""How far a search moved its numbers from their start, and how far noise alone would have moved them.

Adam divides a gradient by its size, so without any signal a parameter walks at random, about lr * sqrt(steps) far.
N sub-policies, 2 their slots, O = 15 operations, R repeats of a walk.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dada_det.augment.operations import INDEX, OPERATION_NAMES, OPERATIONS
from dada_det.augment.policy import Policy
from dada_det.errors import UserError
from dada_det.files import read_json
from dada_det.search.distribution import SHARED
from dada_det.untrusted import MOST_BYTES

REPEATS = 16
LONGEST_WALK = 2000  # steps that are simulated; longer walks grow with the square root from there
# A shift is more than noise from here on: noise rewards whose mean is as large as their spread, as rewards against a
# baseline may have, moved the default's probabilities up to 1.6 times as far as noise of mean 0 does (batch 48, 75 steps,
# nothing shared; 1.4 times at the default's rates).
CLEAR = 1.6
GROUPS = ("preferences", "probabilities", "magnitudes")


@dataclass(frozen=True)
class Optimizer:
    """The policy's Adam, as search.json tells: its steps so far, and of how many last ones the saved numbers are the mean.

    shared: what all that hold an operation have in common (PolicyDistribution). "preferences": a preference is a_s +
        u_(op 1) + u_(op 2), three parameters, of which u is shared; "all": a probability and a magnitude are b_(s, k) +
        w_(op k), of which w is shared and learned at the rate shared_lr; "none".
    preferences_lr: of a; lr: of u, of b and of all that has no other.
    """

    steps: int
    lr: float
    betas: tuple[float, float]
    averaged: int
    shared: str
    preferences_lr: float
    shared_lr: float = 0.0


@dataclass(frozen=True)
class Search:
    """search.json: all candidates as one Policy (weight: the preference), and how they were learned.

    Args:
        logits: whether probabilities and magnitudes were learned as logits (start 0), or as numbers (start 0.5).
        share: the saved probabilities over the learned ones, in older files; 1 since.
        optimizer: None in files that do not tell.
    """

    candidates: Policy
    logits: bool
    spread: float | None
    optimizer: Optimizer | None
    share: float = 1.0


def load_search(path: str | Path) -> Search:
    """Reads a search.json.

    Raises:
        UserError: the sentence names the file and the entry that is wrong.
    """
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"cannot read the search result {path}: {error.strerror or error}") from error
    if size > MOST_BYTES:
        raise UserError(f"the search result {path} is larger than 1 MB; give the one that a search wrote, or move it away")
    data = read_json(path, "search result")
    try:
        candidates = Policy.from_dict(
            {"schema": data["schema"], "ranges": data["ranges"], "provenance": data["provenance"], "sub_policies": [
                {"weight": entry["preference"], "operations": entry["operations"]} for entry in data["sub_policies"]]},
            str(path))
        optimizer = _optimizer(data["optimizer"]) if "optimizer" in data else None
        share = float(data.get("share", 1))  # some older files halve what was learned
        if not 0 < share <= 1:
            raise ValueError("share is out of range")
        return Search(candidates, candidates.provenance.get("mode") != "paper", data.get("spread"), optimizer, share)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no search result ({type(error).__name__}: {str(error)[:80]}); give the one that a "
                        "search wrote, or move it away") from error


def _optimizer(entry: dict[str, Any]) -> Optimizer:
    first, second = (float(beta) for beta in entry["betas"])
    shared = {True: "preferences", False: "none"}.get(entry["shared"], entry["shared"])  # older files have a flag
    optimizer = Optimizer(int(entry["steps"]), float(entry["lr"]), (first, second), int(entry["averaged"]), shared,
                          float(entry.get("preferences_lr", entry["lr"])), float(entry.get("shared_lr", 0)))
    if not (0 <= optimizer.averaged <= optimizer.steps < 10**9 and 0 < optimizer.lr < 1e6 and 0 <= first < 1
            and 0 <= second < 1 and shared in SHARED
            and 0 < optimizer.preferences_lr < 1e6 and 0 <= optimizer.shared_lr < 1e6):
        raise ValueError("optimizer is out of range")
    return optimizer


def noise_walk(holds_N2O: Tensor, optimizer: Optimizer, one_draw: bool, seed: int = 0) -> dict[str, float]:
    """How far (standard deviation) each of GROUPS moves without any signal, in the parameters' own units.

    R simulated searches with the search's own Adam.

    Measured, over lr * sqrt(steps): one parameter 1.00 +- 0.01 at the rate lr; a log preference 1.0 where nothing is shared,
    2.0 with u, 1.5 at the default's rates; a probability and a magnitude 4.2 to 4.9 at the default's rates. Rewards of pure
    noise through the search's own estimator (default, 105 sub-policies, 15 to 200 steps, batch 48 and 128, three seeds each)
    moved 0.73 to 1.17 of what the simulation says. In paper mode, rewards without a baseline whose mean is 0 to 3 times
    their spread moved preferences 0.25 to 4.4 times lr * sqrt(steps).

    Args:
        holds_N2O: 1.0 where a slot holds an operation.
        optimizer: of at least one step.
        one_draw: False (default mode): every gradient is unit Gaussian noise, except that a softmax's gradients sum to zero
            over the sub-policies, and that a shared part gets the sum over those that hold its operation. True (paper mode):
            a step draws one sub-policy and scores it with a reward that is the same for all; without a baseline the draw
            alone moves preferences.
    """
    generator = torch.Generator().manual_seed(seed)
    n, _, o = holds_N2O.shape
    holds_NO, holds_SO = holds_N2O.sum(1), holds_N2O.flatten(0, 1)  # S = 2 N slots
    steps = min(optimizer.steps, LONGEST_WALK)
    last = max(1, round(steps * optimizer.averaged / optimizer.steps))
    first, second = optimizer.betas
    place, mean, square, total = (torch.zeros(REPEATS, 5 * n + 3 * o) for _ in range(4))
    for step in range(1, steps + 1):
        noise = torch.randn(REPEATS, 5 * n, generator=generator)
        own, flags, magnitudes = noise.split((n, 2 * n, 2 * n), 1)
        if one_draw:
            own = torch.zeros(REPEATS, n).scatter_(1, own.argmax(1, keepdim=True), 1.0)
            drawn = own.repeat_interleave(2, 1)
            # b - 1/2 of a flag; a magnitude learns where its flag is on
            flags, magnitudes = drawn * flags.sign(), drawn * (flags > 0) * magnitudes
        own = own - own.mean(1, keepdim=True)
        gradient = torch.cat([own, own @ holds_NO, flags, magnitudes, flags @ holds_SO, magnitudes @ holds_SO], 1)
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        place -= mean / (1 - first**step) / ((square / (1 - second**step)).sqrt() + 1e-8)
        if step > steps - last:
            total += place
    found = total / last * (optimizer.lr * math.sqrt(optimizer.steps / steps))
    preferences, shared, flags, magnitudes, shared_flags, shared_magnitudes = found.split((n, o, 2 * n, 2 * n, o, o), 1)
    preferences = preferences * (optimizer.preferences_lr / optimizer.lr)
    if optimizer.shared != "none":
        preferences = preferences + shared @ holds_NO.T
    if optimizer.shared == "all":
        faster = optimizer.shared_lr / optimizer.lr
        flags, magnitudes = (numbers + faster * common @ holds_SO.T
                             for numbers, common in ((flags, shared_flags), (magnitudes, shared_magnitudes)))
    moved = (preferences - preferences.mean(1, keepdim=True), flags, magnitudes)
    return {name: numbers.square().mean().sqrt().item() for name, numbers in zip(GROUPS, moved, strict=True)}


@dataclass(frozen=True)
class Dot:
    """One parameter of one operation: its shift from the start, and what it is now, in words."""

    operation: str
    shift: float
    text: str


@dataclass(frozen=True)
class Group:
    """All preferences, probabilities or magnitudes.

    A preference stands once under each of its operations in `dots`; `rms` counts it once.

    Args:
        noise: standard deviation under noise alone, None where unknown.
    """

    name: str
    rms: float
    dots: tuple[Dot, ...]
    noise: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.noise else self.rms / self.noise

    @property
    def within_noise(self) -> bool:
        return self.ratio is not None and self.ratio < CLEAR

    def rms_of(self, operation: str) -> float:
        """The same over the dots of one operation, over the noise where that is known; NaN where there is none."""
        shifts = [dot.shift for dot in self.dots if dot.operation == operation]
        return rms(shifts) / (self.noise or 1.0) if shifts else math.nan


def movement(search: Search) -> list[Group]:
    """The three GROUPS: shifts of log preferences from their mean, of probabilities and of magnitudes from ½.

    The latter two on the logit where the search learned logits. Magnitudes that do nothing are left out.
    """
    sub_policies = search.candidates.sub_policies
    total = sum(sub_policy.weight for sub_policy in sub_policies)
    logs = [math.log(max(sub_policy.weight / total, 1e-300)) for sub_policy in sub_policies]
    mean = sum(logs) / len(logs)
    dots: dict[str, list[Dot]] = {name: [] for name in GROUPS}
    for log, sub_policy in zip(logs, sub_policies, strict=True):
        names = " and ".join(operation.name for operation in sub_policy.operations)
        for operation in sub_policy.operations:
            now = f"{names}: preference {math.exp(log) * len(logs):.2f} times uniform"
            dots["preferences"].append(Dot(operation.name, log - mean, now))
            now = f"{operation.name} in {names}: probability {operation.probability:.2f}"
            dots["probabilities"].append(Dot(operation.name, _from_half(operation.probability / search.share, search.logits),
                                             now))
            if OPERATIONS[operation.name].unit:
                now = f"{operation.name} in {names}: magnitude {operation.magnitude:.2f}"
                dots["magnitudes"].append(Dot(operation.name, _from_half(operation.magnitude, search.logits), now))
    noise = (noise_walk(_slots(search.candidates), search.optimizer, one_draw=not search.logits)
             if search.optimizer and search.optimizer.steps else {})
    # a preference has a dot under each of its operations
    shifts = {name: [dot.shift for dot in dots[name]] for name in GROUPS} | {"preferences": [log - mean for log in logs]}
    return [Group(name, rms(shifts[name]), tuple(dots[name]), noise.get(name)) for name in GROUPS]


def idle_magnitudes(search: Search) -> float | None:
    """The rms shift of magnitudes that do nothing (AutoContrast, Invert, Equalize): noise, measured in the search itself.

    None where there are none, or where magnitudes follow the paper's pixel sums, which move them all the same.
    """
    shifts = [_from_half(operation.magnitude, search.logits) for sub_policy in search.candidates.sub_policies
              for operation in sub_policy.operations if not OPERATIONS[operation.name].unit]
    return rms(shifts) if shifts and search.spread is not None else None


def rms(numbers: list[float]) -> float:
    return math.sqrt(sum(number * number for number in numbers) / len(numbers)) if numbers else 0.0


def _slots(policy: Policy) -> Tensor:
    holds_N2O = torch.zeros(len(policy.sub_policies), 2, len(OPERATION_NAMES))
    for row, sub_policy in enumerate(policy.sub_policies):
        for slot, operation in enumerate(sub_policy.operations):
            holds_N2O[row, slot, INDEX[operation.name]] = 1.0
    return holds_N2O


def _from_half(number: float, logits: bool) -> float:
    if not logits:
        return number - 0.5
    number = min(max(number, 1e-12), 1 - 1e-12)
    return math.log(number / (1 - number))
