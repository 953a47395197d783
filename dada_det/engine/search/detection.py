"""A search on a detector: `kind = "coco"` of a search's config becomes a detector's losses and the batches they are of.

B images of a batch, S x S pixels. The reward is the detector's own loss (detector_losses.py); boxes and masks follow the
policy (dada_det.data.detection).
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from dada_det.data.checks import check_coco, find_annotations, find_coco
from dada_det.data.coco_instances import FILTER, listed, what_is_learned
from dada_det.data.detection import MemoryDetection, apply_with_instances, load_coco
from dada_det.data.folders import AUTO
from dada_det.data.groups import group_halves, groups_of
from dada_det.data.random import epoch_order, generator_for
from dada_det.devices import move
from dada_det.engine.detect import guard
from dada_det.engine.detect.config import dicts_in, has_masks
from dada_det.engine.search.detection_trainings import DetectionTrainings
from dada_det.engine.search.detector_losses import DetectorLosses
from dada_det.engine.search.leaks import say_leak
from dada_det.engine.search.loop import SearchBatches, draw_rows, own_part, validates
from dada_det.engine.search.problem import Problem, say_copies, say_groups, search_device
from dada_det.engine.search.trainings import Fold
from dada_det.errors import UserError
from dada_det.files import sha256_of
from dada_det.search.ranks import world
from dada_det.search.step import Algorithm, Apply, Batch


def load_detection(config: Config) -> Problem:
    """COCO's layout in data.root and a detector, config.model: its training images, one half of which validates.

    Keys: model (MMDetection's), data (root; val_root, a COCO file or folder that validates instead of a half; groups, the
    rule by which it is halved; images, how many are drawn by seed, None: all), image_size (the longer side, and the side of
    the padded square), masks (whether they are loaded; a box then is that of its mask's pixels), mirror.

    Raises:
        UserError: the config or the data is wrong.
    """
    preprocessor = config.model.data_preprocessor
    if not preprocessor.get("bgr_to_rgb"):
        raise UserError("a search gives the detector RGB images; set model.data_preprocessor.bgr_to_rgb=True, with the mean "
                        "and std of its backbone in that order")
    if has_masks(config) and not config.masks:
        raise UserError("the detector learns masks, which masks=False does not load; set masks=True")
    annotations, images = find_coco(config.data.root, ("train",)).part("train")
    summary = check_coco(annotations, images)
    if (note := what_is_learned(summary, annotations, FILTER)) and world()[0] == 0:
        print(f"search  {annotations}: {note}")
    train = loaded(annotations, images, config)
    rule, trains = config.data.get("groups", AUTO), bool(config.data.get("target_trains"))
    if config.data.get("val_root"):
        target = loaded(*find_annotations(config.data.val_root), config)
        say_copies(train.images_NCHW, target.images_NCHW, target.names)
        say_leak(train.images_NCHW, target.images_NCHW, target=True)
        folds = [beside(train, target, rule, config.seed) if trains else Fold(train, target, grouped(target, rule))]
    else:
        target, folds = None, halves(train, rule, config.seed)
    whole = len(train) + (len(target) if trains and target is not None else 0)
    train, val = folds[0].train, folds[0].val
    return Problem(network=lambda: DetectorLosses(build_detector(config.model, len(summary.categories))),
                   batches=lambda algorithm: DetectionBatches.of(config, train, val, algorithm),
                   identity={"model": model_identity(config), "image_size": config.image_size, "masks": config.masks,
                             "mirror": config.mirror, "target_trains": "half" if trains else None}, groups=rule,
                   trainings=lambda normalise: DetectionTrainings(
                       folds, whole=whole, target=target is not None, target_trains=trains, mirror=config.mirror,
                       seed=config.seed, batch_size=config.batch_size, normalise=normalise),
                   data_hash=hash_of(train, val), mean=preprocessor.mean, std=preprocessor.std,
                   apply=cast(Apply, apply_with_instances))


def loaded(annotations: Path, images: Path, config: Config) -> MemoryDetection:
    memory, broken = load_coco(annotations, images, config.image_size, config.masks, config.data.get("images"),
                               generator_for(config.seed, 3))
    if broken and world()[0] == 0:
        print(f"search  left out {len(broken)} images in {images} that do not decode: {listed(broken)}")
    return memory


def beside(images: MemoryDetection, target: MemoryDetection, rule: str, seed: int) -> Fold:
    """The fold in which half of the target trains beside `images`, and the other half validates."""
    fold = halves(target, rule, seed)[0]
    return Fold(images + fold.train, fold.val, fold.groups_V)


def halves(images: MemoryDetection, rule: str, seed: int) -> list[Fold]:
    """Two folds by halves of whole groups, which train and validate in turn; rule: see groups_of, by each image's file_name.

    Prints one line if the halves leak nevertheless, judged by the images' pixels.
    """
    groups = groups_of(images.names, [0] * len(images), rule, images.images_NCHW)
    order = torch.randperm(len(images), generator=generator_for(seed))
    parts = [torch.tensor(part) for part in group_halves([torch.cat([order[1::2], order[::2]]).tolist()], groups.ids)]
    say_groups(groups.said)
    ids_N = torch.tensor(groups.ids)
    first, second = (images[part] for part in parts)
    say_leak(first.images_NCHW, second.images_NCHW)
    return [Fold(first, second, ids_N[parts[1]]), Fold(second, first, ids_N[parts[0]])]


def grouped(images: MemoryDetection, rule: str) -> Tensor:
    """The group of each image [N]; prints one line about them."""
    groups = groups_of(images.names, [0] * len(images), rule, images.images_NCHW)
    say_groups(groups.said, halved=False)
    return torch.tensor(groups.ids)


def build_detector(model: dict[str, Any], classes: int) -> nn.Module:
    """The detector of an MMDetection config's `model` with `classes` outputs a head, from torch's global generator."""
    model = Config({"model": model}).model  # a copy, whose entries are attributes too
    for entry in dicts_in(model):
        if "num_classes" in entry:
            entry.num_classes = classes
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # mmengine tells how each tensor was drawn
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = guard.MODELS.build(model)
        detector.init_weights()
    if isinstance(detector.backbone, guard.Guarded):
        guard.check_preprocessing(detector)
    return detector


def model_identity(config: Config) -> dict[str, Any]:
    """The detector's config, with a hash in the place of its backbone's file."""
    model = config.model.to_dict()
    init = model["backbone"].get("init_cfg")
    if isinstance(init, dict) and Path(str(init.get("checkpoint"))).is_file():
        init["checkpoint"] = sha256_of(init["checkpoint"])[:16]
    return model


def hash_of(*memories: MemoryDetection) -> str:
    """SHA-256 of all pixels, boxes, labels and masks."""
    digest = hashlib.sha256()
    for memory in memories:
        digest.update(repr(tuple(memory.images_NCHW.shape)).encode())
        digest.update(memory.images_NCHW.numpy().data)
        for tensors in (memory.boxes_M4, memory.labels_M):
            digest.update(torch.cat(tensors).numpy().tobytes())
        digest.update(repr(list(map(len, memory.labels_M))).encode())
        for run_lengths in memory.masks or []:
            for mask in run_lengths:
                digest.update(mask["counts"])
    return digest.hexdigest()


class DetectionBatches(SearchBatches):
    """The batches of a search on detection images: whole images, those that train mirrored at random."""

    train: Any
    val: Any

    @classmethod
    def of(cls, config: Config, train: MemoryDetection, val: MemoryDetection, algorithm: Algorithm) -> "DetectionBatches":
        return cls(train, val, image_size=config.image_size, padding=0, mirror=config.mirror,  # type: ignore[arg-type]
                   batch_size=config.batch_size, algorithm=algorithm, seed=config.seed)

    def batch(self, epoch: int, index: int) -> Batch:
        """This process's part of batch `index` of `epoch` (both from 0); the images on the search's device."""
        step, device = epoch * len(self) + index, search_device()
        generator = generator_for(self.seed, 1, step)
        chosen = epoch_order(len(self.train), self.seed, epoch)[index * self.batch_size:][:self.batch_size]
        flips = (torch.rand(self.batch_size, generator=generator) < 0.5) & self.mirror
        noise = self.draw_noise(self.settings.draws_per_image * self.batch_size, generator)
        mine = own_part(self.batch_size)
        images, targets = self.train.batch(chosen[mine], flips[mine])
        val_images, val_targets = self.val.batch(self.own_val(step))
        return Batch(move(images, device), targets, move(val_images, device), val_targets,
                     noise[draw_rows(self.settings.draws_per_image, self.batch_size)], noise[:1],
                     generator_for(self.seed, 2, step, world()[0]).initial_seed(), step,
                     validates(self.settings, step, len(self)))
