"""Stops a run whose loss or weights are no longer finite."""

from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dada_det.engine.runtime.checkpoint import find_checkpoint, how_to_go_on
from dada_det.engine.runtime.hooks.progress_line import loss_of
from dada_det.errors import UserError

NEVER = 2**62  # the step of a bad loss that has not come


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
                        f"lower the learning rate and start again, or {how_to_go_on()}")
