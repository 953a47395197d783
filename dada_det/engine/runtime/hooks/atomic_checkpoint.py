"""Checkpoints that are whole or not there."""

import functools
import os
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook, SyncBuffersHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dada_det.engine.runtime.exact_resume import ExactResume
from dada_det.errors import UserError
from dada_det.files import whole_file, write_text

WRITTEN = "checkpoints_written"  # what the message hub, which mmengine saves and restores, calls AtomicCheckpoint.written


def save_whole(save: Callable[..., None], folder: str | Path, filename: str, **options: Any) -> None:
    """`save(folder, filename, **options)` on rank 0, under another name until the file is on the disk."""
    if is_main_process():
        with whole_file(Path(folder, filename)) as temporary:
            save(str(temporary.parent), temporary.name, **options)
            with open(temporary, "rb") as file:
                os.fsync(file)


class LateRemoval(LocalBackend):
    """Removes files only when told to: mmengine's hook would remove the old best checkpoint before it writes the new."""

    def __init__(self) -> None:
        self.doomed: list[Path] = []

    def remove(self, path: str | Path) -> None:
        self.doomed.append(Path(path))

    def flush(self, kept: Iterable[Path]) -> None:
        kept = set(kept)
        for path in self.doomed:
            if path not in kept:
                path.unlink(missing_ok=True)
        self.doomed.clear()


@HOOKS.register_module()
class AtomicCheckpoint(CheckpointHook):
    """mmengine's CheckpointHook, with files written under a temporary name, flushed to the disk and renamed.

    Older checkpoints are removed only after that, so a kill at any moment leaves a whole one. Only those that this run has
    written are removed, before a resume too: each checkpoint holds the names of the others. `last_checkpoint` holds the
    path of the newest, where mmengine looks for it. Other options are CheckpointHook's.

    Args:
        keep: how many stay of those written every `interval` (1): epoch_N.pth or, with by_epoch=False, iter_N.pth; -1: all.
            max_keep_ckpts means the same.
        steps: write iter_N.pth after every so many steps within an epoch too. It stays until the next checkpoint is on
            the disk. Needs the hook ExactResume. 0: none.
        seconds: write no checkpoint after an epoch that ends sooner than this after the last checkpoint, except after the
            first and the last epoch.
    """

    def __init__(self, keep: int = 2, steps: int = 0, seconds: float = 0, **options: Any) -> None:
        self.keep = options.pop("max_keep_ckpts", keep)
        super().__init__(**{"interval": 1, **options})
        self.steps, self.late = steps, False
        self.written: list[str] = []  # names of the checkpoints of this run that are there, the newest last
        self.seconds, self.last_time = seconds, -float("inf")

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = LateRemoval()
        here = Path(runner._load_from or "").parent.resolve() == Path(self.out_dir).resolve()  # None: nothing was loaded
        if runner._resume and here and WRITTEN in runner.message_hub.runtime_info:
            self.written = list(runner.message_hub.get_info(WRITTEN))
        if self.steps and self.by_epoch and not any(isinstance(hook, ExactResume) for hook in runner.hooks):
            raise UserError(f"checkpoints within an epoch (steps={self.steps}) need the hook ExactResume, as mmengine would "
                            "begin the epoch again; add dict(type='ExactResume') to custom_hooks, or set steps=0")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if not (self.by_epoch and self.steps):
            return
        self.late = self.late or (runner.iter + 1) % self.steps == 0
        # Accumulated gradients of several processes are not saved: wait for an update. After the last batch the epoch's own
        # checkpoint follows.
        if self.late and runner.optim_wrapper.should_update() and (runner.iter + 1) % len(runner.train_dataloader):
            self.late = False
            for hook in runner.hooks:
                if isinstance(hook, SyncBuffersHook | EMAHook):  # the file holds those of one rank for all
                    hook.after_train_epoch(runner)
            self._write(runner, Path(self.out_dir) / f"iter_{runner.iter + 1}.pth",
                        {"epoch": runner.epoch, "iter": runner.iter + 1})

    def after_train_epoch(self, runner: Runner) -> None:
        self.late = False
        if time.monotonic() - self.last_time >= self.seconds or self.is_last_train_epoch(runner):
            super().after_train_epoch(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self._write(runner, Path(self.out_dir) / self.filename_tmpl.format(step), meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        plain = runner.save_checkpoint
        runner.save_checkpoint = functools.partial(save_whole, plain)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            runner.save_checkpoint = plain
        best = [getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()]
        self.file_backend.flush(Path(path) for path in best if path)

    def _write(self, runner: Runner, path: Path, meta: dict[str, Any]) -> None:
        self.last_ckpt, self.last_time = str(path), time.monotonic()
        self.written = [*(name for name in self.written if name != path.name), path.name]
        runner.message_hub.update_info(WRITTEN, list(self.written))
        if is_main_process():
            save_whole(runner.save_checkpoint, path.parent, path.name, save_optimizer=self.save_optimizer,
                       save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch)
            write_text(path.with_name("last_checkpoint"), str(path))
        regular = [name for name in self.written if fnmatch(name, self.filename_tmpl.format("*"))]
        old = regular[:-self.keep] if self.keep > 0 else []
        if self.by_epoch:
            old += [name for name in self.written if fnmatch(name, "iter_*.pth") and name != path.name]
        for name in old:
            self.written.remove(name)
            if is_main_process():
                path.with_name(name).unlink(missing_ok=True)
