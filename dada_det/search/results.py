"""What a search by DADA writes: search.json, and how often each operation is used."""

from collections.abc import Mapping, Sequence

import torch

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.search.distribution import PolicyDistribution, SubPolicyRow

POLICY_SIZE = 25  # sub-policies in the saved policy, as in the paper


def search_result(distribution: PolicyDistribution, adam: torch.optim.Optimizer,
                  provenance: Mapping[str, object]) -> dict[str, object]:
    """Returns search.json: all sub-policies, and the steps and rates of the Adam that learned them."""
    def rate(parameter: torch.Tensor) -> float:
        return next(group["lr"] for group in adam.param_groups if any(parameter is own for own in group["params"]))

    optimizer = {"steps": int(adam.state.get(distribution.flags_N2, {}).get("step", 0)), "lr": rate(distribution.flags_N2),
                 "preferences_lr": rate(distribution.preferences_N), "betas": list(adam.param_groups[0]["betas"]),
                 "averaged": 0,  # an entry of the schema: of how many last steps the numbers are the mean
                 "shared": distribution.shared_by_operation}
    if distribution.operation_flags_O is not None:
        optimizer["shared_lr"] = rate(distribution.operation_flags_O)
    table = distribution.table()
    return {"schema": 1, "ranges": distribution.space.ranges, "spread": distribution.spread,
            "operations": [{"name": name, "use": value} for name, value in usage(table).items()],
            "optimizer": optimizer, "sub_policies": table, "provenance": dict(provenance)}


def usage(table: Sequence[SubPolicyRow]) -> dict[str, float]:
    """Returns how many times each operation acts on an image on average, most used first.

    It is the sum over sub-policies of the preference times the operation's probability; all together are at most 2.
    """
    use = dict.fromkeys(OPERATION_NAMES, 0.0)
    for entry in table:
        for operation in entry["operations"]:
            use[operation["name"]] += entry["preference"] * operation["probability"]
    return dict(sorted(use.items(), key=lambda item: -item[1]))


def most_used(use: dict[str, float]) -> str:
    """Returns the first three of `usage`, for a closing line."""
    return "most used: " + ", ".join(f"{name} {value:.2f}" for name, value in list(use.items())[:3])
