"""The search as a stage: a config's plain keys become a Runner, and the Runner's end a closing line."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper, OptimWrapperDict

from dada_det.augment.space import SearchSpace
from dada_det.data.cifar import load_cifar10
from dada_det.data.folders import search_lists
from dada_det.data.imagenet import decode, generator_for
from dada_det.data.memory import MemoryImages
from dada_det.engine.checkpoint import forbid_unsafe_loading, resume_point
from dada_det.engine.hooks import QuietRunner
from dada_det.engine.launch import join_processes
from dada_det.engine.search_loop import SearchBatches
from dada_det.engine.searcher import Searcher, usage
from dada_det.models.backbone import IMAGENET
from dada_det.models.classifiers import build_classifier
from dada_det.search.dada import Settings, settings_for
from dada_det.search.ranks import world

CONTROL_VARIATE_LR = 5e-3  # the paper's rate for everything it gives to Adam
MARGIN = 8 / 7  # side of a stored ImageNet image over the side of the crop, 256 over 224


def run_search(config: Config, resume: bool) -> None:
    """Searches as `config` says, into config.work_dir: policy.json, search.json and checkpoints; prints a closing line.

    Keys: data (root, val_root, subset, images_per_class), kind ("imagenet" | "cifar10"), image_size, batch_size, epochs,
    seed, mirror, precision ("bfloat16", on a GPU, or "float32"), classifier (name), operations, search (mode and changes),
    weights_optimizer (lr at base_batch_size), policy_optimizer, clip_grad, work_dir. Raises UserError for a user's mistake.
    """
    forbid_unsafe_loading()
    distributed = join_processes()
    settings = settings_for(**config.search)
    space = SearchSpace(operations=config.operations, ranges=settings.ranges) if config.get("operations") \
        else SearchSpace(ranges=settings.ranges)
    if settings.warmup_epochs >= config.epochs:  # a short search spends its last epoch on the policy all the same
        settings = replace(settings, warmup_epochs=config.epochs - 1)
    train, val, classes, data_hash = LOADERS[config.kind](config)
    own = identity(config, settings, space, data_hash)
    checkpoint = resume_point(config.work_dir, own, "search") if resume else None
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    batches = SearchBatches(
        MemoryImages(train.images_NCHW.to(device), train.labels_N.to(device)),
        MemoryImages(val.images_NCHW.to(device), val.labels_N.to(device)),
        image_size=config.image_size, padding=config.get("padding", 0), mirror=config.mirror,
        batch_size=config.batch_size, val_batch_size=config.batch_size * settings.val_batches, draws=settings.draws,
        sub_policies=len(space), seed=config.seed)
    torch.manual_seed(config.seed)  # every process starts from the same weights
    network = build_classifier(config.classifier.name, len(classes), config.image_size)
    low = torch.bfloat16 if config.precision == "bfloat16" and device.type == "cuda" else None
    # TF32 keeps ten bits, too few for the difference of two nearly equal losses.
    torch.backends.cudnn.allow_tf32 = False
    searcher = Searcher(network, space, settings, IMAGENET["mean"], IMAGENET["std"], low)
    provenance = {"method": "dada", "mode": settings.mode, "config": Path(config.filename or "").stem,
                  "seed": config.seed, "data": data_hash}
    runner = SearchRunner(
        model=searcher, work_dir=config.work_dir, train_dataloader=batches,
        train_cfg={"type": "SearchLoop", "max_epochs": config.epochs},
        optim_wrapper=optimizers(searcher, config),
        param_scheduler={"weights": {"type": "CosineAnnealingLR", "T_max": config.epochs, "by_epoch": True},
                         "policy": []},
        default_hooks={"logger": None, "sampler_seed": None,
                       "checkpoint": {**config.get("checkpoint", {}), "type": "AtomicCheckpoint"}},
        custom_hooks=[{"type": "StopAtNaN"}, {"type": "WritePolicy", "provenance": provenance},
                      {"type": "StampIdentity", "identity": own},
                      {"type": "ProgressLine", "stage": "search"}],
        launcher="pytorch" if distributed else "none",
        randomness={"seed": config.seed, "deterministic": device.type == "cpu"}, log_level="WARNING",
        load_from=str(checkpoint) if checkpoint else None, resume=checkpoint is not None,
        experiment_name="search", cfg=config)
    runner.train()
    if world()[0] == 0:
        used = ", ".join(f"{name} {value:.2f}" for name, value in list(usage(searcher.found.table()).items())[:3])
        print(f"search  done: {min(25, len(space))} of {len(space)} sub-policies in {config.work_dir}/policy.json, all in "
              f"search.json beside it; most used: {used}")


class SearchRunner(QuietRunner):
    """A search averages its gradients itself (its step runs several passes), so DDP must not wrap its model."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(get_device())


def optimizers(searcher: Searcher, config: Config) -> OptimWrapperDict:
    """SGD for the network's weights, lr scaled linearly with the batch; Adam for the policy and its control variate."""
    weights = dict(config.weights_optimizer)
    weights["lr"] *= config.batch_size / config.base_batch_size
    sgd = torch.optim.SGD(searcher.network.parameters(), **weights)
    groups: list[dict[str, Any]] = [{"params": searcher.distribution.parameters()},
                                    {"params": searcher.control_variate.parameters(), "lr": CONTROL_VARIATE_LR}]
    adam = torch.optim.Adam(groups, **config.policy_optimizer)
    return OptimWrapperDict(weights=OptimWrapper(sgd, clip_grad={"max_norm": config.clip_grad}),
                            policy=OptimWrapper(adam))


def identity(config: Config, settings: Settings, space: SearchSpace, data_hash: str) -> str:
    """What a resumed search must share with the one that wrote the checkpoint."""
    return (f"{config.classifier.name}, {config.image_size} px, batch {config.batch_size}, {config.epochs} epochs, "
            f"seed {config.seed}, mirror {config.mirror}, {config.precision}, weights {dict(config.weights_optimizer)}, "
            f"policy {dict(config.policy_optimizer)}, {settings}, {len(space.operations)} operations "
            f"{'/'.join(space.operations)}, data {data_hash[:12]}")


Loaded = tuple[MemoryImages, MemoryImages, tuple[str, ...], str]


def load_imagenet(config: Config) -> Loaded:
    """(training half, validation half, classes, hash of both), decoded once to uint8."""
    data = config.data
    lists = search_lists(data.root, data.val_root, data.subset, data.images_per_class, config.seed)
    memories = []
    for images in lists:
        pixels_NCHW, broken = decode(images, round(config.image_size * MARGIN), workers=len(os.sched_getaffinity(0)))
        if broken and world()[0] == 0:
            print(f"search  {len(broken)} of {len(images)} images did not decode and were replaced by the next of their "
                  f"class: {', '.join(broken[:3])}")
        memories.append(MemoryImages(pixels_NCHW, torch.tensor(images.labels)))
    return memories[0], memories[1], lists[0].classes, hash_of(*(images.hash() for images in lists))


def load_cifar(config: Config) -> Loaded:
    """The same of CIFAR-10's training images: `images_per_class` of each class drawn by seed, half of them validate."""
    images_NCHW, labels_N, classes = load_cifar10(config.data.root, train=True)
    order = torch.randperm(len(labels_N), generator=generator_for(config.seed))
    chosen = [order[labels_N[order] == label][:config.data.images_per_class] for label in range(len(classes))]
    halves = [torch.cat([of_class[side::2] for of_class in chosen]).sort().values for side in (0, 1)]
    memories = [MemoryImages(images_NCHW[half], labels_N[half]) for half in halves]
    hashes = [hashlib.sha256(half.images_NCHW.numpy().tobytes()).hexdigest() for half in memories]
    return memories[0], memories[1], tuple(classes), hash_of(*hashes)


def hash_of(*hashes: str) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


LOADERS = {"imagenet": load_imagenet, "cifar10": load_cifar}
