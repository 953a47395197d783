"""A planted domain shift for a detector: what a search on the detector is worth where the images differ from the training's.

    python tools/bench/planted_detection.py --data data/nuclei --seeds 3 --json results/planted_detection.json

DIR holds COCO's layout with masks and one category. A third of its images trains as it is, a third is transformed by one
operation (masks and boxes with it) and validates, a third is transformed the same way and is seen by nobody. The search runs
through its own command (configs/debug/search_det.py, --val-data); then the same small RetinaNet is trained from the same
random weights with the policy as saved, with none, random, one-op and the oracle (the planted operation at its magnitude,
probability 1/2), and tested on the unseen third: box AP by pycocotools, in percent.

rank  of the planted operation among the fifteen by probability of use, in the found policy
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.commands import common
from dada_det.commands.common import ROOT, load_config
from dada_det.files import read_json
from dada_det.report.measurements import Rows
from dada_det.report.statistics import mean_interval, paired_difference
from dada_det.search.settings import dada_settings
from measuring import measure, rows_in, run_search
from planted_coco import detector_oracle, plant_detection, write_coco

CONFIG = str(ROOT / "configs/debug/search_det.py")
POLICIES = ("none", "random", "one-op", "oracle", "found")
BATCH, LR, WEIGHT_DECAY = 16, 3e-3, 1e-4
POLICY_LR = 0.05
WARM_UP = 1 / 3  # of the search: a detector from random weights has first to find anything at all


@dataclass(frozen=True)
class Task:
    """One training of a detector, and before it the search where the policy is `found`."""

    operation: str
    seed: int
    policy: str
    data: Path
    image_size: int
    epochs: int
    search_epochs: int
    options: tuple[str, ...]  # config entries changed in the search

    @property
    def key(self) -> tuple[str, int, str]:
        return self.operation, self.seed, self.policy


def run(task: Task) -> Rows:
    """The task's row."""
    from dada_det.engine.search.detection import build_detector
    from detector_trial import average_precision, train_detector

    train, val, unseen = plant_detection(task.operation, task.seed, task.data, task.image_size)
    began = time.process_time()
    policy: Policy | None
    facts: dict[str, Any] = {}
    if task.policy == "found":
        policy, facts = searched(task, train, val)
    elif task.policy == "oracle":
        policy = detector_oracle(task.operation)
    else:
        policy = cast(Policy | None, resolve_policy(task.policy, task.seed))
    torch.manual_seed(task.seed)
    detector = build_detector(load_config(CONFIG).model, classes=1)
    train_detector(detector, train, policy=policy, epochs=task.epochs, batch_size=BATCH, lr=LR, weight_decay=WEIGHT_DECAY,
                   seed=task.seed)
    return [{"operation": task.operation, "seed": task.seed, "policy": task.policy, **average_precision(detector, unseen),
             **facts, "cpu_seconds": round(time.process_time() - began)}]


def searched(task: Task, train: Any, val: Any) -> tuple[Policy | None, dict[str, Any]]:
    """(the policy that the search command has saved, where the planted operation stands in it)."""
    with tempfile.TemporaryDirectory() as name:
        root = write_coco(Path(name, "data"), train=train, val=val)
        run_search(["--config", CONFIG, "--data", str(root), "--val-data", f"{root}/annotations/instances_val.json",
                    "--image-size", str(task.image_size), "--batch-size", str(BATCH), "--epochs", str(task.search_epochs),
                    "--seed", str(task.seed), "--work-dir", f"{name}/search", "--cfg-options", "masks=True", *task.options])
        found = [entry["name"] for entry in read_json(f"{name}/search/search.json", "search's result")["operations"]]
        policy = cast(Policy | None, resolve_policy(f"{name}/search/policy.json"))
        return policy, {"rank": found.index(task.operation) + 1, "first": found[0]}


def search_options(args: argparse.Namespace) -> tuple[str, ...]:
    """What the searches change in CONFIG."""
    return (f"policy_optimizer.lr={POLICY_LR}", f"search.warmup_epochs={int(WARM_UP * args.search_epochs)}",
            *args.cfg_options)


def summary(rows: Rows) -> list[str]:
    """A line a policy of each operation, and what the found one has more, with 95 % intervals over seeds."""
    lines = []
    for operation in dict.fromkeys(row["operation"] for row in rows):
        by_policy = {name: {row["seed"]: row["AP"] for row in rows if (row["operation"], row["policy"]) == (operation, name)}
                     for name in POLICIES}
        for name, figures in by_policy.items():
            if figures:
                mean, half = mean_interval(list(figures.values()))
                lines.append(f"{operation:13}  {name:7}  AP {mean:5.1f} ± {half:.1f}  (n = {len(figures)})")
        found = by_policy["found"]
        for name in POLICIES[:-1]:
            seeds = [seed for seed in found if seed in by_policy[name]]
            if seeds:
                mean, half = paired_difference([found[seed] for seed in seeds], [by_policy[name][seed] for seed in seeds])
                lines.append(f"{operation:13}  found minus {name:7} {mean:+5.1f} ± {half:.1f}  (n = {len(seeds)} pairs)")
        ranks = [row["rank"] for row in rows if row["operation"] == operation and "rank" in row]
        if ranks:
            lines.append(f"{operation:13}  first in {ranks.count(1)} of {len(ranks)} searches, ranks {ranks}")
    return lines


def body(args: argparse.Namespace) -> None:
    options = search_options(args)
    settings = {"tool": "planted_detection", "default": str(dada_settings()), "data": args.data.name,
                "image_size": args.image_size, "epochs": args.epochs, "search_epochs": args.search_epochs,
                "options": list(options), "lr": LR}
    rows = rows_in(args.json, settings)
    known = {(row["operation"], row["seed"], row["policy"]) for row in rows}
    tasks = [Task(operation, seed, policy, args.data, args.image_size, args.epochs, args.search_epochs, options)
             for seed in range(args.first_seed, args.first_seed + args.seeds) for operation in args.operations
             for policy in POLICIES]
    measure("planted", run, [task for task in tasks if task.key not in known], 1, rows, args.json, settings,
            lambda task, new: f"{task.operation} seed {task.seed} {task.policy:7} AP {new[0]['AP']:.1f}")
    print("\n".join(summary(rows)))
    print(f"planted  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("planted_detection.py", __doc__ or "",
                               "python tools/bench/planted_detection.py --data data/nuclei --seeds 3 --json FILE")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="COCO's layout, with masks")
    parser.add_argument("--operations", nargs="+", choices=OPERATION_NAMES, default=["Invert"], metavar="NAME",
                        help="(default: Invert)")
    parser.add_argument("--seeds", type=common.positive, default=3, metavar="n", help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=common.seed, default=0, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=common.positive, default=128, metavar="N",
                        help="side of a tile in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=common.positive, default=12, metavar="N",
                        help="of a detector's training (default: %(default)s)")
    parser.add_argument("--search-epochs", type=common.positive, default=12, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="of the search")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write hardware, versions and rows after every training; those that it holds are not run again")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
