"""The paper's own ablation: the estimator (relax, gumbel, score) and the set that is searched (reduced, full).

Each search runs through its own command, search.mode=paper, on the full or the reduced training set (half of it
validates); then a network is trained from scratch on the FULL set with the policy as saved, and tested on images that
neither has seen. Beside them: the default mode, without its trial, on the same two sets, none, and random (25 sub-policies
of the same space). Runs of one seed share their images, first weights, batches and crops. All searches take the same number
of epochs, so that one on the full set takes more steps.

With --data CIFAR-10, 4,000 images or all of them searched, Wide-ResNet-40-2. Without, handwritten digits stand in for it
(scikit-learn's, tinted, 16 px; 300 train, 120 of them are the reduced set, 1,497 test; a three-layer network). More of them
would put every policy at 98 to 99 %. Rows that --json already holds are not run again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dada_det.augment.named import resolve_policy
from dada_det.augment.policy import Policy
from dada_det.commands import common
from dada_det.data.cifar import load_cifar10
from dada_det.data.memory import MemoryImages
from dada_det.engine.compare.trial import Recipe, run_trial
from dada_det.report.comparison import summarise, table
from dada_det.report.measurements import Rows
from dada_det.search.settings import ESTIMATORS, dada_settings
from measuring import measure, rows_in, run_search
from planted_images import SIDE, images_for, write_folders

SETS = ("reduced", "full")
CONTROLS = ("none", "random")
DIGITS_TRAIN = 300  # of 1,797
PAPER = ["search.mode=paper"]  # configs/search_cifar10_paper.py over search_cifar10.py


@dataclass(frozen=True)
class Setup:
    """How one data set is searched and trained on."""

    config: str  # of the search
    search_epochs: int
    search_batch: int
    reduced: int  # images of the reduced set
    recipe: Recipe  # of the networks trained from scratch


# Half of 120 in batches of 16, 80 times: 240 steps; the reduced CIFAR-10 has 300.
DIGITS = Setup("configs/debug/search.py", search_epochs=80, search_batch=16, reduced=120, recipe=Recipe(
    "convnet", classes=10, image_size=14, epochs=60, batch_size=50, lr=0.05, weight_decay=2e-4, mirror=False))
# The networks get no Cutout on top of their policy.
CIFAR10 = Setup("configs/search_cifar10.py", search_epochs=20, search_batch=128, reduced=4000, recipe=Recipe(
    "wide_resnet40_2", classes=10, image_size=32, epochs=200, batch_size=128, lr=0.1, weight_decay=2e-4, mirror=True,
    padding=4))


@dataclass(frozen=True)
class Task:
    """One run: a search, or a control, and the network trained with its policy."""

    setup: Setup
    data: Path | None  # CIFAR-10's folder; None: digits
    searched: str  # of SETS; "-" for a control
    estimator: str  # of ESTIMATORS; "default": the default mode; of CONTROLS
    seed: int

    @property
    def label(self) -> str:
        return f"{self.searched:7} {self.estimator}"

    def is_of(self, row: dict[str, Any]) -> bool:
        return (row["set"], row["estimator"], row["seed"]) == (self.searched, self.estimator, self.seed)


def run(task: Task) -> Rows:
    """One row: what a network reached, and how long it took."""
    train, test = full_set(task.data, task.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        if task.estimator in CONTROLS:
            policy = resolve_policy(task.estimator, task.seed)
        else:
            run_search(search_flags(task, train, folder))
            policy = Policy.load(folder / "search/policy.json")
        found = time.monotonic()
        figures = run_trial(train, test, policy=policy, recipe=task.setup.recipe, seed=task.seed, work_dir=folder / "trial",
                            quiet=True)
    return [{"set": task.searched, "estimator": task.estimator, "seed": task.seed, "top1": figures["top1"],
             "search_seconds": round(found - began, 1), "train_seconds": round(time.monotonic() - found, 1)}]


def full_set(data: Path | None, seed: int) -> tuple[MemoryImages, MemoryImages]:
    """All training images and the test images; of the digits another split for each seed."""
    if data is not None:
        (train, train_labels, _), (test, test_labels, _) = (load_cifar10(data, part) for part in (True, False))
        return MemoryImages(train, train_labels), MemoryImages(test, test_labels)
    images, labels_N = images_for("none", seed, None, SIDE)
    return (MemoryImages(images[:DIGITS_TRAIN], labels_N[:DIGITS_TRAIN]),
            MemoryImages(images[DIGITS_TRAIN:], labels_N[DIGITS_TRAIN:]))


def search_flags(task: Task, train: MemoryImages, folder: Path) -> list[str]:
    """The flags of the search command; the digits that it is to see are written into `folder` first."""
    setup = task.setup
    shown = setup.reduced if task.searched == "reduced" else len(train)
    options = [f"classifier.name={setup.recipe.model}", f"mirror={setup.recipe.mirror}"]
    if task.estimator in ESTIMATORS:
        options += [*PAPER, f"search.estimator={task.estimator}"]
    if task.data is not None:
        options.append(f"data.images_per_class={shown // setup.recipe.classes}")  # CIFAR-10's classes are equally large
    else:
        write_folders(folder / "images", train=MemoryImages(train.images_NCHW[:shown], train.labels_N[:shown]))
    return ["--config", setup.config, "--data", str(task.data or folder / "images"), "--work-dir", str(folder / "search"),
            "--image-size", str(setup.recipe.image_size), "--batch-size", str(setup.search_batch),
            "--epochs", str(setup.search_epochs), "--seed", str(task.seed), "--no-trial", "--cfg-options", *options]


def tasks_for(setup: Setup, data: Path | None, estimators: Sequence[str], seeds: int) -> list[Task]:
    """Seed by seed, so that what is there when a measurement is cut short is paired."""
    arms = [("-", control) for control in CONTROLS] + [(searched, estimator) for searched in SETS
                                                       for estimator in (*estimators, "default")]
    return [Task(setup, data, *arm, seed) for seed in range(seeds) for arm in arms]


def body(args: argparse.Namespace) -> None:
    full_set(args.data, 0)  # a missing or damaged file is said here
    setup = DIGITS if args.data is None else CIFAR10
    setup = replace(setup, search_epochs=args.search_epochs or setup.search_epochs,
                    recipe=replace(setup.recipe, epochs=args.epochs or setup.recipe.epochs))
    tasks = tasks_for(setup, args.data, list(dict.fromkeys(args.estimators)), args.seeds)
    settings = {"data": args.data.name if args.data else None, "search_epochs": setup.search_epochs,
                "epochs": setup.recipe.epochs, "default": str(dada_settings())}
    rows = rows_in(args.json, settings)
    left = [task for task in tasks if not any(task.is_of(row) for row in rows)]
    measure("paper_ablation", run, left, args.processes, rows, args.json, settings,
            lambda task, new: f"{task.label}, seed {task.seed}: top-1 {new[0]['top1']:.2f} %, "
                              f"search {new[0]['search_seconds']:.0f} s, training {new[0]['train_seconds']:.0f} s")
    print(result(rows, tasks))
    print(f"paper_ablation  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def result(rows: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> str:
    """A line for each set and estimator: n, mean top-1, its 95 % interval, the paired difference to random, its interval."""
    accuracies: dict[str, list[float]] = {}
    for task in tasks:  # in the order of seeds, whichever ended first
        name = task.estimator if task.estimator in CONTROLS else task.label
        accuracies.setdefault(name, []).extend(row["top1"] for row in rows if task.is_of(row))
    return table(summarise(accuracies))


def main(argv: list[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("paper_ablation.py", __doc__ or "",
                               "python tools/bench/paper_ablation.py --processes 2 --json results/paper_ablation.json")
    parser.add_argument("--data", type=Path, metavar="DIR", help="CIFAR-10's binary files (default: digits)")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS),
                        help="of the paper mode (default: all)")
    parser.add_argument("--seeds", type=common.positive, default=5, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=common.positive, metavar="N", help="of the networks trained from scratch (default: "
                        f"{DIGITS.recipe.epochs}, with --data {CIFAR10.recipe.epochs})")
    parser.add_argument("--search-epochs", type=common.positive, metavar="N", help="of the searches (default: "
                        f"{DIGITS.search_epochs}, with --data {CIFAR10.search_epochs}, the paper's)")
    parser.add_argument("--processes", type=common.positive, default=1, metavar="N",
                        help="runs side by side, one thread each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write hardware, versions and rows, after every run")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
