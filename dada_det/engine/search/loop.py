"""The batches of a search: training images, validation images, and the noise of the draws."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from dada_det.data.memory import MemoryImages, center_crop, random_crop
from dada_det.data.random import cycle_indices, epoch_order, generator_for
from dada_det.errors import UserError
from dada_det.search.ranks import world
from dada_det.search.step import Algorithm, Batch, StepSettings


class SearchBatches:
    """The batches of a search, each a function of (seed, epoch, index) alone.

    Every process draws the whole batch and keeps its own part, so N processes see what one would see.

    Args:
        image_size: side of the random crop (training) and the central crop (validation), in pixels.
        padding: black border added before the crop (CIFAR: 4).
        mirror: whether training images are flipped at random (digits must not be).
        algorithm: draws the noise. Its settings say how many policies an image gets in a step, how large a validation batch
            is, and after how many steps the next validation batch follows.
    """

    def __init__(self, train: MemoryImages, val: MemoryImages, *, image_size: int, padding: int, mirror: bool,
                 batch_size: int, algorithm: Algorithm, seed: int) -> None:
        size = world()[1]
        if batch_size > len(train):
            raise UserError(f"--batch-size {batch_size} is more than the {len(train)} images that train (of halves, one "
                            f"half); give {len(train) // size * size} or less")
        if batch_size % size or batch_size < 2 * size:
            raise UserError(f"--batch-size {batch_size} does not divide among {size} processes, two images or more for "
                            f"each; give {max(2, batch_size // size) * size}")
        self.train, self.val = train, val
        self.image_size, self.padding, self.mirror, self.seed = image_size, padding, mirror, seed
        self.settings, self.draw_noise = algorithm.settings, algorithm.draw_noise
        self.batch_size, self.val_batch_size = batch_size, batch_size * self.settings.val_batches
        self.metainfo: dict = {}  # where mmengine's loop looks for the data's description

    def __len__(self) -> int:
        return len(self.train) // self.batch_size

    @property
    def dataset(self) -> "SearchBatches":
        return self

    def batch(self, epoch: int, index: int) -> Batch:
        """This process's part of batch `index` of `epoch` (both from 0), on the device of the images."""
        step = epoch * len(self) + index
        generator = generator_for(self.seed, 1, step)
        chosen = epoch_order(len(self.train), self.seed, epoch)[index * self.batch_size:][:self.batch_size]
        train, val = self.train[chosen], self.val[self.own_val(step)]
        images = random_crop(train.images_NCHW, self.image_size, self.padding, self.mirror, generator)
        noise = self.draw_noise(self.settings.draws_per_image * self.batch_size, generator)
        mine, rows = own_part(self.batch_size), draw_rows(self.settings.draws_per_image, self.batch_size)
        return Batch(images[mine].contiguous(), train.labels_N[mine], center_crop(val.images_NCHW, self.image_size),
                     val.labels_N, noise[rows], noise[:1],
                     generator_for(self.seed, 2, step, world()[0]).initial_seed(), step,
                     validates(self.settings, step, len(self)))

    def own_val(self, step: int) -> torch.Tensor:
        """This process's indices of a step's validation batch."""
        return cycle_indices(len(self.val), self.val_batch_size, self.seed + 1,
                             step // self.settings.val_every)[own_part(self.val_batch_size)]


def validates(settings: StepSettings, step: int, steps: int) -> bool:
    """Whether step `step` (from 0 over all epochs of `steps`) has a validation pass: the first after warm-up, and every so
    many from there."""
    return (step - settings.warmup_epochs * steps) % settings.val_every == 0


def own_part(batch_size: int) -> slice:
    """The rows of a batch that this process works on: each N-th of N processes.

    So the unaugmented images, which are the first of a process's part, are its part of the whole batch's first."""
    rank, size = world()
    return slice(rank, batch_size, size)


def draw_rows(draws_per_image: int, batch_size: int) -> torch.Tensor:
    """The rows of the draws of a batch, draw by draw, that belong to this process's part of it."""
    return torch.arange(draws_per_image * batch_size).view(draws_per_image, batch_size)[:, own_part(batch_size)].flatten()


@LOOPS.register_module()
class SearchLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop over SearchBatches; the algorithm decides the step, a hook writes what it found."""

    dataloader: Any

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index in range(len(self.dataloader)):
            self.run_iter(index, self.dataloader.batch(self.epoch, index))
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Batch | Sequence[dict]) -> None:
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        outputs = runner.model.search_step(data_batch, runner.optim_wrapper, self.epoch)
        runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
