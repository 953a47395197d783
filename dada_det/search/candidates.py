"""Policies that a search proposes from what forks say of each operation, and their variants; O operations."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.search.verdict import Standing

RANGES = "strength"
CLEAR = 0.75  # probability of being better than the mean operation, from which on an operation is among the few
SPREAD = 1.0  # on the logit, of magnitudes that were uniform and get a centre
FEW = (2, 6)  # at least and at most so many operations are the few


def alone(operation: str) -> Policy:
    """The operation on three of four images, its strength uniform: how one operation is tried."""
    return table([((operation,), 1.0)], probability=0.75)


def table(weighted: Sequence[tuple[tuple[str, ...], float]], probability: float, magnitude: float | None = None) -> Policy:
    """A policy of (operations, weight); magnitude None: uniform in 0..1 anew for each image."""
    return Policy(RANGES, tuple(SubPolicy(weight, tuple(Operation(name, probability, 0.5 if magnitude is None else magnitude)
                                                        for name in names)) for names, weight in weighted),
                  uniform_strength=magnitude is None)


def better_than_mean(effects: Sequence[Standing]) -> dict[str, float]:
    """The probability that an operation's effect is above the mean one's; 1/2 for all that are not told apart."""
    return {effect.name: 0.5 * (1 + math.erf(effect.shrunken.mean / effect.shrunken.error / math.sqrt(2)))
            if effect.shrunken.error > 0 else 0.5 for effect in effects}


def proposals(effects: Sequence[Standing]) -> dict[str, Policy]:
    """Policies from the effects of the operations: "tilted" uses all, by their odds; "few" those that are clearly better.

    What is not told from the mean operation keeps the weight that it has in `uniform`.
    """
    better = better_than_mean(effects)
    order = sorted(better, key=lambda name: -better[name])
    few = [name for name in order if better[name] >= CLEAR][:FEW[1]]
    few = few if len(few) >= FEW[0] else order[:FEW[0]]
    by_table = [name for name in OPERATION_NAMES if name in better]  # the order in which a pair is applied
    tilted = {name: better[name] ** 2 for name in by_table}
    equal = {name: 1.0 for name in by_table if name in few}
    return {"tilted pairs": table(pairs(tilted), 0.75), "few": table(singles(equal), 1.0),
            "few pairs": table(pairs(equal), 0.75)}


def singles(weights: Mapping[str, float]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), weight) for name, weight in weights.items()]


def pairs(weights: Mapping[str, float]) -> list[tuple[tuple[str, ...], float]]:
    """All pairs of two operations, in the order of the table of operations, each with the product of their weights."""
    names = list(weights)
    return [((first, second), weights[first] * weights[second]) for first, second in itertools.combinations(names, 2)]


def stronger(policy: Policy) -> Policy:
    """Each operation on more images, at larger magnitudes: 0.75 becomes 0.9, and a magnitude of 0.5 one of 0.8."""
    return with_use(policy, lambda p: 1 - 0.4 * (1 - p), 1.4)


def weaker(policy: Policy) -> Policy:
    """Each operation on fewer images, at smaller magnitudes: 0.75 becomes 0.5, and a magnitude of 0.5 one of 0.3."""
    return with_use(policy, lambda p: p * 2 / 3, -0.85)


def half_unaugmented(policy: Policy) -> Policy:
    """The policy on every second image; the others stay as they are."""
    return replace(policy, unaugmented=0.5)


def with_use(policy: Policy, probability: Callable[[float], float], shift: float) -> Policy:
    """The policy with other probabilities, and magnitudes moved by `shift` on the logit; uniform ones get a centre."""
    def changed(operation: Operation) -> Operation:
        m = min(max(operation.magnitude, 0.01), 0.99)
        magnitude = 1 / (1 + math.exp(-math.log(m / (1 - m)) - shift))
        spread = SPREAD if policy.uniform_strength else operation.spread
        return Operation(operation.name, round(probability(operation.probability), 4), round(magnitude, 4), spread)

    return replace(policy, uniform_strength=False, sub_policies=tuple(
        SubPolicy(each.weight, tuple(map(changed, each.operations))) for each in policy.sub_policies))
