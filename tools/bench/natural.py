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
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from small_maps import small_maps

from dada_det.augment.named import AnyPolicy, resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy, canonical_sha256
from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, write_json
from dada_det.report.measurements import Rows
from dada_det.search.candidates import FAMILIES, families
from dada_det.search.settings import dada_settings
from measuring import measure, rows_in, run_search
from natural_detection import NUCLEI, DetectionProblem
from natural_problems import PROBLEMS as CLASSIFICATION
from natural_problems import Problem
from natural_table import FIXED, LEARNED, WITH_TARGET, noise_lines, table, truth_lines

PROBLEMS: dict[str, Problem | DetectionProblem] = {**CLASSIFICATION, NUCLEI.name: NUCLEI}

CANDIDATES = ("aligned", *FAMILIES)  # what else the trial of a search trains
ARMS = (*FIXED, LEARNED)
NAMES = (*ARMS, *CANDIDATES)
IMAGES_ALONE = ("trivial", "rand")  # torchvision's, which leave the boxes where they were
STRENGTHS = (0.6, 0.9)
ONE_STRENGTH = ("AutoContrast", "Invert", "Equalize")  # which have no magnitude
TRUTH = "results/natural_truth.json"
WORK_DIR = "work_dirs/natural"


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
    def fixed(self) -> str:
        """The policy's name."""
        return self.arm.removesuffix(WITH_TARGET)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.problem, self.arm, self.seed, self.training_seed


def run(task: Task) -> Rows:
    """The task's row."""
    torch.set_flush_denormal(True)  # a training that has fitted its images slows down by half otherwise
    folder = make_folder(task.work_dir / f"{task.problem}-s{task.seed}")
    began = time.process_time()
    with small_maps():
        policy, facts = searched(task, folder) if task.arm.startswith(LEARNED) else (policy_for(task, folder), {})
        searching = time.process_time() - began
        score = score_of(policy, task, folder)
    return [{"problem": task.problem, "arm": task.arm, "seed": task.seed, "training_seed": task.training_seed,
             "score": score, **facts, **({"search_seconds": round(searching)} if facts else {}),
             "seconds": round(time.process_time() - began - searching)}]


def score_of(policy: AnyPolicy, task: Task, folder: Path) -> float:
    """The score of a training; two arms with the same policy (what is handed over is a candidate too) share one."""
    ending = WITH_TARGET if task.arm.endswith(WITH_TARGET) else ""
    problem = PROBLEMS[task.problem]
    own = canonical_sha256({"policy": what_it_does(policy), "recipe": asdict(problem.recipe), "arm": ending})[:16]
    result = folder / f"{own}-{task.training_seed}.json"
    if not result.exists():
        score = problem.score(policy, task.seed, task.training_seed, bool(ending), result.with_suffix(""))
        write_json(result, {"score": score})
    return float(read_json(result, "score")["score"])


def what_it_does(policy: AnyPolicy) -> str:
    """The same for policies that differ in their provenance alone, or in what their file says of flips."""
    if isinstance(policy, Policy):
        return replace(policy, mirror=None).sha256
    return "none" if policy is None else policy.name


def policy_for(task: Task, folder: Path) -> AnyPolicy:
    """What the task trains with; what alignment proposed is read from the search of the same seed, which must have run."""
    if task.fixed != "aligned":
        return policy_of(task.fixed, task.seed)
    found = search_folder(folder, LEARNED + task.arm.removeprefix("aligned")) / "proposal.json"
    if not found.with_name("policy.json").exists():  # which a search writes last; the proposal changes until alignment ends
        raise UserError(f"the arm {task.arm} needs a whole search in {found.parent}; measure the arm {LEARNED} before it")
    return resolve_policy(str(found), task.seed)


def search_folder(folder: Path, arm: str) -> Path:
    """The work folder of a search, in that of its problem and seed."""
    return folder / f"search-{arm}"


def policy_of(name: str, seed: int) -> AnyPolicy:
    """A fixed policy, a family of the trial, or of Operation@magnitude that operation alone with probability 1/2."""
    operation, at, magnitude = name.partition("@")
    if name in FAMILIES:
        return families()[name]
    if not at:
        return resolve_policy(name, seed)
    return Policy("strength", (SubPolicy(1.0, (Operation(operation, 0.5, float(magnitude)),)),), {"source": name})


def searched(task: Task, folder: Path) -> tuple[AnyPolicy, dict[str, Any]]:
    """(the policy that the search command has written, the facts of the row)."""
    found = search_folder(folder, task.arm)
    run_search(search_argv(task, folder / "data", found))
    facts: dict[str, Any] = {"search": search_of(task.options)}
    for file, entry, name in (("search.json", "use", "use"), ("effects.json", "effect", "effects")):
        if (found / file).exists():  # of the alignment, and of the trial
            operations = read_json(found / file, "search's result")["operations"]
            facts[name] = {row["name"]: round(row[entry], 4) for row in operations}
    if (found / "verdict.json").exists():
        facts["verdict"] = read_json(found / "verdict.json", "verdict")
    return resolve_policy(str(found / "policy.json"), task.seed), facts


def search_argv(task: Task, data: Path, work_dir: Path) -> list[str]:
    """The search command's flags; the problem's images are written to `data`."""
    problem = PROBLEMS[task.problem]
    recipe = problem.recipe
    return [*problem.search_flags(task.seed, data), "--work-dir", str(work_dir), "--epochs", str(recipe.epochs),
            "--batch-size", str(recipe.batch_size), "--image-size", str(recipe.image_size), "--seed", str(task.seed),
            *(["--target-trains"] if task.arm.endswith(WITH_TARGET) else []),
            "--cfg-options", *problem.search_options(data), *task.options]


def search_of(options: Sequence[str]) -> str:
    """What a row says of the search that it is of."""
    return " ".join([str(dada_settings()), *options])


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


def arms_of(problem: Problem | DetectionProblem, args: argparse.Namespace) -> list[str]:
    if args.truth:
        return ["none", *(f"{name}@{magnitude}" for name in OPERATION_NAMES
                          for magnitude in STRENGTHS[:1 if name in ONE_STRENGTH else None])]
    wanted = args.arms or (["none", "trivial"] if args.noise else
                           [*ARMS, *(f"{arm}{WITH_TARGET}" for arm in ARMS)])
    return [arm for arm in wanted if (problem.shift or not arm.endswith(WITH_TARGET))
            and not (problem is NUCLEI and arm.removesuffix(WITH_TARGET) in IMAGES_ALONE)]


def arm_of(text: str) -> str:
    """An arm's name, or Operation@magnitude, for that operation alone."""
    name = text.removesuffix(WITH_TARGET)
    operation, at, magnitude = name.partition("@")
    if name in NAMES or (at and operation in OPERATION_NAMES and re.fullmatch(r"0?\.\d+|[01](\.0*)?", magnitude)):
        return text
    raise argparse.ArgumentTypeError(f"there is no arm {text!r}; give one of {', '.join(NAMES)}, or Rotate@0.6 and the like")


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
    print("\n".join(truth_lines(own) if args.truth else noise_lines(own) if args.noise else table(own, truth_of(settings))))
    print(f"natural  done: {len(rows)} rows " + (f"in {path}" if path else "(not kept: no --json)"))


def truth_of(settings: dict[str, Any]) -> Rows:
    """The rows of TRUTH; none where there is no such file, or one of other recipes, with which no search is compared."""
    try:
        return rows_in(Path(TRUTH), settings)
    except UserError:
        return []


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("natural.py", __doc__ or "",
                               "python tools/bench/natural.py --problems gtsrb12 digits-few --seeds 5 --json FILE\n"
                               "  python tools/bench/natural.py --truth --problems gtsrb12 --seeds 2")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME",
                        help=f"of {', '.join(PROBLEMS)} (default: all)")
    parser.add_argument("--arms", nargs="+", type=arm_of, metavar="NAME",
                        help=f"of {', '.join(NAMES)}, or Operation@magnitude, each also with {WITH_TARGET} (default: "
                        f"{', '.join(ARMS)}; of --noise: none trivial)")
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
