"""What a search is on: a config's `kind` becomes a network, its batches, and the way a policy acts on them."""

import hashlib
import os
from collections.abc import Callable
from functools import partial

import torch
from mmengine.config import Config

from dada_det.data.arrays import READERS
from dada_det.data.imagenet import decode
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.data.splits import search_lists
from dada_det.engine.search.loop import SearchBatches
from dada_det.engine.search.problem import Problem, hash_of, search_device
from dada_det.models.classifiers import build_classifier
from dada_det.search.ranks import world
from dada_det.search.step import Algorithm

MARGIN = 8 / 7  # side of a stored ImageNet image over the side of the crop, 256 over 224


def classification(config: Config, train: MemoryImages, val: MemoryImages, classes: int, data_hash: str) -> Problem:
    """Two halves of images, which move to the device whole, and config.classifier."""
    train, val = (MemoryImages(half.images_NCHW.to(search_device()), half.labels_N.to(search_device()))
                  for half in (train, val))
    return Problem(network=lambda: build_classifier(**config.classifier, num_classes=classes,
                                                    image_size=config.image_size),
                   batches=partial(classification_batches, config, train, val), data_hash=data_hash,
                   identity=f"{dict(config.classifier)}, {config.image_size} px, padding {config.get('padding', 0)}, "
                            f"mirror {config.mirror}")


def classification_batches(config: Config, train: MemoryImages, val: MemoryImages, algorithm: Algorithm) -> SearchBatches:
    """The batches of both halves, for the algorithm."""
    return SearchBatches(train, val, image_size=config.image_size, padding=config.get("padding", 0), mirror=config.mirror,
                         batch_size=config.batch_size, algorithm=algorithm, seed=config.seed)


def load_imagenet(config: Config) -> Problem:
    """A folder of images in ImageNet's layout, decoded once to uint8."""
    data = config.data
    lists = search_lists(data.root, data.val_root, data.subset, data.images_per_class, config.seed)
    memories = []
    for images in lists:
        pixels_NCHW, broken = decode(images, round(config.image_size * MARGIN), workers=len(os.sched_getaffinity(0)))
        if broken and world()[0] == 0:
            print(f"search  {len(broken)} of {len(images)} images did not decode and were replaced by the next of their "
                  f"class: {', '.join(broken[:3])}")
        memories.append(MemoryImages(pixels_NCHW, torch.tensor(images.labels)))
    data_hash = hash_of(*(images.hash() for images in lists))
    return classification(config, memories[0], memories[1], len(lists[0].classes), data_hash)


def load_arrays(config: Config) -> Problem:
    """CIFAR's or SVHN's training images: `images_per_class` of each class drawn by seed, half of them validate."""
    images_NCHW, labels_N, classes = READERS[config.kind](config.data.root, train=True)
    order = torch.randperm(len(labels_N), generator=generator_for(config.seed))
    chosen = [order[labels_N[order] == label][:config.data.images_per_class] for label in range(len(classes))]
    halves = [torch.cat([of_class[side::2] for of_class in chosen]).sort().values for side in (0, 1)]
    memories = [MemoryImages(images_NCHW[half], labels_N[half]) for half in halves]
    hashes = [hashlib.sha256(half.images_NCHW.numpy().tobytes()).hexdigest() for half in memories]
    return classification(config, memories[0], memories[1], len(classes), hash_of(*hashes))


def load_detection(config: Config) -> Problem:
    """COCO's layout, and a detector whose own loss is the reward."""
    from dada_det.engine.search import detection  # imports mmdet

    return detection.load_detection(config)


# By the config's `kind`; a row whose module is slow to import imports it when it is called.
LOADERS: dict[str, Callable[[Config], Problem]] = {"imagenet": load_imagenet, "coco": load_detection,
                                                   **dict.fromkeys(READERS, load_arrays)}
