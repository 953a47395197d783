"""Prints the progress of a stage and the time that is left."""

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


def loss_of(outputs: Mapping[str, Any]) -> Any:
    """The total of a step's losses: outputs["loss"], else the sum of every entry whose name holds "loss"."""
    if "loss" in outputs:
        return outputs["loss"]
    return sum(value for name, value in outputs.items() if "loss" in name)


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
