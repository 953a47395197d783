"""What each ingredient of the default search is worth: planted policies (planted.py) with one ingredient changed a row.

A third of the images trains, a third is transformed by one operation and validates; only the search runs, no network is
trained from scratch. All rows share their images, first weights and batches seed by seed, so differences are paired.

auc         how well the preferences of all 105 sub-policies rank those that hold the planted operation (0.5 is chance)
difference  of each run's AUC to that of the default with the same operation and seed
first       runs in which the planted operation is used most among the fifteen; seconds: of a search, its data included

Intervals are of 95 % over the runs (operations x seeds). Rows that --json already holds are not run again, so the same
command goes on where it was stopped; a file of other settings or images is refused, but after a change of the search's code
give another file.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planted  # beside this file

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.report.measurements import Rows
from dada_det.report.statistics import mean_interval, paired_difference
from dada_det.search.settings import dada_settings
from measuring import measure, rows_in
from planted_images import MADE, SIDE, write_folders

DEFAULT = "default"
ROWS = {  # name: config entries changed
    DEFAULT: [],
    "one draw": ["search.draws_per_image=1"],
    "a validation pass every step": ["search.val_every=1"],
    "one draw, a validation pass every step": ["search.draws_per_image=1", "search.val_every=1"],
    "half of each batch unaugmented": ["search.unaugmented=0.5"],
    "nothing unaugmented": ["search.unaugmented=0.0"],
    "everything unaugmented": ["search.unaugmented=1.0"],
    "spread 0.8": ["search.spread=0.8"],
    "ranges autoaugment": ["search.ranges=autoaugment"],
    "no warm-up": ["search.warmup_epochs=0"],
    "warm-up 5": ["search.warmup_epochs=5"],
    "policy lr 0.01": ["policy_optimizer.lr=0.01"],
}
OPERATIONS = ["Rotate", "TranslateX", "Invert", "Solarize", "Color", "Contrast", "Sharpness"]


@dataclass(frozen=True)
class Task:
    row: str  # of ROWS
    operation: str
    seed: int
    epochs: int

    def entries(self) -> dict[str, Any]:
        """What says in a row of the file which search it is of."""
        return {"row": self.row, "options": ROWS[self.row], "operation": self.operation, "seed": self.seed,
                "epochs": self.epochs}


def run(task: Task) -> Rows:
    """One row: what a search found."""
    began = time.monotonic()
    search = planted.Task(task.operation, task.seed, ("default",), task.epochs, None, SIDE - planted.MARGIN,
                          tuple(ROWS[task.row]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, val, _ = search.thirds()
        write_folders(folder / "data", train=train, val=val)
        preferences, names = planted.searched(folder, "default", search, False, "--no-trial")
    return [{**task.entries(), "auc": planted.ranking_auc(preferences, task.operation),
             "rank": names.index(task.operation) + 1, "first": names[0], "seconds": round(time.monotonic() - began, 1)}]


def done_in(path: Path | None, settings: dict[str, Any]) -> dict[Task, dict[str, Any]]:
    """The searches that `path` holds; UserError where it is of another ablation."""
    try:
        tasks = {Task(row["row"], row["operation"], row["seed"], row["epochs"]): row for row in rows_in(path, settings)}
        for task, row in tasks.items():
            if any(row[name] != value for name, value in task.entries().items()):
                raise UserError(f"{path} holds the row {task.row!r} with {row['options']}, which is not what this command "
                                "runs; give another --json")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not what this command writes; give another --json") from error
    return tasks


def summary(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The table: a line for each row of ROWS that has run, in their order."""
    runs: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["row"], {})[row["operation"], row["seed"]] = row
    width = max(map(len, ROWS))
    lines = [f"{'row':{width}}    n    auc          difference         first  seconds"]
    for name in ROWS:
        if name not in runs:
            continue
        own, reference = runs[name], runs.get(DEFAULT, {})
        pairs = [key for key in own if key in reference] if name != DEFAULT else []
        difference = "-"
        if pairs:
            mean, half = paired_difference([own[key]["auc"] for key in pairs], [reference[key]["auc"] for key in pairs])
            difference = planted.with_interval(mean, half, "+.3f")
        n, first = len(own), sum(row["rank"] == 1 for row in own.values())
        auc = planted.with_interval(*mean_interval([row["auc"] for row in own.values()]))
        lines.append(f"{name:{width}}  {n:3d}  {auc:13}  "
                     f"{difference:14}  {f'{first}/{n}':>7}  "
                     f"{sum(row['seconds'] for row in own.values()) / n:7.1f}")
    return lines


def body(args: argparse.Namespace) -> None:
    settings = {"tool": "ablation", "epochs": args.epochs, "data": MADE, "default": str(dada_settings())}
    done = done_in(args.json, settings)
    # Seed by seed, so that what is there when a measurement is cut short is paired.
    wanted = [Task(row, operation, seed, args.epochs) for seed in range(args.first_seed, args.first_seed + args.seeds)
              for operation in dict.fromkeys(args.operations) for row in dict.fromkeys(args.rows)]
    left = [task for task in wanted if task not in done]
    if len(left) < len(wanted):
        print(f"ablation  {len(wanted) - len(left)} of {len(wanted)} searches are in {args.json} already", file=sys.stderr)
    rows = list(done.values())
    measure("ablation", run, left, args.processes, rows, args.json, settings,
            lambda task, new: f"{task.row}, {task.operation}, seed {task.seed}: auc {new[0]['auc']:.3f}, "
                              f"rank {new[0]['rank']}")
    asked = {(task.row, task.operation, task.seed) for task in wanted}
    print("\n".join(summary(row for row in rows if (row["row"], row["operation"], row["seed"]) in asked)))
    print(f"ablation  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("ablation.py", __doc__ or "", "python tools/bench/ablation.py --rows default 'one draw' "
                               "--operations Rotate Invert --seeds 5 --processes 2 --json results/ablation.json")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW",
                        help=f"(default: all) {'; '.join(ROWS)}")
    planted.add_flags(parser, OPERATIONS, 2, "the search")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
