"""Planted policies: validation images transformed by one operation, which the search must put first, and what it is worth.

A third of the images trains, a third is transformed and validates, a third is transformed the same way and is seen by
nobody. The search runs through its own command (--val-data); then a network is trained from scratch with the policy as
saved and tested on the last third, beside none, random, one-op and the oracle (the planted operation at its magnitude,
probability 1/2), all with the same seed.

Modes: DADA's default and paper, and ddas, whose step costs more, so that it gets fewer epochs (of batches half as large):
as many passes over an image as the default, where a forward pass counts 1 and a backward pass 2. The default passes
8.5 times over each training image of an epoch (training 3, validation 1.5, rewards 4), ddas 15 times (4 copies 3 each,
validation 3), and paper, which has the default's epochs, 15 times too.

gap   accuracy of the oracle minus that of none, in points; an operation whose mean gap is below 10 is not counted
auc   how well the preferences of all candidates rank those that hold the planted operation (0.5 is chance): DADA's 105
      sub-policies; of ddas all ordered pairs of its 28 atoms
rank  of the planted operation among the fifteen by probability of use
way   share of the gap that the policy closes, from the means over an operation's seeds
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dada_det.augment.named import AnyPolicy, resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.schedule import Schedule
from dada_det.commands import common
from dada_det.data.memory import MemoryImages
from dada_det.engine.compare.trial import Recipe, run_trial
from dada_det.engine.runtime.launch import read_config
from dada_det.report.statistics import mean_interval, paired_difference
from dada_det.search.ddas import ddas_settings
from dada_det.search.settings import dada_settings
from measuring import measure, rows_in, run_search
from planted_images import SIDE, oracle, plant, source, write_folders

LR, MARGIN = 0.05, 2  # MARGIN: pixels of a stored digit beyond the crop
COUNTED_GAP = 10.0  # points between none and the oracle below which there is nothing to find
MODES = ("default", "paper", "ddas")
PAPER = ["search.mode=paper"]
DDAS_CONFIG = "configs/debug/search_ddas.py"
DDAS_BATCH, DDAS_EPOCHS = 1 / 2, 8.5 / 15  # shares of the batch and of the epochs
CONTROLS = ("none", "random", "one_op", "oracle")
COLUMNS = {"mode": "8", "operation": "13", "seed": "4d", "gap": "5.1f", "auc": "5.3f", "rank": "4d", "accuracy": "8.1f",
           **{f"accuracy_{name}": f"{len(name) + 9}.1f" for name in CONTROLS}}


@dataclass(frozen=True)
class Task:
    operation: str
    seed: int
    modes: tuple[str, ...]
    epochs: int
    folder: Path | None
    image_size: int
    options: tuple[str, ...]  # config entries changed in the default mode
    batch_size: int = 50  # of the searches and of the networks
    controls: dict[str, float] | None = None  # accuracies in %, where rows of this operation and seed hold them

    def thirds(self) -> tuple[MemoryImages, ...]:
        """The images of `plant`: training, validation, unseen."""
        return plant(self.operation, self.seed, self.folder, SIDE if self.folder is None else self.image_size * 8 // 7)

    def recipe(self, train: MemoryImages) -> Recipe:
        """How the networks are trained from scratch."""
        return Recipe(model="convnet", classes=int(train.labels_N.max()) + 1, image_size=self.image_size, epochs=self.epochs,
                      batch_size=self.batch_size, lr=LR, weight_decay=2e-4, mirror=self.folder is not None)


def run(task: Task) -> list[dict]:
    """A row a mode; the controls are trained once and stand in each."""
    train, val, unseen = task.thirds()
    recipe = task.recipe(train)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folders(folder / "data", train=train, val=val)

        def accuracy(policy: AnyPolicy) -> float:
            return run_trial(train, unseen, policy=policy, recipe=recipe, seed=task.seed, work_dir=folder / "trial",
                             quiet=True)["top1"]

        policies = {"none": None, "random": resolve_policy("random", task.seed), "one_op": resolve_policy("one-op"),
                    "oracle": oracle(task.operation)}
        controls = task.controls or {f"accuracy_{name}": accuracy(policy) for name, policy in policies.items()}
        rows = []
        for mode in task.modes:
            preferences, names = searched(folder, mode, task, mirror=recipe.mirror)
            policy = resolve_policy(f"{folder}/search/policy.json")
            rows.append({"mode": mode, "operation": task.operation, "seed": task.seed,
                         "gap": controls["accuracy_oracle"] - controls["accuracy_none"],
                         "auc": ranking_auc(preferences, task.operation), "rank": names.index(task.operation) + 1,
                         "first": names[0], "accuracy": accuracy(policy), **controls})
    return rows


def still_to_run(task: Task, rows: list[dict]) -> Task:
    """The task without the modes that rows hold, and with the controls that they hold."""
    own = [row for row in rows if (row["operation"], row["seed"]) == (task.operation, task.seed)]
    known = {row["mode"] for row in own}
    controls = {name: own[0][name] for name in map("accuracy_{}".format, CONTROLS)} if own else None
    return replace(task, modes=tuple(mode for mode in task.modes if mode not in known), controls=controls)


Preferences = list[tuple[float, set[str | None]]]  # of each candidate, and the operations that it holds


def searched(folder: Path, mode: str, task: Task, mirror: bool, *flags: str) -> tuple[Preferences, list[str]]:
    """(preferences of all candidates, operations by their use) of the search command with `flags` on folder/data."""
    ddas = mode == "ddas"
    options = [f"mirror={mirror}", *{"default": task.options, "paper": PAPER, "ddas": ()}[mode]]
    epochs = max(1, round(task.epochs * DDAS_EPOCHS)) if ddas else task.epochs
    batch_size = max(1, round(task.batch_size * DDAS_BATCH)) if ddas else task.batch_size
    run_search(["--config", DDAS_CONFIG if ddas else "configs/debug/search.py", "--data", f"{folder}/data",
                "--val-data", f"{folder}/data/val", "--image-size", str(task.image_size),
                "--batch-size", str(batch_size), "--epochs", str(epochs),
                "--seed", str(task.seed), "--work-dir", f"{folder}/search", *flags, "--cfg-options", *options])
    return of_schedule(folder / "search/schedule.json") if ddas else of_table(folder / "search/search.json")


def of_table(path: Path) -> tuple[Preferences, list[str]]:
    """Of DADA's search.json."""
    found = json.loads(path.read_text())
    return ([(s["preference"], {o["name"] for o in s["operations"]}) for s in found["sub_policies"]],
            [entry["name"] for entry in found["operations"]])


def of_schedule(path: Path) -> tuple[Preferences, list[str]]:
    """Of DDAS's last epoch: all ordered pairs of atoms."""
    schedule = Schedule.load(path)
    atoms = list(zip(schedule.stages[-1].preferences, (atom.name for atom in schedule.atoms), strict=True))
    use: dict[str, float] = dict.fromkeys(OPERATION_NAMES, 0.0)
    for preference, name in atoms:
        if name is not None:
            use[name] += preference
    return [(p * q, {first, second}) for p, first in atoms for q, second in atoms], sorted(use, key=lambda name: -use[name])


def ranking_auc(candidates: Preferences, operation: str) -> float:
    holds = torch.tensor([operation in names for _, names in candidates])
    preferences = torch.tensor([preference for preference, _ in candidates], dtype=torch.float64)
    ours, others = preferences[holds][:, None], preferences[~holds]
    return ((ours > others).double() + 0.5 * (ours == others)).mean().item()


def line(row: dict) -> str:
    return "  ".join(f"{row[name]:{width}}".rjust(len(name)) for name, width in COLUMNS.items())


def summary(rows: list[dict]) -> list[str]:
    """A mode's lines over the operations that count, and where some do not, over all of them too."""
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    gaps = {name: [row["gap"] for row in rows if row["operation"] == name] for name in operations}
    counted = [name for name in operations if sum(gaps[name]) / len(gaps[name]) >= COUNTED_GAP]
    small = [name for name in operations if name not in counted]
    lines = [f"not counted, mean gap below {COUNTED_GAP:.0f} points: {', '.join(sorted(small))}"] if small else []
    groups = {"": counted, f", all {len(operations)} operations": operations if small else []}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        for group, names in groups.items():
            own = [row for row in rows if row["mode"] == mode and row["operation"] in names]
            lines += lines_of(f"{mode}{group}", own) if own else []
    return lines


def with_interval(mean: float, half: float, form: str = ".3f") -> str:
    """A mean and its interval, which one run does not have."""
    return f"{mean:{form}}" + ("" if math.isnan(half) else f" ± {half:{form.lstrip('+')}}")


def lines_of(label: str, rows: list[dict]) -> list[str]:
    """What the runs of `rows` found and are worth, with 95 % intervals over them."""
    first, auc = sum(row["rank"] == 1 for row in rows), with_interval(*mean_interval([row["auc"] for row in rows]))
    found = f"{label}: mean AUC {auc} (n = {len(rows)}), first in {first} of {len(rows)}"
    totals: dict[str, tuple[float, float]] = {}  # of an operation: points won, points to win
    for row in rows:
        won, gap = totals.get(row["operation"], (0.0, 0.0))
        totals[row["operation"]] = won + row["accuracy"] - row["accuracy_none"], gap + row["gap"]
    ways = {name: won / gap for name, (won, gap) in totals.items() if gap > 0}
    if ways:
        worst = min(ways, key=lambda name: ways[name])
        found += f"; of the way from none to the oracle {100 * sum(ways.values()) / len(ways):.0f} % on average, least " \
                 f"{100 * ways[worst]:.0f} % ({worst})"
    lines = [found]
    for control in ("random", "one_op"):
        mean, half = paired_difference([row["accuracy"] for row in rows], [row[f"accuracy_{control}"] for row in rows])
        lines.append(f"{label}: accuracy minus {control} {with_interval(mean, half, '+.1f')} points")
    return lines


def add_flags(parser: argparse.ArgumentParser, operations: Sequence[str], seeds: int, what: str) -> None:
    """The flags that all benches on planted images have; what: is trained, as --help says it."""
    shown = "all fifteen" if operations == OPERATION_NAMES else " ".join(operations)
    parser.add_argument("--operations", nargs="+", choices=OPERATION_NAMES, default=operations, metavar="NAME",
                        help=f"planted (default: {shown})")
    parser.add_argument("--seeds", type=common.positive, default=seeds, metavar="n", help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=common.seed, default=0, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=common.positive, default=30, metavar="N", help=f"of {what} (default: %(default)s)")
    parser.add_argument("--processes", type=common.positive, default=1, metavar="N",
                        help="runs side by side, one thread each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write hardware, versions and rows after every run; runs that it holds are not run again")


def add_image_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Which images; what: is trained, as --help says it."""
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="a folder <class>/*, or train/<class>/* and val/<class>/* (default: made images of 16 px)")
    parser.add_argument("--image-size", type=common.positive, metavar="N", help="pixels (default: 14, with --data 64)")
    parser.add_argument("--batch-size", type=common.positive, default=Task.batch_size, metavar="N",
                        help=f"of {what} (default: %(default)s)")


def modes_in(text: str) -> list[str]:
    modes = text.split(",")
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise argparse.ArgumentTypeError(f"there is no mode {unknown[0]!r}; modes: {', '.join(MODES)}")
    return modes


def tasks_of(args: argparse.Namespace, modes: Sequence[str] = (), options: Sequence[str] = ()) -> list[Task]:
    """Seed by seed, so that what is there when a measurement is cut short is balanced."""
    return [Task(operation, seed, tuple(modes), args.epochs, args.data, image_size(args), tuple(options), args.batch_size)
            for seed in range(args.first_seed, args.first_seed + args.seeds) for operation in dict.fromkeys(args.operations)]


def image_size(args: argparse.Namespace) -> int:
    return args.image_size or (SIDE - MARGIN if args.data is None else 64)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a file's rows were measured with, the search aside."""
    return {"epochs": args.epochs, "batch_size": args.batch_size, "image_size": image_size(args), "data": source(args.data)}


def body(args: argparse.Namespace) -> None:
    # No rows of other settings stand beside these; after a change of the search's code give another file.
    settings = {"tool": "planted", **settings_of(args), "options": args.cfg_options, "default": str(dada_settings())}
    modes = list(dict.fromkeys(mode for given in args.modes for mode in given))
    if "ddas" in modes:
        config = read_config(DDAS_CONFIG, [])
        settings["ddas"] = f"{ddas_settings(**config.search)} {dict(config.policy_optimizer)}"
    rows = rows_in(args.json, settings, later=["ddas"])
    tasks = tasks_of(args, modes, args.cfg_options)
    asked = {(task.operation, task.seed, mode) for task in tasks for mode in modes}
    tasks = [left for task in tasks if (left := still_to_run(task, rows)).modes]
    measure("planted", run, tasks, args.processes, rows, args.json, settings,
            lambda task, new: f"{task.operation}, seed {task.seed}: "
                              + "; ".join(f"{row['mode']} auc {row['auc']:.3f}, rank {row['rank']}" for row in new))
    print("  ".join(f"{name:>{max(len(name), int(width.strip('df').split('.')[0]))}}" for name, width in COLUMNS.items()))
    own = [row for row in rows if (row["operation"], row["seed"], row["mode"]) in asked]
    print("\n".join([*map(line, own), *summary(own)]))
    print(f"planted  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("planted.py", __doc__ or "",
                               "python tools/bench/planted.py --operations Rotate Invert --seeds 2 --processes 2\n"
                               "  python tools/bench/planted.py --data DIR --json results/planted.json")
    add_flags(parser, OPERATION_NAMES, 5, "the search and of the networks")
    add_image_flags(parser, "the search and of the networks")
    parser.add_argument("--modes", nargs="+", type=modes_in, default=[["default", "paper"]], metavar="MODE",
                        help=f"of {', '.join(MODES)}, with spaces or commas between (default: default paper)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value",
                        help="config entries changed in the default mode, such as search.val_every=1")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
