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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.commands.common import ROOT, load_config
from dada_det.errors import UserError
from dada_det.files import read_json
from dada_det.report.measurements import write_rows
from dada_det.report.statistics import mean_interval, paired_difference
from dada_det.search.settings import dada_settings
from measuring import rows_in, run_search
from planted_coco import detector_oracle, plant_detection, write_coco

CONFIG = str(ROOT / "configs/debug/search_det.py")
POLICIES = ("none", "random", "one-op", "oracle", "found")
BATCH, LR, WEIGHT_DECAY = 16, 3e-3, 1e-4
POLICY_LR = 0.05
WARM_UP = 1 / 3  # of the search: a detector from random weights has first to find anything at all


def run(operation: str, seed: int, left: list[str], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each policy of `left`."""
    from dada_det.engine.search.detection import build_detector
    from detector_trial import average_precision, train_detector

    train, val, unseen = plant_detection(operation, seed, args.data, args.image_size)
    for name in left:
        began = time.process_time()
        policy: Policy | None
        facts: dict[str, Any] = {}
        if name == "found":
            policy, facts = searched(operation, seed, train, val, args)
        else:
            policy = detector_oracle(operation) if name == "oracle" else cast(Policy | None, resolve_policy(name, seed))
        torch.manual_seed(seed)
        detector = build_detector(load_config(CONFIG).model, classes=1)
        train_detector(detector, train, policy=policy, epochs=args.epochs, batch_size=BATCH, lr=LR,
                       weight_decay=WEIGHT_DECAY, seed=seed)
        yield {"operation": operation, "seed": seed, "policy": name, **average_precision(detector, unseen), **facts,
               "cpu_seconds": round(time.process_time() - began)}


def searched(operation: str, seed: int, train: Any, val: Any,
             args: argparse.Namespace) -> tuple[Policy | None, dict[str, Any]]:
    """(the policy that the search command has saved, where the planted operation stands in it)."""
    with tempfile.TemporaryDirectory() as name:
        root = write_coco(Path(name, "data"), train=train, val=val)
        run_search(["--config", CONFIG, "--data", str(root), "--val-data", f"{root}/annotations/instances_val.json",
                    "--image-size", str(args.image_size), "--batch-size", str(BATCH), "--epochs", str(args.search_epochs),
                    "--seed", str(seed), "--work-dir", f"{name}/search", "--cfg-options", "masks=True",
                    *search_options(args)])
        found = [entry["name"] for entry in read_json(f"{name}/search/search.json", "search's result")["operations"]]
        policy = cast(Policy | None, resolve_policy(f"{name}/search/policy.json"))
        return policy, {"rank": found.index(operation) + 1, "first": found[0]}


def search_options(args: argparse.Namespace) -> list[str]:
    """What the searches change in CONFIG."""
    return [f"policy_optimizer.lr={POLICY_LR}", f"search.warmup_epochs={int(WARM_UP * args.search_epochs)}",
            *args.cfg_options]


def summary(rows: list[dict[str, Any]]) -> list[str]:
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="COCO's layout, with masks")
    parser.add_argument("--operations", nargs="+", choices=OPERATION_NAMES, default=["Invert"], metavar="NAME",
                        help="(default: Invert)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="side of a tile in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="of a detector's training (default: %(default)s)")
    parser.add_argument("--search-epochs", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="of the search")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write hardware, versions and rows after every training; those that it holds are not run again")
    args = parser.parse_args(argv)
    settings = {"tool": "planted_detection", "default": str(dada_settings()), "data": args.data.name,
                "image_size": args.image_size, "epochs": args.epochs, "search_epochs": args.search_epochs,
                "options": search_options(args), "lr": LR}
    torch.set_num_threads(1)
    began, done = time.monotonic(), 0
    try:
        rows = rows_in(args.json, settings)
        known = {(row["operation"], row["seed"], row["policy"]) for row in rows}
        tasks = [(operation, seed, [name for name in POLICIES if (operation, seed, name) not in known])
                 for seed in range(args.first_seed, args.first_seed + args.seeds) for operation in args.operations]
        total = sum(len(left) for _, _, left in tasks)
        for operation, seed, left in tasks:
            for row in run(operation, seed, left, args) if left else ():
                rows.append(row)
                done += 1
                eta = (time.monotonic() - began) / done * (total - done)
                print(f"planted  {done}/{total}  {operation} seed {seed} {row['policy']:7} AP {row['AP']:.1f} AP50 "
                      f"{row['AP50']:.1f}  ETA {eta / 60:.0f} min", flush=True)
                if args.json:
                    write_rows(args.json, rows, settings)
    except UserError as error:
        print(f"planted_detection.py: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary(rows)))
    if args.json:
        print(f"planted  done: {len(rows)} rows in {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
