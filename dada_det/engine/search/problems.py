"""What a search is on: a config's `kind` becomes a network, its batches, and the way a policy acts on them."""

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from mmengine.config import Config

from dada_det.data.arrays import READERS
from dada_det.data.groups import AUTO, group_halves, groups_of
from dada_det.data.imagenet import decode_to_memory
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.data.splits import halves, search_lists
from dada_det.engine.search.loop import SearchBatches
from dada_det.engine.search.problem import Problem, hash_of, say_groups, search_device
from dada_det.models.classifiers import build_classifier
from dada_det.models.weights import identity_of, preprocessing_of
from dada_det.search.step import Algorithm


def classification(config: Config, train: MemoryImages, val: MemoryImages, classes: int, data_hash: str,
                   groups: str | None = None) -> Problem:
    """Two halves of images, which move to the device whole, and config.classifier."""
    train, val = (MemoryImages(half.images_NCHW.to(search_device()), half.labels_N.to(search_device()))
                  for half in (train, val))
    prepared = preprocessing_of(config.get("weights"), config.classifier.name)
    started = identity_of(config.get("weights"), config.classifier.name)
    return Problem(network=lambda: build_classifier(**config.classifier, num_classes=classes,
                                                    image_size=config.image_size, weights=config.get("weights")),
                   batches=partial(classification_batches, config, train, val), data_hash=data_hash,
                   identity={"classifier": config.classifier, "image_size": config.image_size,
                             "padding": config.get("padding", 0), "mirror": config.mirror, "weights": started},
                   mean=prepared.mean, std=prepared.std, groups=groups)


def classification_batches(config: Config, train: MemoryImages, val: MemoryImages, algorithm: Algorithm) -> SearchBatches:
    """The batches of both halves, for the algorithm."""
    return SearchBatches(train, val, image_size=config.image_size, padding=config.get("padding", 0), mirror=config.mirror,
                         batch_size=config.batch_size, algorithm=algorithm, seed=config.seed)


def load_imagenet(config: Config) -> Problem:
    """A folder of images in ImageNet's layout, decoded once to uint8; data.groups says how it is halved."""
    data = config.data
    rule = data.get("groups", AUTO)
    images, val_images = search_lists(data.root, data.val_root, data.subset, data.images_per_class, config.seed, rule)
    prepared = preprocessing_of(config.get("weights"), config.classifier.name)
    memory = decode_to_memory(images, config.image_size, "search", prepared.interpolation)
    if val_images is not None:
        val_memory = decode_to_memory(val_images, config.image_size, "search", prepared.interpolation,
                                      prepared.crop_share)
        return classification(config, memory, val_memory, len(images.classes), hash_of(images.hash(), val_images.hash()))
    train, val, said = halves(images, rule, config.seed, memory.images_NCHW)
    say_groups(said)
    return classification(config, memory[train], memory[val], len(images.classes),
                          hash_of(images.select(train).hash(), images.select(val).hash()), rule)


def load_arrays(config: Config) -> Problem:
    """CIFAR's or SVHN's training images: `images_per_class` of each class drawn by seed, half of them validate."""
    images_NCHW, labels_N, classes = READERS[config.kind](config.data.root, train=True)
    order = torch.randperm(len(labels_N), generator=generator_for(config.seed))
    chosen = [order[labels_N[order] == label][:config.data.images_per_class] for label in range(len(classes))]
    drawn = torch.cat(chosen).sort().values
    memory = MemoryImages(images_NCHW, labels_N)[drawn]
    rule = config.data.get("groups", AUTO)
    groups = groups_of(None, memory.labels_N.tolist(), rule, memory.images_NCHW)
    offered = [torch.searchsorted(drawn, torch.cat([of_class[1::2], of_class[::2]])).tolist() for of_class in chosen]
    parts = [memory[rows] for rows in group_halves(offered, groups.ids, classes)]
    say_groups(groups.said)
    hashes = [hashlib.sha256(part.images_NCHW.numpy().tobytes()).hexdigest() for part in parts]
    return classification(config, parts[0], parts[1], len(classes), hash_of(*hashes), rule)


def load_detection(config: Config) -> Problem:
    """COCO's layout, and a detector whose own loss is the reward."""
    from dada_det.engine.search import detection  # imports mmdet

    return detection.load_detection(config)


# By the config's `kind`; a row whose module is slow to import imports it when it is called.
LOADERS: dict[str, Callable[[Config], Problem]] = {"imagenet": load_imagenet, "coco": load_detection,
                                                   **dict.fromkeys(READERS, load_arrays)}
