"""What a search by DADA writes: search.json, and which operations are used how often."""

from typing import Any

import torch

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.search.distribution import PolicyDistribution

POLICY_SIZE = 25  # sub-policies in the saved policy, as in the paper


def search_result(found: PolicyDistribution, learned: PolicyDistribution, adam: torch.optim.Optimizer, averaged: int,
                  provenance: dict[str, Any]) -> dict[str, Any]:
    """search.json: all sub-policies, and how they were learned.

    learned: what Adam moves; averaged: of how many of its last steps `found` is the mean.
    """
    def rate(parameter: torch.Tensor) -> float:
        return next(group["lr"] for group in adam.param_groups if any(parameter is own for own in group["params"]))

    optimizer = {"steps": int(adam.state.get(learned.flags_N2, {}).get("step", 0)), "lr": rate(learned.flags_N2),
                 "preferences_lr": rate(learned.preferences_N), "betas": list(adam.param_groups[0]["betas"]),
                 "averaged": averaged, "shared": learned.shared}
    if learned.operation_flags_O is not None:
        optimizer["shared_lr"] = rate(learned.operation_flags_O)
    table = found.table()
    return {"schema": 1, "ranges": found.space.ranges, "spread": found.spread,
            "operations": [{"name": name, "use": value} for name, value in usage(table).items()],
            "optimizer": optimizer, "sub_policies": table, "provenance": provenance}


def usage(table: list[dict]) -> dict[str, float]:
    """How often each operation acts on an image drawn from the whole distribution, most used first.

    The sum over sub-policies of preference times the operation's probability; two operations an image at most.
    """
    use = dict.fromkeys(OPERATION_NAMES, 0.0)
    for entry in table:
        for operation in entry["operations"]:
            use[operation["name"]] += entry["preference"] * operation["probability"]
    return dict(sorted(use.items(), key=lambda item: -item[1]))


def most_used(use: dict[str, float]) -> str:
    """The three first of `usage`, for a closing line."""
    return "most used: " + ", ".join(f"{name} {value:.2f}" for name, value in list(use.items())[:3])
