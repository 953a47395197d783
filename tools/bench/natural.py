"""Problems that nobody planted: what a search hands over is worth beside the fixed policies, on images that nobody saw.

    python tools/bench/natural.py --problems gtsrb12 --seeds 5 --processes 2 --json results/natural.json

Problems (natural_problems.py, natural_detection.py) come from the folder of real data, DADA_DET_SHARED (default ../shared).
Each arm is a whole training from the same first weights with the same batches and crops, tested in top-1 %, or box AP:
none, random, uniform, one-op, trivial, rand, and learned, which is what the search command has written. With a shift of
domain also each as `<arm>+t`, where the labelled images of the target train too (the search then knows: --target-trains).

--truth   each operation alone, probability 1/2, at two strengths: what a search could have found
--noise   the arms on the images of the first seed, with --seeds other seeds of the training alone: standard deviations
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dada_det.augment.named import AnyPolicy, resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.commands import common
from dada_det.engine.compare.trial import Recipe, run_trial
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json
from dada_det.report.measurements import Rows
from dada_det.search.settings import settings_for
from measuring import measure, rows_in, run_search
from natural_problems import PROBLEMS, Problem, start_weights, write_folders
from natural_table import WITH_TARGET, noise_lines, table, truth_lines

FIXED = ("none", "random", "uniform", "one-op", "trivial", "rand")
ARMS = (*FIXED, "learned")
STRENGTHS = (0.6, 0.9)
ONE_STRENGTH = ("AutoContrast", "Invert", "Equalize")  # which have no magnitude
TRUTH = "results/natural_truth.json"
WORK_DIR = "work_dirs/natural"
CONFIG = "configs/search_imagenet.py"


@dataclass(frozen=True)
class Task:
    """One training, and before it the search of an arm `learned`.

    seed: of the images, of the search and of the policy's own choices; training_seed: of the training.
    """

    problem: str
    arm: str
    seed: int
    training_seed: int
    work_dir: Path
    options: tuple[str, ...] = ()  # config entries changed in the search

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.problem, self.arm, self.seed, self.training_seed


def run(task: Task) -> Rows:
    """The task's row."""
    problem = PROBLEMS[task.problem]
    folder = make_folder(task.work_dir / f"{task.problem}-s{task.seed}")
    began = time.process_time()
    facts: dict[str, Any] = {}
    if task.arm.startswith("learned"):
        policy, facts = searched(problem, task, folder)
    else:
        policy = policy_of(task.arm.removesuffix(WITH_TARGET), task.seed)
    searching = time.process_time() - began
    parts = problem.parts(task.seed)
    train = parts.train
    if task.arm.endswith(WITH_TARGET):
        assert parts.target is not None
        train = train + parts.target
    recipe = recipe_of(problem)
    score = run_trial(train, parts.test, policy=policy, recipe=recipe, seed=task.training_seed, quiet=True,
                      work_dir=folder / f"{task.arm}-{task.training_seed}")["top1"]
    return [{"problem": task.problem, "arm": task.arm, "seed": task.seed, "training_seed": task.training_seed,
             "score": score, **facts, "search_seconds": round(searching),
             "seconds": round(time.process_time() - began - searching)}]


def policy_of(name: str, seed: int) -> AnyPolicy:
    """A fixed policy, or of Operation@magnitude that operation alone with probability 1/2."""
    operation, at, magnitude = name.partition("@")
    if not at:
        return resolve_policy(name, seed)
    return Policy("strength", (SubPolicy(1.0, (Operation(operation, 0.5, float(magnitude)),)),), {"source": name})


def recipe_of(problem: Problem) -> Recipe:
    """The problem's recipe with the file of its first weights in the place of their name."""
    return replace(problem.recipe, weights=start_weights()) if problem.recipe.weights else problem.recipe


def searched(problem: Problem, task: Task, folder: Path) -> tuple[AnyPolicy, dict[str, Any]]:
    """(the policy that the search command has written, the facts of the row)."""
    run_search(search_argv(problem, task, folder))
    found = folder / f"search-{task.arm}"
    facts: dict[str, Any] = {"search": search_of(task.options)}
    uses = {entry["name"]: entry["use"] for entry in read_json(found / "search.json", "search's result")["operations"]}
    facts["use"] = {name: round(uses[name], 4) for name in uses}
    if (found / "verdict.json").exists():
        facts["verdict"] = read_json(found / "verdict.json", "verdict")
    return Policy.load(found / "policy.json"), facts


def search_argv(problem: Problem, task: Task, folder: Path) -> list[str]:
    """The search command's flags; the problem's images are written to `folder`/data once."""
    parts, recipe, data = problem.parts(task.seed), problem.recipe, folder / "data"
    if not (data / "whole").exists():
        write_folders(data, train=parts.train, **({} if parts.target is None else {"target": parts.target}))
        (data / "whole").touch()
    flags = ["--config", CONFIG, "--data", str(data), "--work-dir", str(folder / f"search-{task.arm}"),
             "--epochs", str(recipe.epochs), "--batch-size", str(recipe.batch_size), "--image-size", str(recipe.image_size),
             "--seed", str(task.seed)]
    if parts.target is not None:
        flags += ["--val-data", str(data / "target")]
    if task.arm.endswith(WITH_TARGET):
        flags.append("--target-trains")
    if recipe.weights:
        flags += ["--weights", start_weights()]
    return [*flags, "--cfg-options", f"classifier.name={recipe.model}", f"mirror={recipe.mirror}",
            f"base_batch_size={recipe.batch_size}", f"weights_optimizer.lr={recipe.lr}",
            f"weights_optimizer.weight_decay={recipe.weight_decay}", *task.options]


def search_of(options: Sequence[str]) -> str:
    """What a row says of the search that it is of."""
    return " ".join([str(settings_for()), *options])


def tasks_of(args: argparse.Namespace) -> list[Task]:
    """Seed by seed, so that what is there when a measurement is cut short is balanced."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    tasks = []
    for seed in seeds:
        for name in args.problems:
            data_seed = args.first_seed if args.noise else seed
            tasks += [Task(name, arm, data_seed, seed, args.work_dir, tuple(args.cfg_options))
                      for arm in arms_of(PROBLEMS[name], args)]
    return tasks


def arms_of(problem: Problem, args: argparse.Namespace) -> list[str]:
    if args.truth:
        return ["none", *(f"{name}@{magnitude}" for name in OPERATION_NAMES
                          for magnitude in STRENGTHS[:1 if name in ONE_STRENGTH else None])]
    wanted = args.arms or (["none", "trivial"] if args.noise else
                           [*ARMS, *(f"{arm}{WITH_TARGET}" for arm in ARMS)])
    return [arm for arm in wanted if problem.shift or not arm.endswith(WITH_TARGET)]


def body(args: argparse.Namespace) -> None:
    path = args.json or (Path(TRUTH) if args.truth else None)
    settings = {"tool": "natural", "recipes": {name: asdict(problem.recipe) for name, problem in PROBLEMS.items()}}
    rows = rows_in(path, settings)
    if other := [row for row in rows if row.get("search", search_of(args.cfg_options)) != search_of(args.cfg_options)]:
        raise UserError(f"{path} holds {len(other)} rows of another search; give another --json, or take them out")
    tasks = tasks_of(args)
    asked = {task.key for task in tasks}
    known = {(row["problem"], row["arm"], row["seed"], row["training_seed"]) for row in rows}
    measure("natural", run, [task for task in tasks if task.key not in known], args.processes, rows, path, settings,
            lambda task, new: f"{task.problem} {task.arm}, seed {task.training_seed}: {new[0]['score']:.1f}")
    own = [row for row in rows if (row["problem"], row["arm"], row["seed"], row["training_seed"]) in asked]
    truth = [] if args.truth else rows_in(Path(TRUTH), settings) if Path(TRUTH).exists() else []
    print("\n".join(truth_lines(own) if args.truth else noise_lines(own) if args.noise else table(own, truth)))
    print(f"natural  done: {len(rows)} rows " + (f"in {path}" if path else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("natural.py", __doc__ or "",
                               "python tools/bench/natural.py --problems gtsrb12 digits-few --seeds 5 --json FILE\n"
                               "  python tools/bench/natural.py --truth --problems gtsrb12 --seeds 2")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME",
                        help=f"of {', '.join(PROBLEMS)} (default: all)")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *(f"{arm}{WITH_TARGET}" for arm in ARMS)], metavar="NAME",
                        help=f"of {', '.join(ARMS)}, each also with {WITH_TARGET} (default: all; of --noise: none trivial)")
    parser.add_argument("--seeds", type=common.positive, default=5, metavar="n", help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=common.seed, default=0, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--truth", action="store_true", help=f"each operation alone, kept in {TRUTH} by default")
    parser.add_argument("--noise", action="store_true", help="other seeds of the training, the same images and policy")
    parser.add_argument("--processes", type=common.positive, default=1, metavar="N",
                        help="runs side by side, one thread each (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=Path(WORK_DIR), metavar="W", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write hardware, versions and rows after every run; runs that it holds are not run again")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="config entries of the search")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
