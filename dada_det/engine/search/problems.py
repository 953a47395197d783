"""Makes a Problem of a config by its `kind`."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.config import Config

from dada_det.data.arrays import READERS
from dada_det.data.folders import AUTO, ImageList
from dada_det.data.groups import group_halves, groups_of
from dada_det.data.imagenet import decodable
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.data.splits import halves, search_lists
from dada_det.engine.search.leaks import say_leak
from dada_det.engine.search.loop import SearchBatches
from dada_det.engine.search.problem import Problem, hash_of, say_copies, say_groups, search_device
from dada_det.engine.search.trainings import Fold, ImageTrainings
from dada_det.errors import UserError
from dada_det.models.classifiers import build_classifier
from dada_det.models.weights import identity_of, preprocessing_of
from dada_det.search.step import Algorithm

TARGET_HALVES = 4  # the random stream of the target's halves


def classification(config: Config, folds: Sequence[Fold], whole: int, classes: int, data_hash: str,
                   groups: str | None = None, target: bool = False, target_trains: bool = False) -> Problem:
    """Images in one or two folds, which move to the device whole, and config.classifier.

    The search by alignment trains and validates on the first fold, the trial on each in turn.

    Args:
        whole: images of a training with the policy, by which the costs are counted.
        target: the user has given the images that validate; target_trains: half of them train.
    """
    moved = {id(part): on_device(part) for fold in folds for part in (fold.train, fold.val)}  # each once: halves are in both
    folds = [Fold(moved[id(fold.train)], moved[id(fold.val)], fold.groups_V) for fold in folds]
    prepared = preprocessing_of(config.get("weights"), config.classifier.name)
    started = identity_of(config.get("weights"), config.classifier.name)
    return Problem(network=lambda: build_classifier(**config.classifier, num_classes=classes,
                                                    image_size=config.image_size, weights=config.get("weights")),
                   batches=partial(classification_batches, config, folds[0].train, folds[0].val),
                   trainings=lambda normalise: ImageTrainings(
                       folds, whole=whole, target=target, target_trains=target_trains, image_size=config.image_size,
                       padding=config.get("padding", 0), mirror=config.mirror, batch_size=config.batch_size,
                       seed=config.seed, normalise=normalise),
                   data_hash=data_hash, groups=groups, mean=prepared.mean, std=prepared.std,
                   identity={"classifier": config.classifier, "image_size": config.image_size,
                             "padding": config.get("padding", 0), "mirror": config.mirror, "weights": started,
                             "target_trains": "half" if target_trains else None})


def classification_batches(config: Config, train: MemoryImages, val: MemoryImages, algorithm: Algorithm) -> SearchBatches:
    """The batches of one fold, for the algorithm."""
    return SearchBatches(train, val, image_size=config.image_size, padding=config.get("padding", 0), mirror=config.mirror,
                         batch_size=config.batch_size, algorithm=algorithm, seed=config.seed)


def on_device(images: MemoryImages) -> MemoryImages:
    return MemoryImages(images.images_NCHW.to(search_device()), images.labels_N.to(search_device()))


def halves_in_turn(images: MemoryImages, train: Sequence[int], val: Sequence[int], group_ids: Sequence[int]) -> list[Fold]:
    """Two folds: what trains in the one validates in the other."""
    groups_N, first, second = torch.tensor(group_ids), images[train], images[val]
    return [Fold(first, second, groups_N[list(val)]), Fold(second, first, groups_N[list(train)])]


def against_target(images: MemoryImages, target: MemoryImages, training: MemoryImages | None, seed: int,
                   group_ids: Sequence[int]) -> Fold:
    """The fold of a search against a target.

    Without `training`, `images` train and `target` validates. With `training`, the target's images as a training crops
    them, half of each class, of whole groups, trains beside `images`, and the other half validates; a class with one image
    trains. A line is printed if the halves leak, judged by their pixels."""
    groups_N = torch.tensor(group_ids)
    if training is None:
        return Fold(images, target, groups_N)
    order = torch.randperm(len(target), generator=generator_for(seed, TARGET_HALVES))
    by_class = [order[target.labels_N[order] == label].tolist() for label in target.labels_N.unique()]
    ours, theirs = group_halves([rows for rows in by_class if len(rows) > 1], group_ids)
    if not theirs:
        raise UserError("--target-trains parts the images of --val-data in two, and no class there has two; add images, or "
                        "leave it out")
    validate = {group_ids[row] for row in theirs}
    lone = [rows[0] for rows in by_class if len(rows) == 1]  # on the side of its group, if that has one
    train = sorted(ours + [row for row in lone if group_ids[row] not in validate])
    val = sorted(theirs + [row for row in lone if group_ids[row] in validate])
    first, second = target[train], target[val]
    say_leak(first.images_NCHW, second.images_NCHW, first.labels_N, second.labels_N)
    return Fold(joined(images, training[train]), second, groups_N[val])


def joined(first: MemoryImages, second: MemoryImages) -> MemoryImages:
    return MemoryImages(torch.cat([first.images_NCHW, second.images_NCHW]), torch.cat([first.labels_N, second.labels_N]))


def load_imagenet(config: Config) -> Problem:
    """A folder of images in ImageNet's layout, decoded once to uint8; data.groups says how it is halved."""
    data = config.data
    rule, trains = data.get("groups", AUTO), bool(data.get("target_trains"))
    images, val_images = search_lists(data, config.seed)
    prepared = preprocessing_of(config.get("weights"), config.classifier.name)
    images, memory = decodable(images, config.image_size, "search", prepared.interpolation)
    if val_images is not None:
        val_images, target = decodable(val_images, config.image_size, "search", prepared.interpolation, prepared.crop_share)
        training = decodable(val_images, config.image_size, "search", prepared.interpolation)[1] if trains else None
        groups = groups_of(val_images.names(), val_images.labels, rule, target.images_NCHW)
        say_groups(groups.said, halved=trains)
        say_copies(memory.images_NCHW, target.images_NCHW, val_images.names())
        fold = against_target(memory, target, training, config.seed, groups.ids)
        return classification(config, [fold], len(memory) + (len(val_images) if trains else 0), len(images.classes),
                              hash_of(labelled(images), labelled(val_images)), rule, target=True, target_trains=trains)
    train, val, groups = halves(images, rule, config.seed, memory.images_NCHW)
    say_groups(groups.said)
    return classification(config, halves_in_turn(memory, train, val, groups.ids), len(memory), len(images.classes),
                          hash_of(labelled(images.select(train)), labelled(images.select(val))), rule)


def labelled(images: ImageList) -> str:
    """What identifies a list's images and labels; a label need not be in its image's name."""
    return images.hash() + repr(images.labels)


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
    train, val = group_halves(offered, groups.ids, classes)
    say_groups(groups.said)
    hashes = [hashlib.sha256(memory[part].images_NCHW.numpy().tobytes()).hexdigest() + repr(memory[part].labels_N.tolist())
              for part in (train, val)]
    return classification(config, halves_in_turn(memory, train, val, groups.ids), len(memory), len(classes),
                          hash_of(*hashes), rule)


def load_detector_search(config: Config) -> Problem:
    """COCO's layout, and a detector whose own loss is the reward."""
    from dada_det.engine.search import detection  # imports mmdet

    return detection.load_detection(config)


# By the config's `kind`; a row whose module is slow to import imports it when it is called.
LOADERS: dict[str, Callable[[Config], Problem]] = {"imagenet": load_imagenet, "coco": load_detector_search,
                                                   **dict.fromkeys(READERS, load_arrays)}
