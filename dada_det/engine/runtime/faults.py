"""Faults of the machine while a stage runs, each in one sentence that names the last checkpoint.

They are: a full or read-only disk, data that has vanished, a loader process that died or hangs, another process of the run
that died.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dada_det.engine.runtime.checkpoint import find_checkpoint, how_to_go_on
from dada_det.errors import UserError

LOADER_SECONDS = 600  # a loader process that gives nothing for so long hangs
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO)
DEAD_LOADER = ("is killed by signal", "exited unexpectedly")  # in what torch's DataLoader raises
LOST = "another process of this run has ended or no longer answers"  # common.start looks for it
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe",
             "Socket closed", "Application timeout", "gloo")  # in what torch.distributed raises


@HOOKS.register_module()
class LoaderTimeout(Hook):
    """Gives every loader with worker processes a timeout of LOADER_SECONDS, after which torch raises."""

    def before_train(self, runner: Runner) -> None:
        self.limit(runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        self.limit(runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        self.limit(runner.test_dataloader)

    def limit(self, loader: Any) -> None:
        if getattr(loader, "num_workers", 0) > 0 and loader.timeout == 0:
            loader.timeout = LOADER_SECONDS


@contextmanager
def starting(work_dir: str | Path) -> Iterator[None]:
    """Turns an OSError of a Runner that cannot write its log or config while it is built into UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(f"cannot write {error.filename or f'into {work_dir}'}: {error.strerror}; make room or choose "
                        "another --work-dir") from error


@contextmanager
def explained(runner: Runner) -> Iterator[None]:
    """Turns what the block raises into UserError where it is a fault of the machine; anything else passes through."""
    try:
        yield
    except UserError as error:
        # A loader process wraps what it raises into its traceback; only the sentence is for the user.
        sentence = str(error).rpartition("UserError: ")[2].strip()
        fault = gone(runner)
        if fault is None and isinstance(error.__cause__, OSError) and sentence.startswith("cannot write"):
            fault = sentence.rpartition(";")[0]
        raise UserError(with_advice(fault, runner) if fault else sentence) from error
    except Exception as error:
        fault = gone(runner)
        if fault is None and isinstance(error, OSError):
            fault = refused(error, runner)
        if fault is None and isinstance(error, RuntimeError):
            fault = died(error)
        if fault is None:
            raise
        raise UserError(with_advice(fault, runner)) from error


def with_advice(fault: str, runner: Runner) -> str:
    good = find_checkpoint(runner.work_dir)
    last = f"the last checkpoint is {good}" if good else "no checkpoint had been written yet"
    return f"{fault}; {last}; mend that and {how_to_go_on()}"


def gone(runner: Runner) -> str | None:
    """The sentence on a folder of images that is no longer there; None where all are."""
    for folder in {folder: None for loop in (runner._train_loop, runner._val_loop, runner._test_loop)
                   for folder in folders_of(getattr(getattr(loop, "dataloader", None), "dataset", None))}:
        if ":/" not in str(folder) and not folder.is_dir():  # s3:/ and the like are no folders of this machine
            return f"the data folder {folder} has vanished"
    return None


def folders_of(dataset: Any) -> Iterator[Path]:
    """The folders that a data set reads images from: ours, MMDetection's, and those inside their wrappers."""
    for part in [*getattr(dataset, "datasets", []), getattr(dataset, "dataset", None)]:
        if part is not None and part is not dataset:
            yield from folders_of(part)
    if root := getattr(getattr(dataset, "images", None), "root", None):
        yield Path(root)
    prefix = getattr(dataset, "data_prefix", None)
    if isinstance(prefix, dict) and isinstance(prefix.get("img"), str):
        yield Path(prefix["img"])


def refused(error: OSError, runner: Runner) -> str | None:
    """The sentence on a file that could not be written or read."""
    if error.errno in CANNOT_WRITE:
        return f"cannot write {error.filename or f'into {runner.work_dir}'}: {error.strerror}"
    if isinstance(error, FileNotFoundError):  # from a loader process it comes as a traceback, whose last line says it
        return f"a file of the data has vanished ({str(error).strip().splitlines()[-1]})"
    return None


def died(error: RuntimeError) -> str | None:
    """The sentence on a process that died or hangs: one that loads, or one of the others that train."""
    said = str(error)
    if any(sign in said for sign in DEAD_LOADER):
        return f"a process that loads images was killed, mostly for want of memory ({said.splitlines()[0].rstrip('. ')})"
    if "DataLoader timed out" in said:
        return f"a process that loads images has given nothing for {LOADER_SECONDS} seconds"
    if isinstance(error, dist.DistError) or (dist.is_initialized() and any(sign in said for sign in LOST_PEER)):
        return f"{LOST} ({said.strip().splitlines()[0]})"
    return None
