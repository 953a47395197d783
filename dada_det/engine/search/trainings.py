"""The trainings of a trial on images: what they train on, how they are judged, and their results on disk.

N images, B of a batch, V validation images, H x W pixels. A result is a function of the search's seed and of the training's
policy and fold alone, so trainings can be shared out over processes, and a search that was cut short skips those
that it has.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dada_det.augment.named import AnyPolicy, image_transform
from dada_det.data.memory import center_crop, random_crop
from dada_det.data.random import epoch_order, generator_for
from dada_det.engine.runtime.checkpoint import is_whole
from dada_det.files import make_folder, whole_file
from dada_det.search.ranks import world
from dada_det.search.training import Batches, image_scores

TRAINING, CROPS, DRAWS = 1, 11, 12  # random streams of a training and of its steps
PATIENCE = timedelta(days=30)  # for another's whole training; one that dies is noticed in any case (launch.py)
JUDGED_AT_ONCE = 256  # validation images of a pass


@dataclass(frozen=True)
class Fold:
    """One way to part the images: those that train and those that judge, and the group of each of the latter [V].

    train, val: MemoryImages, or MemoryDetection of a search on a detector.
    """

    train: Any
    val: Any
    groups_V: Tensor


class Trainings:
    """Batches and scores of trainings on one or two folds; a class for each kind of images.

    whole: images of a whole training, by which costs are counted; target: the user has given the images that validate;
    target_trains: half of these train; normalise: uint8 images -> what the network takes.
    fixed: the policies that a user would otherwise take; reference: that of them to which differences are given; figure:
    what `judge` gives beside the score, for the head of a table; unit: of the score.
    """

    fixed: tuple[str, ...]
    reference: str
    figure: str
    unit: str

    def __init__(self, folds: Sequence[Fold], *, whole: int, target: bool, target_trains: bool = False, mirror: bool,
                 batch_size: int, seed: int, normalise: Callable[[Tensor], Tensor]) -> None:
        self.folds, self.whole, self.normalise = folds, whole, normalise
        self.target, self.target_trains = target, target_trains
        self.mirror, self.batch_size, self.seed = mirror, batch_size, seed

    def steps(self, epochs: float) -> int:
        """Steps in one fold; those of all folds together make `epochs` of all images."""
        return max(1, round(epochs * self.whole / len(self.folds) / self.batch_size))

    @property
    def shift(self) -> bool:
        """Whether no image of the target, which validates, trains."""
        return self.target and not self.target_trains

    @property
    def part(self) -> float:
        """Share of all images that trains in a fold, 0..1, the mean over folds; if a target trains too, of its images."""
        if self.target_trains:
            return 1 / 2
        return min(1.0, sum(len(fold.train) for fold in self.folds) / len(self.folds) / self.whole)

    def batches(self, fold: int, policy: AnyPolicy) -> Batches:
        """The batches of a training on a fold; all policies see the same images, crops and flips."""
        images = len(self.folds[fold].train)
        per_epoch = max(1, images // self.batch_size)
        order_seed = generator_for(self.seed, fold, TRAINING).initial_seed()
        augmented = self.augmented(fold, policy)

        def batch(step: int) -> tuple[Tensor, Any]:
            epoch, index = divmod(step, per_epoch)
            rows = epoch_order(images, order_seed, epoch)[index * self.batch_size:][:self.batch_size]
            images_BCHW, targets_B = augmented(rows, (self.seed, fold, TRAINING, step))
            return self.for_network(images_BCHW), targets_B

        return batch

    def augmented(self, fold: int, policy: AnyPolicy) -> Callable[[Tensor, tuple[int, ...]], tuple[Tensor, Any]]:
        """A function of (rows [B] of the fold's training images, keys of the random streams) that gives uint8 images
        [B,3,H,W] after crop, flip and policy, and their targets."""
        raise NotImplementedError

    def judge(self, network: nn.Module, fold: int) -> Tensor:
        """What each validation image says of a network, float64 [2,V] on the CPU: its score, and its share of `figure`."""
        raise NotImplementedError

    def guess(self, fold: int) -> Tensor:
        """What `judge` gives for a network that has learned nothing from the images, float64 [2,V]."""
        raise NotImplementedError

    def for_network(self, images_BCHW: Tensor) -> Tensor:
        return self.normalise(images_BCHW).contiguous(memory_format=torch.channels_last)


class ImageTrainings(Trainings):
    """Classification: the crops are those of the search (SearchBatches)."""

    fixed = ("none", "random", "uniform", "one-op", "trivial", "rand")
    reference = "trivial"
    figure = "top-1 %"
    unit = "nats of calibrated cross-entropy less"

    def __init__(self, folds: Sequence[Fold], *, image_size: int, padding: int, **options: Any) -> None:
        super().__init__(folds, **options)
        self.image_size, self.padding = image_size, padding

    def augmented(self, fold: int, policy: AnyPolicy) -> Callable[[Tensor, tuple[int, ...]], tuple[Tensor, Any]]:
        train, transform = self.folds[fold].train, image_transform(policy)

        def some(rows_B: Tensor, keys: tuple[int, ...]) -> tuple[Tensor, Any]:
            crops_BCHW = random_crop(train.images_NCHW[rows_B], self.image_size, self.padding, self.mirror,
                                     generator_for(*keys, CROPS))
            images_BCHW: Any = transform(crops_BCHW, generator=generator_for(*keys, DRAWS))
            return images_BCHW, train.labels_N[rows_B]

        return some

    @torch.no_grad()
    def judge(self, network: nn.Module, fold: int) -> Tensor:
        """image_scores of the fold's validation images, by their central crops; float64 [2,V] on the CPU."""
        val = self.folds[fold].val
        network.eval()
        logits = [network(self.for_network(center_crop(chunk, self.image_size))).float().cpu()
                  for chunk in val.images_NCHW.split(JUDGED_AT_ONCE)]
        return image_scores(torch.cat(logits), val.labels_N.cpu())

    def guess(self, fold: int) -> Tensor:
        """The scores of a network that knows how frequent the classes are, and gives every image the same logits."""
        labels_V = self.folds[fold].val.labels_N.cpu()
        shares_K = labels_V.bincount().double() / len(labels_V)
        return torch.stack([shares_K.log()[labels_V], (labels_V == shares_K.argmax()).double()])


class StoredTensors:
    """A folder of tensors by name, each written whole; every process sees all of them after shared_out. A damaged file
    counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        self.known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """What is stored under `name`, or None."""
        path = self.path(name)
        if name not in self.known and is_whole(path):
            self.known[name] = torch.load(path, map_location="cpu", weights_only=True)
        return self.known.get(name)

    def put(self, name: str, value: Any) -> None:
        written = io.BytesIO()
        torch.save(value, written)  # into memory: of a full disk torch tells by a RuntimeError
        with whole_file(self.path(name)) as temporary, open(temporary, "wb") as file:
            file.write(written.getvalue())
            file.flush()
            os.fsync(file.fileno())
        self.known[name] = value

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pth"


def shared_out(tasks: Sequence[str], results: StoredTensors, work: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
    """(name, result) of every task in their order; those without a result are shared out over the processes.

    A generator, so that one process alone can say how far it is; several give their results when all are there.
    """
    rank, size = world()
    if size == 1:
        for name in tasks:
            if results.get(name) is None:
                results.put(name, work(name))
            yield name, results.get(name)
        return
    everyone: list[Any] = [None] * size
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    dist.all_gather_object(everyone, [name for name in tasks if results.get(name) is not None], group=patient)
    done = {name for names in everyone for name in names}
    for name in [name for name in tasks if name not in done][rank::size]:
        results.put(name, work(name))
    dist.all_gather_object(everyone, {name: results.get(name) for name in tasks if results.get(name) is not None},
                           group=patient)
    merged = {name: value for found in everyone for name, value in found.items()}
    for name in tasks:
        results.known[name] = merged[name]
        yield name, merged[name]
