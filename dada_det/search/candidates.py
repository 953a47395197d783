"""What a search tries beside what alignment proposes, and what its trial says of each operation; O operations."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dada_det.augment.operations import OPERATION_NAMES, OPERATIONS
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.search.verdict import Estimate

RANGES = "strength"
LEAST = 1e-12  # variance, where all scores are equal
# Few images can tell two families apart, but not fifteen operations (docs/method.md).
FAMILIES = {"tone": ("lookup", "color", "sharpness"), "geometry": ("affine", "box")}  # kinds of operations


def families(operations: Iterable[str] = OPERATION_NAMES) -> dict[str, Policy]:
    """`one-op` of each family that has two of the operations: one of them on every image, its strength uniform."""
    found = {}
    for name, kinds in FAMILIES.items():
        members = [operation for operation in operations if OPERATIONS[operation].kind in kinds]
        if len(members) >= 2:
            found[name] = Policy(RANGES, tuple(SubPolicy(1.0, (Operation(operation, 1.0, 0.5),)) for operation in members),
                                 uniform_strength=True)
    return found


@dataclass(frozen=True)
class Effect:
    """What an operation is worth each time that it acts on an image, in the score's unit (nats; of a detector AP, 0..1)."""

    name: str
    value: Estimate


def operation_effects(policies: Mapping[str, Policy | None], scores: Mapping[str, Estimate]) -> list[Effect]:
    """The effect of each operation on the score of the policies that hold it, the best first.

    Bayesian linear regression of the policies' scores on how often each operation acts. The prior of an effect is a normal
    with mean 0 and the variance of the scores. Operations that no policy tells apart have the same effect; one policy alone
    tells of none, and all effects are 0.
    """
    names = list(policies)
    if len(names) < 2:
        return [Effect(name, Estimate(0.0, 0.0)) for name in OPERATION_NAMES]
    use_CO = torch.stack([use_of(policies[name]) for name in names])
    use_CO = use_CO - use_CO.mean(0)
    score_C = torch.tensor([scores[name].mean for name in names], dtype=torch.float64)
    noise = max(statistics.fmean(scores[name].error ** 2 for name in names), LEAST)
    prior = max(float(score_C.var()), LEAST)
    eye_OO = torch.eye(len(OPERATION_NAMES), dtype=torch.float64)
    covariance_OO = torch.linalg.inv(use_CO.T @ use_CO / noise + eye_OO / prior)
    mean_O = covariance_OO @ use_CO.T @ (score_C - score_C.mean()) / noise
    effects = [Effect(name, Estimate(float(mean), math.sqrt(float(variance))))
               for name, mean, variance in zip(OPERATION_NAMES, mean_O, covariance_OO.diagonal(), strict=True)]
    return sorted(effects, key=lambda effect: -effect.value.mean)


def use_of(policy: Policy | None) -> Tensor:
    """How many times each operation acts on an image on average, float64 [O]; nothing acts without a policy."""
    use = dict.fromkeys(OPERATION_NAMES, 0.0)
    if policy is not None:
        total = sum(each.weight for each in policy.sub_policies)
        for each in policy.sub_policies:
            for operation in each.operations:
                use[operation.name] += (1 - policy.unaugmented) * each.weight / total * operation.probability
    return torch.tensor(list(use.values()), dtype=torch.float64)


def ours(policies: Mapping[str, object]) -> dict[str, Policy | None]:
    """The policies that are made of our operations, and none; not those of torchvision's."""
    return {name: policy for name, policy in policies.items() if policy is None or isinstance(policy, Policy)}
