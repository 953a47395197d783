"""The policy that a search proposes from what forks say of each operation."""

import itertools
import math
from collections.abc import Sequence

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.search.verdict import Standing

RANGES = "strength"
CLEAR = 0.75  # probability of being better than the mean operation, from which on an operation is among the few
OFTEN = 0.75  # probability of an operation
FEW = (2, 6)  # at least and at most so many operations are the few


def alone(operation: str) -> Policy:
    """The operation on three of four images, its strength uniform: how one operation is tried."""
    return Policy(RANGES, (SubPolicy(1.0, (Operation(operation, OFTEN, 0.5),)),), uniform_strength=True)


def better_than_mean(effects: Sequence[Standing]) -> dict[str, float]:
    """The probability that an operation's effect is above the mean one's; 1/2 for all that are not told apart."""
    return {effect.name: 0.5 * (1 + math.erf(effect.shrunken.mean / effect.shrunken.error / math.sqrt(2)))
            if effect.shrunken.error > 0 else 0.5 for effect in effects}


def proposals(effects: Sequence[Standing]) -> dict[str, Policy]:
    """`few pairs`: all pairs of the operations that are clearly better than the mean one, alike in weight."""
    better = better_than_mean(effects)
    order = sorted(better, key=lambda name: -better[name])
    few = [name for name in order if better[name] >= CLEAR][:FEW[1]]
    few = few if len(few) >= FEW[0] else order[:FEW[0]]
    return {"few pairs": pairs([name for name in OPERATION_NAMES if name in few])}


def pairs(names: Sequence[str]) -> Policy:
    """All pairs of the operations, in the order of the table of operations; each acts with probability 3/4."""
    return Policy(RANGES, tuple(SubPolicy(1.0, tuple(Operation(name, OFTEN, 0.5) for name in pair))
                                for pair in itertools.combinations(names, 2)), uniform_strength=True)
