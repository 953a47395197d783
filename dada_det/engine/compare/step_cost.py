"""What one training step costs on this machine: its wall time, its memory, and the processor time of its samples."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn

from dada_det.engine.pretrain.classifier import Classifier

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler calls a machine without a GPU an error
HOST_STEPS = 5
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # by the names of a config's `precision`


@dataclass(frozen=True)
class TrainingStep:
    """A repeatable piece of training: `run` does `steps` steps; the other fields keep tensors between two of them."""

    run: Callable[[], Any]
    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    steps: int = 1  # of which not all need be alike: a search validates in one of several

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device


def classifier_step(model: Classifier, optimizer: torch.optim.Optimizer, images_BCHW: Tensor, labels_B: Tensor,
                    precision: str) -> TrainingStep:
    """Forward, backward and the optimiser's step on one batch that is on the device already, without mmengine.

    Args:
        images_BCHW: float32, normalised.
        labels_B: int64.
        precision: "float32", or "bfloat16", "float16" (autocast, no scale).
    """
    if model.channels_last:
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images_BCHW.device.type, DTYPES[precision]) if precision in DTYPES else nullcontext():
            loss = model(images_BCHW, labels_B, mode="loss")["loss"]
        loss.backward()
        optimizer.step()

    return TrainingStep(run, model, [optimizer])


def build_optimizer(module: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of a config (type and arguments) over all weights of `module` that train."""
    return OPTIMIZERS.build(options, default_args={"params": [p for p in module.parameters() if p.requires_grad]})


def now(device: torch.device) -> float:
    """The wall clock in seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step_seconds(step: TrainingStep) -> float:
    """The mean seconds of a step: on a GPU wall time, on a CPU processor time divided by the number of threads.

    The latter leaves out what else runs on the machine, and how long threads wait for each other.
    """
    clock = partial(now, step.device) if step.device.type == "cuda" else time.process_time
    began = clock()
    step.run()
    return (clock() - began) / step.steps / (1 if step.device.type == "cuda" else torch.get_num_threads())


def host_seconds(step: TrainingStep) -> float:
    """What the host needs to give a GPU the work of a step; 0 without one. Meant for a small batch, which the GPU has done
    before the next one comes: the host's time does not depend on it, and a full queue would make the host wait."""
    if step.device.type != "cuda":
        return 0.0
    taken = []
    for _ in range(HOST_STEPS):
        began = now(step.device)
        step.run()
        taken.append((time.perf_counter() - began) / step.steps)
    return statistics.median(taken)


def core_seconds(make: Callable[[int], Any], indices: Iterable[int]) -> list[float]:
    """Processor time of this process for make(index), of each index."""
    taken = []
    for index in indices:
        began = time.process_time()
        make(index)
        taken.append(time.process_time() - began)
    return taken


def peak_bytes(step: TrainingStep) -> int:
    """Peak bytes while a step runs, weights and the optimisers' states included; run one step before.

    On a GPU max_memory_allocated; on the CPU what torch's allocator has handed out and not got back, by the profiler's
    record: without fragmentation and without Python itself.
    """
    gc.collect()
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(step.device)
        step.run()
        return torch.cuda.max_memory_allocated(step.device)
    states = [value for optimizer in step.optimizers for state in optimizer.state.values() for value in state.values()]
    tensors = [*step.module.parameters(), *step.module.buffers(), *(value for value in states if torch.is_tensor(value))]
    gradients = [parameter.grad for parameter in step.module.parameters() if parameter.grad is not None]
    held = peak = sum(tensor.nbytes for tensor in (*tensors, *gradients))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True,
                                acc_events=True) as profile:
        step.run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
