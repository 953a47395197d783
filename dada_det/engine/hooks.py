"""Hooks that search, pretraining and detection share: stop at NaN, progress with ETA, checkpoints written whole."""

import datetime
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook, Hook, SyncBuffersHook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from dada_det.engine.checkpoint import age, find_checkpoint
from dada_det.engine.exact_resume import ExactResume
from dada_det.engine.faults import LoaderTimeout, explained, starting
from dada_det.errors import UserError
from dada_det.files import whole_file, write_text

NEVER = 2**62  # the step of a bad loss that has not come


def loss_of(outputs: Mapping[str, Any]) -> Any:
    """The total of a step's losses: outputs["loss"], else the sum of every entry whose name holds "loss"."""
    if "loss" in outputs:
        return outputs["loss"]
    return sum(value for name, value in outputs.items() if "loss" in name)


@HOOKS.register_module()
class StopAtNaN(Hook):
    """Stops every rank with UserError when the loss or, at the end of an epoch, a weight is NaN or infinite.

    The first bad step is kept on the device and read every step on the CPU, every `interval` steps on CUDA, and at the
    end of the epoch, before the checkpoint is written.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self.first: torch.Tensor | None = None  # first step with a bad loss, int64 []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = torch.as_tensor(loss_of(outputs or {})).detach()
        if self.first is None:
            self.first = torch.full((), NEVER, device=loss.device)
        step = torch.full_like(self.first, runner.iter + 1)
        self.first = torch.minimum(self.first, torch.where(loss.isfinite().all(), NEVER, step))
        if not loss.is_cuda or (runner.iter + 1) % self.interval == 0:
            self.stop_if_bad(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.first is not None:
            # A finite loss may still have sent the weights to infinity: such weights are no good checkpoint.
            bad = torch.stack([~parameter.detach().isfinite().all() for parameter in runner.model.parameters()]).any()
            step = torch.full_like(self.first, runner.iter)
            self.first = torch.minimum(self.first, torch.where(bad.to(self.first.device), step, NEVER))
            self.stop_if_bad(runner)

    def stop_if_bad(self, runner: Runner) -> None:
        assert self.first is not None
        first = self.first.clone()
        if dist.is_initialized():
            if dist.get_backend() == "nccl":
                first = first.cuda()
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if int(first) < NEVER:
            self.stop(runner, int(first))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        # Within an epoch, and on rank 0 alone: its end ends the others too.
        if not torch.stack([parameter.detach().isfinite().all() for parameter in runner.model.parameters()]).all():
            self.stop(runner, runner.iter + 1)

    def stop(self, runner: Runner, step: int) -> None:
        good = find_checkpoint(runner.work_dir)
        last = f"the last good checkpoint is {good}" if good else "no checkpoint had been written yet"
        raise UserError(f"the loss became NaN or infinite at step {step} (epoch {runner.epoch + 1}); {last}; "
                        "lower the learning rate and start again, or go on with --resume")


@HOOKS.register_module()
class ProgressLine(Hook):
    """Prints where a stage is, on rank 0: after the first step, every `seconds`, and at the end of each epoch.

        search  epoch 3/20  step 40/120  loss 1.234  lr 0.05  ETA 0:01:23

    `stage` heads the line; of a validation's metrics those named in `metrics` are printed (all, where empty).
    """

    priority = "BELOW_NORMAL"

    def __init__(self, stage: str, seconds: float = 10.0, metrics: Sequence[str] = ()) -> None:
        self.stage, self.seconds, self.metrics = stage, seconds, tuple(metrics)
        self.start: tuple[float, int] | None = None  # time and steps done when this process began to train
        self.last = 0.0

    def before_train(self, runner: Runner) -> None:
        self.start, self.last = (time.monotonic(), runner.iter), 0.0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        per_epoch = max(1, runner.max_iters // runner.max_epochs)
        done = runner.iter + 1
        if not self.due(done % per_epoch == 0):
            return
        assert self.start is not None
        began, steps_before = self.start
        left = round((time.monotonic() - began) / (done - steps_before) * (runner.max_iters - done))
        loss = float(torch.as_tensor(loss_of(outputs or {})).detach())
        rate = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        self.print(f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {(done - 1) % per_epoch + 1}/{per_epoch}  "
                   f"loss {loss:.4g}  lr {rate:.3g}  ETA {datetime.timedelta(seconds=left)}")

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.due(False):
            self.print(f"validation  step {batch_idx + 1}/{len(runner.val_dataloader)}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        shown = {name: value for name, value in (metrics or {}).items() if not self.metrics or name in self.metrics}
        if shown and is_main_process():
            values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            self.print(f"validation  {values}")

    def due(self, anyway: bool) -> bool:
        """Whether this is rank 0 and `seconds` have passed since the last line (or `anyway`)."""
        now = time.monotonic()
        due = is_main_process() and (anyway or now - self.last >= self.seconds)
        self.last = now if due else self.last
        return due

    def print(self, text: str) -> None:
        print(f"{self.stage}  {text}", flush=True)


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
    """mmengine's CheckpointHook (its options), with files written under a temporary name, flushed to the disk and renamed.

    Only then do older ones go, so that a kill at any moment leaves a whole one. `last_checkpoint` beside them holds the path
    of the newest, where mmengine looks for it.

    Args:
        keep: how many stay of those written every `interval` (1), epoch_N.pth or, with by_epoch=False, iter_N.pth; -1: all.
            max_keep_ckpts means the same.
        steps: after every so many steps within an epoch also iter_N.pth, which stays until the next checkpoint is on the
            disk; needs the hook ExactResume. 0: none.
    """

    def __init__(self, keep: int = 2, steps: int = 0, **options: Any) -> None:
        self.keep = options.pop("max_keep_ckpts", keep)
        super().__init__(**{"interval": 1, **options})
        self.steps, self.late = steps, False

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = LateRemoval()
        if self.steps and self.by_epoch and not any(isinstance(hook, ExactResume) for hook in runner.hooks):
            raise UserError(f"checkpoints within an epoch (steps={self.steps}) need the hook ExactResume, as mmengine would "
                            "begin the epoch again; add dict(type='ExactResume') to custom_hooks, or set steps=0")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if not (self.by_epoch and self.steps):
            return
        self.late = self.late or (runner.iter + 1) % self.steps == 0
        # Gradients that wait for more are not saved; and behind the last batch the epoch's own checkpoint comes at once.
        if self.late and runner.optim_wrapper.should_update() and (runner.iter + 1) % len(runner.train_dataloader):
            self.late = False
            for hook in runner.hooks:
                if isinstance(hook, SyncBuffersHook | EMAHook):  # the file holds those of one rank for all
                    hook.after_train_epoch(runner)
            self._write(runner, Path(self.out_dir) / f"iter_{runner.iter + 1}.pth",
                        {"epoch": runner.epoch, "iter": runner.iter + 1})

    def after_train_epoch(self, runner: Runner) -> None:
        self.late = False
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
        self.last_ckpt = str(path)
        if not is_main_process():
            return
        save_whole(runner.save_checkpoint, path.parent, path.name, save_optimizer=self.save_optimizer,
                   save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch)
        write_text(path.with_name("last_checkpoint"), str(path))
        # By time and not by number: a run that starts anew must not lose its first epochs to an older, longer run.
        written = sorted(path.parent.glob(self.filename_tmpl.format("*")), key=age)
        old = written[:-self.keep] if self.keep > 0 else []
        if self.by_epoch:
            old += [other for other in path.parent.glob("iter_*.pth") if other != path]
        for other in old:
            other.unlink()


@HOOKS.register_module()
class StampIdentity(Hook):
    """Writes into every checkpoint which run it belongs to, so that --resume refuses another run's."""

    def __init__(self, identity: str | dict[str, Any]) -> None:
        self.identity = identity

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["identity"] = self.identity


_runs = itertools.count()
# What mmengine warns about in every run, whatever the user does.
NOISE = ("Dataset ", "The prefix is not set in metric class", '"FileClient" will be', '"HardDiskBackend" is',
         "Skip advancing dataloader")  # ExactResume has done that


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner with its log in the file only; the console keeps real warnings, and ProgressLine has it.

    What the machine does to a run (engine/faults.py) it says in one sentence.
    """

    def __init__(self, *arguments: Any, experiment_name: str | None = None, **options: Any) -> None:
        # mmengine tells runs apart by the second; two of one process must not share log and loss history.
        with starting(options.get("work_dir", "its folder")):
            super().__init__(*arguments, experiment_name=f"{experiment_name or 'run'}_{next(_runs)}", **options)
        self.register_hook(LoaderTimeout())

    def train(self) -> torch.nn.Module:
        with explained(self):
            return super().train()

    def val(self) -> dict[str, Any]:
        with explained(self):
            return super().val()

    def test(self) -> dict[str, Any]:
        with explained(self):
            return super().test()

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        if isinstance(visualizer, dict):  # visualisers are kept by name too
            visualizer = {**visualizer, "name": self._experiment_name}
        return super().build_visualizer(visualizer)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **options: Any) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **options)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is said once, elsewhere
            else:
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.addFilter(lambda record: not record.getMessage().startswith(NOISE))
        return logger
