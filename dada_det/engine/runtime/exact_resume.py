"""Exact resume: a run that goes on from a checkpoint takes the steps that an uninterrupted run takes.

mmengine saves no random state, the seeds of its workers ignore the epoch, and it restarts an interrupted epoch. Here every
random number follows from (seed, epoch or step, image) and (seed, step, rank). So nothing has to be saved, and the number of
loader processes does not matter. Two lines give it to any config of MMDetection, under its own tools/train.py too:

    custom_imports = dict(imports=["dada_det.engine.exact_resume"], allow_failed_imports=False)
    custom_hooks = [dict(type="ExactResume")]
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dada_det.data.random import generator_for
from dada_det.errors import UserError

SAMPLE, STEP = 1, 2  # first of the keys, so that no two streams are one
WAITING = "waiting_gradients"  # in a checkpoint: those of steps whose update comes later, by parameter
LOST = "Resumed iteration number is not divisible"  # how mmengine begins to say that gradients are lost
Place = tuple[int, int]  # (epoch or step, index in the data set)


@HOOKS.register_module()
class ExactResume(Hook):
    """Makes a resumed run equal to an uninterrupted one, in the middle of an epoch too; needs `randomness.seed`.

    It works for loops by epoch and by iteration, and for finite and endless samplers. On the CPU the weights are equal bit
    for bit. If a validation was due at the checkpoint and the process ended before it, it is run on resume. Data without
    indices (IterableDataset) keys its own randomness and is not skipped. A data set with an order of its own, such as
    MMDetection's RepeatDataset, is fine. Gradients that wait at a checkpoint for those of later steps
    (accumulative_counts) are in it, but only of a run of one process: several have each their own, and lose them.

    Raises:
        UserError: the checkpoint was written in the middle of an epoch of another length (other batch, other processes).
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.batches: KeyedBatches | None = None
        self.resumed: dict[str, Any] = {}  # what before_save_checkpoint wrote into the checkpoint that is resumed
        self.waiting: dict[str, torch.Tensor] = {}  # the gradients of the parameters in the checkpoint that is resumed
        self.began = (0, 0)  # this epoch, and the step at which it began

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            self.resumed = (checkpoint.get("meta") or {}).get("exact_resume", {})
            self.waiting = checkpoint.pop(WAITING, {})
            if self.waiting:
                runner.logger.addFilter(lambda record: not record.getMessage().startswith(LOST))

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done = self.resumed.get("batches_done", 0) if by_epoch else runner.iter
        if by_epoch and done and self.resumed["batches"] != len(loop.dataloader):
            raise UserError(f"the checkpoint was written after {done} of the {self.resumed['batches']} batches of an epoch, "
                            f"and an epoch has {len(loop.dataloader)} here; resume with the batch size and the processes of "
                            "that run, or give its last epoch_N.pth")
        for name, parameter in _unwrapped(runner.model).named_parameters():
            if name in self.waiting:
                parameter.grad = self.waiting[name].to(parameter)
        self.waiting = {}
        if not isinstance(loop.dataloader.dataset, IterableDataset):
            self.batches = use_keys(loop.dataloader, runner.seed, endless=not by_epoch)
            self.batches.skip = done
            loop.fast_forward_on_resume = True  # what mmengine calls it when the loop is not to skip batches itself
        if done == 0 or not by_epoch:
            self._make_up_for_validation(runner, runner.epoch if by_epoch else runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        self.began = (runner.epoch, runner.iter)
        if self.batches is not None:
            self.began = (runner.epoch, runner.iter - self.batches.skip)
            self.batches.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        number = seed_everything(STEP, runner.seed, runner.iter, runner.rank)
        torch.manual_seed(number)  # the GPU's generators too

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint["meta"]
        done = meta["iter"] - self.began[1] if meta["epoch"] == self.began[0] else 0
        meta["exact_resume"] = {"batches_done": done, "batches": len(runner.train_loop.dataloader)}
        steps = runner.optim_wrapper
        if runner.world_size == 1 and isinstance(steps, OptimWrapper) and not steps.should_update():
            checkpoint[WAITING] = {name: parameter.grad.cpu() for name, parameter in
                                   _unwrapped(runner.model).named_parameters() if parameter.grad is not None}

    def _make_up_for_validation(self, runner: Runner, done: int) -> None:
        """Runs the validation that was due after `done` epochs or steps, if the process ended before it."""
        loop = runner.train_loop
        if runner.val_loop is None or not runner._resume or done == 0:
            return
        loop._decide_current_val_interval()
        last = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        if done >= loop.val_begin and (done % loop.val_interval == 0 or done == last):
            runner.val_loop.run()


class KeyedBatches:
    """The batches of `batches` from number `skip` on, with (epoch or step, index) in the place of each index.

    Args:
        endless: whether to start again at the end of `batches`, with the sampler's next epoch. The first number is then the
            step, else the epoch.

    Everything else is that of `batches`.
    """

    def __init__(self, batches: Any, endless: bool) -> None:
        self.batches, self.endless = batches, endless
        self.skip = self.epoch = 0

    def __iter__(self) -> Iterator[list[Place]]:
        first, self.skip = self.skip, 0
        batches = self._rounds() if self.endless else iter(self.batches)
        for number, batch in enumerate(itertools.islice(batches, first, None), first):
            yield [(number if self.endless else self.epoch, index) for index in batch]

    def _rounds(self) -> Iterator[Sequence[int]]:
        for number in itertools.count():
            if hasattr(self.batches.sampler, "set_epoch"):
                self.batches.sampler.set_epoch(number)
            yield from self.batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["batches"], name)


class KeyedSamples(Dataset[Any]):
    """`dataset`, with every global random generator seeded by (seed, epoch or step, index) before it makes a sample.

    Everything else is that of `dataset`: attributes are read from it and written to it.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.__dict__.update(samples=dataset, key=seed)  # names that no data set has

    def __getitem__(self, place: Place | int) -> Any:
        if isinstance(place, tuple):
            turn, index = place
            seed_everything(SAMPLE, self.key, turn, index)
            return self.samples[index]
        return self.samples[place]

    def __len__(self) -> int:
        return len(self.samples)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as __getitems__, which would be asked for places
            raise AttributeError(name)
        return getattr(self.__dict__["samples"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.samples, name, value)

    def __reduce__(self) -> Any:  # to worker processes that are started anew and not forked
        return KeyedSamples, (self.samples, self.key)


def use_keys(loader: DataLoader[Any], seed: int, endless: bool) -> KeyedBatches:
    """Gives `loader` KeyedSamples and KeyedBatches in the place of what it had; returns the latter."""
    if not isinstance(loader.dataset, KeyedSamples):
        # DataLoader forbids to change these later, as an iterator might be running. None is before the training.
        vars(loader).update(dataset=KeyedSamples(loader.dataset, seed),
                            batch_sampler=KeyedBatches(loader.batch_sampler, endless))
    batches = loader.batch_sampler
    assert isinstance(batches, KeyedBatches)
    return batches


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    inner = model.module if is_model_wrapper(model) else model
    assert isinstance(inner, torch.nn.Module)
    return inner


def seed_everything(*keys: int) -> int:
    """Seeds the generators of Python, NumPy and torch (the CPU's) by `keys`; returns the seed, in 0..2^63-1."""
    number = generator_for(*keys).initial_seed()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    return number
