"""Many trials under one recipe, one after another or side by side, each in a folder of its own."""

import datetime
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dada_det.augment.named import AnyPolicy
from dada_det.data.memory import MemoryImages
from dada_det.engine.compare.trial import Recipe, data_hash, finished, identity_of, run_trial
from dada_det.engine.runtime.checkpoint import SAME_COMMAND, goes_on_by
from dada_det.engine.runtime.processes import side_by_side
from dada_det.errors import UserError


@dataclass(frozen=True)
class Run:
    """One row of a comparison: the policy under the name `label`, with one seed."""

    label: str
    seed: int
    policy: AnyPolicy

    def folder(self, work_dir: Path) -> Path:
        return work_dir / "runs" / f"{self.label}-s{self.seed}"


def run_trials(runs: Sequence[Run], train: MemoryImages, test: MemoryImages, recipe: Recipe, work_dir: Path,
               processes: int) -> None:
    """Every run that has not ended yet, in run.folder(work_dir); a line for each, with what is left of the time.

    Raises:
        UserError: a folder holds a trial with other settings (before the first run), or a trial breaks off.
    """
    data = data_hash(train, test)
    left = [run for run in runs
            if finished(run.folder(work_dir), identity_of(data, run.policy, recipe, run.seed)) is None]
    if len(left) < len(runs):
        print(f"compare  {len(runs) - len(left)} of {len(runs)} runs are done already and skipped", flush=True)
    began = time.monotonic()
    steps = one_by_one(left, train, test, recipe, work_dir) if processes == 1 or len(left) < 2 else \
        in_processes(left, train, test, recipe, work_dir, min(processes, len(left)))
    for done, (run, figures) in enumerate(steps, 1):
        rest = datetime.timedelta(seconds=round((time.monotonic() - began) / done * (len(left) - done)))
        print(f"compare  run {len(runs) - len(left) + done}/{len(runs)}  {run.label}, seed {run.seed}: top-1 "
              f"{figures['top1']:.2f} %  ETA {rest}", flush=True)


Result = tuple[Run, dict[str, float]]


def one_by_one(runs: Sequence[Run], train: MemoryImages, test: MemoryImages, recipe: Recipe,
               work_dir: Path) -> Iterator[Result]:
    for run in runs:
        yield run, one(run, train, test, recipe, work_dir)


def in_processes(runs: Sequence[Run], train: MemoryImages, test: MemoryImages, recipe: Recipe, work_dir: Path,
                 processes: int) -> Iterator[Result]:
    """The same in `processes` processes that share the cores; the images reach them through one file, mapped by all."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    images = work_dir / ".images.pt"
    try:
        write_images([train.images_NCHW, train.labels_N, test.images_NCHW, test.labels_N], images)
        yield from side_by_side(partial(work, recipe=recipe, work_dir=work_dir), runs, processes, start, (images, threads))
    finally:
        images.unlink(missing_ok=True)


def write_images(tensors: Sequence[torch.Tensor], path: Path) -> None:
    """Raises UserError where the disk does not take them."""
    try:
        with open(path, "wb") as file:  # by a file's name torch.save keeps the reason to itself
            torch.save(list(tensors), file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; make room or choose another --work-dir") from error


def one(run: Run, train: MemoryImages, test: MemoryImages, recipe: Recipe, work_dir: Path) -> dict[str, float]:
    try:
        with goes_on_by(SAME_COMMAND):
            return run_trial(train, test, policy=run.policy, recipe=recipe, seed=run.seed, work_dir=run.folder(work_dir),
                             resume=True)
    except UserError as error:
        raise UserError(f"{run.label}, seed {run.seed}: {error}") from error


_images: list[torch.Tensor] = []  # of a worker process


def start(images: Path, threads: int) -> None:
    """What a worker process does before its first trial."""
    torch.set_num_threads(threads)
    _images.extend(torch.load(images, mmap=True, weights_only=True))


def work(run: Run, recipe: Recipe, work_dir: Path) -> dict[str, float]:
    return one(run, MemoryImages(*_images[:2]), MemoryImages(*_images[2:]), recipe, work_dir)
