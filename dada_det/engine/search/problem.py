"""The problem that a search solves, whatever its data: a network, its batches, and how a policy acts on them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.data.coco_instances import listed
from dada_det.data.groups import copied
from dada_det.models.backbone import IMAGENET
from dada_det.search.ranks import world
from dada_det.search.step import Algorithm, Apply, apply_to_images


@dataclass(frozen=True)
class Problem:
    """What a row of LOADERS makes of a config; the same for every algorithm.

    Args:
        network: builds a classifier or an alignment.LossNetwork from torch's global generator.
        batches: the loader for an algorithm, with `batch(epoch, index)` -> step.Batch, a length (batches an epoch),
            `dataset` and `metainfo`.
        mean, std: of the RGB channels in 0..255, by which the Searcher normalises.
        identity: what a search that --resume goes on with must share.
        data_hash: identifies the data: by pixels and labels of arrays, by names, sizes and labels of a folder's files.
        groups: the rule by which images are groups: of those that are halved, or of those that the user gives to validate.
        trainings: makes what a trial trains on, given what normalises uint8 images; None: no trial.
    """

    network: Callable[[], nn.Module]
    batches: Callable[[Algorithm], Any]
    identity: dict[str, Any]
    data_hash: str
    groups: str | None = None
    trainings: Callable[[Callable[[Tensor], Tensor]], Any] | None = None
    mean: Sequence[float] = tuple(IMAGENET["mean"])
    std: Sequence[float] = tuple(IMAGENET["std"])
    apply: Apply = apply_to_images


def search_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def hash_of(*hashes: str) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def say_groups(said: str | None, halved: bool = True) -> None:
    """One line about the groups that the halves are made of, or that the standard errors count; of several processes the
    first prints it."""
    if said and world()[0] == 0:
        print(f"search  {'halves' if halved else 'standard errors'} by {said}; --groups none undoes it", flush=True)


def say_copies(train_NCHW: Tensor, target_MCHW: Tensor, names: Sequence[str]) -> None:
    """One line about the target's images that are among the training images too (groups.copied)."""
    if world()[0] == 0 and (found := copied(train_NCHW, target_MCHW)):
        print(f"search  {len(found)} of the {len(target_MCHW)} images of --val-data are training images too "
              f"({listed([names[row] for row in found])}); the network knows them by heart, and a search then undervalues "
              "augmentation; take them out of --data or of --val-data", flush=True)
