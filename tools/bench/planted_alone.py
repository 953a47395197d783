"""What makes a planted policy a test of its rank: that no other operation alone closes the gap as well.

The images of planted.py, those of --data too. For each planted operation a network is trained from scratch without a
policy, with the oracle (the planted operation at its magnitude) and with each of the fifteen alone (probability 1/2,
strengths uniform over their range), and is tested on the third that nobody saw. No search runs.

gap    accuracy of the oracle minus that of none, in points
way    share of the gap that an operation alone closes, in %: of the planted one, and of the best of the others; where
       another closes it, a search that puts that one first has not failed
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import planted  # beside this file

from dada_det.augment.named import AnyPolicy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.commands import common
from dada_det.engine.compare.trial import run_trial
from dada_det.report.measurements import Rows
from measuring import measure, rows_in
from planted_images import oracle


def alone(operation: str) -> Policy:
    """The operation with probability 1/2, its strength uniform."""
    only = SubPolicy(1.0, (Operation(operation, probability=0.5, magnitude=0.5),))
    return Policy("strength", (only,), {"source": "alone"}, uniform_strength=True)


def run(task: planted.Task) -> Rows:
    """One row: the accuracies in % of one planted operation and seed."""
    train, _, unseen = task.thirds()
    recipe = task.recipe(train)

    def accuracy(policy: AnyPolicy) -> float:
        with tempfile.TemporaryDirectory() as name:
            return run_trial(train, unseen, policy=policy, recipe=recipe, seed=task.seed, work_dir=Path(name) / "trial",
                             quiet=True)["top1"]

    return [{"operation": task.operation, "seed": task.seed, "accuracy_none": accuracy(None),
             "accuracy_oracle": accuracy(oracle(task.operation)),
             "alone": {name: accuracy(alone(name)) for name in OPERATION_NAMES}}]


def summary(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each planted operation: means over its seeds."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["operation"], []).append(row)
    lines = [f"{'planted':12}  n    gap  {'own way':>7}  best of the others"]
    for operation, own in runs.items():
        none, best = (sum(row[f"accuracy_{name}"] for row in own) / len(own) for name in ("none", "oracle"))
        if best <= none:
            lines.append(f"{operation:12}  {len(own)}  {best - none:5.1f}        -  -")
            continue
        ways = {name: 100 * (sum(row["alone"][name] for row in own) / len(own) - none) / (best - none)
                for name in OPERATION_NAMES}
        other = max((name for name in ways if name != operation), key=lambda name: ways[name])
        lines.append(f"{operation:12}  {len(own)}  {best - none:5.1f}  {ways[operation]:5.0f} %  "
                     f"{ways[other]:.0f} % ({other})")
    return lines


def body(args: argparse.Namespace) -> None:
    settings = {"tool": "planted_alone", **planted.settings_of(args)}
    rows = rows_in(args.json, settings)
    done = {(row["operation"], row["seed"]) for row in rows}
    asked = {(task.operation, task.seed): task for task in planted.tasks_of(args)}
    tasks = [task for key, task in asked.items() if key not in done]
    measure("planted_alone", run, tasks, args.processes, rows, args.json, settings,
            lambda task, _: f"{task.operation}, seed {task.seed}")
    print("\n".join(summary(row for row in rows if (row["operation"], row["seed"]) in asked)))
    print(f"planted_alone  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("planted_alone.py", __doc__ or "", "python tools/bench/planted_alone.py --operations Color "
                               "Sharpness --seeds 2 --processes 2 --json results/planted_alone.json")
    planted.add_flags(parser, OPERATION_NAMES, 2, "each network")
    planted.add_image_flags(parser, "each network")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
