"""Hooks that search, pretraining and detection share: stop at NaN, progress with ETA, checkpoints written whole."""

import datetime
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from dada_det.engine.checkpoint import age, find_checkpoint
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
        step = int(first)
        if step < NEVER:
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


@HOOKS.register_module()
class AtomicCheckpoint(CheckpointHook):
    """epoch_N.pth after each epoch, written under a temporary name and renamed; then all but the newest two go.

    `last_checkpoint` beside them holds the path of the newest, where mmengine looks for it.
    """

    def __init__(self, keep: int = 2, **options: Any) -> None:
        super().__init__(interval=1, by_epoch=True, **options)
        self.keep = keep

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        path = Path(self.out_dir) / self.filename_tmpl.format(step)
        self.last_ckpt = str(path)
        if not is_main_process():
            return
        with whole_file(path) as temporary:
            runner.save_checkpoint(str(temporary.parent), temporary.name, save_optimizer=self.save_optimizer,
                                   save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=True)
        write_text(path.with_name("last_checkpoint"), str(path))
        # By time and not by number: a run that starts anew must not lose its first epochs to an older, longer run.
        for old in sorted(path.parent.glob("epoch_*.pth"), key=age)[:-self.keep]:
            old.unlink()


@HOOKS.register_module()
class StampIdentity(Hook):
    """Writes into every checkpoint which run it belongs to, so that --resume refuses another run's."""

    def __init__(self, identity: str | dict[str, Any]) -> None:
        self.identity = identity

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["identity"] = self.identity


_runs = itertools.count()
# What mmengine warns about in every run, whatever the user does.
NOISE = ("Dataset ", "The prefix is not set in metric class", '"FileClient" will be', '"HardDiskBackend" is')


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner with its log in the file only; the console keeps real warnings, and ProgressLine has it."""

    def __init__(self, *arguments: Any, experiment_name: str | None = None, **options: Any) -> None:
        # mmengine tells runs apart by the second; two of one process must not share log and loss history.
        super().__init__(*arguments, experiment_name=f"{experiment_name or 'run'}_{next(_runs)}", **options)

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        if isinstance(visualizer, dict):  # visualisers are kept by name too
            visualizer = {**visualizer, "name": self._experiment_name}
        return super().build_visualizer(visualizer)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **options: Any) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **options)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.addFilter(lambda record: not record.getMessage().startswith(NOISE))
        return logger
