"""Facts about a policy: shares, pairs, how often each operation acts, and whether it differs from a uniform one."""

import math
from dataclasses import dataclass, replace

from dada_det.augment.operations import INDEX, OPERATION_NAMES, OPERATIONS, describe, value_of
from dada_det.augment.policy import Operation, Policy, SubPolicy

# A policy is called close to uniform where all of these hold; the page prints them.
LEAST_WEIGHTS, LEAST_OPERATIONS, MOST_DIFFERENCE = 0.9, 0.8, 0.1


def heaviest_first(policy: Policy) -> list[tuple[float, SubPolicy]]:
    """(share of the images, sub-policy), largest share first, ties in the policy's order; sum 1 - policy.unaugmented."""
    total = sum(sub_policy.weight for sub_policy in policy.sub_policies)
    pairs = [((1 - policy.unaugmented) * (sub_policy.weight / total), sub_policy) for sub_policy in policy.sub_policies]
    return sorted(pairs, key=lambda pair: -pair[0])


def pair_shares(policy: Policy) -> list[list[float]]:
    """15 x 15 shares of the images that draw a sub-policy: [first][second] operation as applied.

    The diagonal holds single operations, and pairs of an operation with itself.
    """
    cells = [[0.0] * len(OPERATION_NAMES) for _ in OPERATION_NAMES]
    for share, sub_policy in heaviest_first(policy):
        first, last = sub_policy.operations[0], sub_policy.operations[-1]
        cells[INDEX[first.name]][INDEX[last.name]] += share
    return cells


def usage(policy: Policy) -> dict[str, float]:
    """How often each of the fifteen operations acts on an image, in the table's order: sum of share times probability."""
    use = dict.fromkeys(OPERATION_NAMES, 0.0)
    for share, sub_policy in heaviest_first(policy):
        for operation in sub_policy.operations:
            use[operation.name] += share * operation.probability
    return use


def effective_number(amounts: list[float]) -> float:
    """exp(entropy) of amounts >= 0 over their sum: n equal amounts are worth n, one that holds all of it 1; 0 of nothing."""
    total = sum(amounts)
    shares = [amount / total for amount in amounts if amount > 0]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0)) if shares else 0.0


def spreads_of(policy: Policy) -> set[float]:
    """The different spreads of all magnitudes that do something; 0.0 stands for none."""
    return {operation.spread or 0.0 for sub_policy in policy.sub_policies for operation in sub_policy.operations
            if OPERATIONS[operation.name].unit}


def value_text(name: str, magnitude: float, ranges: str) -> str:
    """The value alone in real units, such as "±12°"; empty for operations without one."""
    return describe(name, magnitude, ranges)[len(name):].strip()


def usual_values(operation: Operation, policy: Policy) -> str:
    """Where an image's value lies two times in three (magnitude's logit within one spread); "" where it never varies."""
    if not OPERATIONS[operation.name].unit or not (operation.spread or policy.uniform_strength):
        return ""
    if policy.uniform_strength:
        low, high = 0.0, 1.0
    else:
        low, high = (_shifted(operation.magnitude, sign * (operation.spread or 0.0)) for sign in (-1, 1))
    ends = [_signless(operation.name, magnitude, policy.ranges) for magnitude in (low, high)]
    if OPERATIONS[operation.name].range(policy.ranges).base < 0 and low < 0.5 < high:  # through zero to either side
        ends = [(0.0, 0.5), max(ends)]
    near, far = (value_text(operation.name, magnitude, policy.ranges) for _, magnitude in sorted(ends))
    if near == far:
        return near
    if " or " in near:  # a factor below or above 1
        (low_near, high_near), (low_far, high_far) = (text[1:].split(" or ") for text in sorted((near, far), reverse=True))
        return f"×{low_far} to {low_near} or {high_near} to {high_far}"
    return f"{near} to {far}"


def _signless(name: str, magnitude: float, ranges: str) -> tuple[float, float]:
    return abs(value_of(INDEX[name], magnitude, 1.0, ranges)), magnitude


def _shifted(magnitude: float, by: float) -> float:
    """sigmoid(logit(magnitude) + by), written so that 0, 1 and a huge shift stay in 0..1."""
    up = magnitude * math.exp(max(-700.0, min(by, 700.0)))
    down = 1 - magnitude
    return up / (up + down)


@dataclass(frozen=True)
class Evenness:
    """How far weights, operations, probabilities and magnitudes are from being all alike.

    Args:
        weights, operations: effective numbers, `of_weights` and `of_operations` where all are alike.
        probabilities, magnitudes: rms distance from their own mean, each as heavy as its sub-policy.
    """

    weights: float
    of_weights: int
    operations: float
    of_operations: int
    probabilities: float
    magnitudes: float

    @property
    def reasons(self) -> list[str]:
        """What is not alike; empty for a policy close to uniform."""
        alike = {"weights": self.weights >= LEAST_WEIGHTS * self.of_weights,
                 "choice of operations": self.operations >= LEAST_OPERATIONS * self.of_operations,
                 "probabilities": self.probabilities <= MOST_DIFFERENCE, "magnitudes": self.magnitudes <= MOST_DIFFERENCE}
        return [what for what, holds in alike.items() if not holds]

    @property
    def near_uniform(self) -> bool:
        return not self.reasons


def evenness(policy: Policy, of_operations: int = len(OPERATION_NAMES)) -> Evenness:
    """Of the sub-policies; a magnitude that does nothing (Invert, or one drawn anew for each image) counts as alike."""
    policy = replace(policy, unaugmented=0.0)
    weighted = [(share, operation) for share, sub_policy in heaviest_first(policy) for operation in sub_policy.operations]
    strengths = [(share, operation.magnitude) for share, operation in weighted
                 if OPERATIONS[operation.name].unit and not policy.uniform_strength]
    return Evenness(
        weights=effective_number([share for share, _ in heaviest_first(policy)]), of_weights=len(policy.sub_policies),
        operations=effective_number(list(usage(policy).values())), of_operations=of_operations,
        probabilities=_deviation([(share, operation.probability) for share, operation in weighted]),
        magnitudes=_deviation(strengths))


def _deviation(weighted: list[tuple[float, float]]) -> float:
    total = sum(weight for weight, _ in weighted)
    if total == 0:
        return 0.0
    mean = sum(weight * value for weight, value in weighted) / total
    return math.sqrt(sum(weight * (value - mean) ** 2 for weight, value in weighted) / total)
