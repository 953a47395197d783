"""Reads a step's losses from a GPU only when they are needed."""

from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class LateRuntimeInfo(RuntimeInfoHook):
    """mmengine's RuntimeInfoHook, which would wait for the GPU at every step to read its losses.

    Here the losses stay on the device and are read together: before LoggerHook logs (every `interval` steps if there is
    none) and at the end of an epoch. The history is the same. On the CPU they are read at every step.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval
        self.waiting: list[dict[str, Any]] = []  # of each step since they were read

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), self.interval)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.waiting.append({name: value.detach() if isinstance(value, torch.Tensor) else value
                             for name, value in (outputs or {}).items()})
        on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in self.waiting[-1].values())
        logged = self.every_n_inner_iters(batch_idx, self.interval) or self.every_n_train_iters(runner, self.interval)
        if not on_gpu or logged or self.is_last_train_iter(runner):
            self.read(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self.read(runner)

    def read(self, runner: Runner) -> None:
        """Gives the message hub what waits, in one copy."""
        waiting, self.waiting = self.waiting, []
        tensors = [value for step in waiting for value in step.values() if isinstance(value, torch.Tensor)]
        numbers = iter(torch.stack([tensor.double().reshape(()) for tensor in tensors]).tolist() if tensors else [])
        for step in waiting:
            for name, value in step.items():
                number = next(numbers) if isinstance(value, torch.Tensor) else value
                runner.message_hub.update_scalar(f"train/{name}", number)
