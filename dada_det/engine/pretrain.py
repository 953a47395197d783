"""Pretraining as a stage: a config's plain keys become a Runner, and the trained network a backbone file."""

import datetime
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, barrier, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from dada_det.augment import Policy
from dada_det.augment.named import AnyPolicy, TorchvisionAugment, image_transform, resolve_policy
from dada_det.data.folders import ImageList
from dada_det.data.imagenet import ImageFolder, check_broken
from dada_det.engine import classifier  # noqa: F401 (registers Classifier, TopK)
from dada_det.engine.checkpoint import forbid_unsafe_loading, resume_point
from dada_det.engine.hooks import QuietRunner
from dada_det.engine.launch import join_processes
from dada_det.engine.preprocessor import DrawnImages
from dada_det.errors import UserError
from dada_det.files import make_folder, write_json
from dada_det.models.backbone import ARCHITECTURE, IMAGENET, export_backbone, verify_export

MAX_WORKERS = 16  # loader processes a training process starts where the config does not say


@HOOKS.register_module()
class WatchImages(Hook):
    """Tells the training images which epoch it is, and counts those that do not decode over workers and ranks.

    They are named once; more than 1 % of a folder stops every rank with UserError at the end of the epoch.
    """

    def __init__(self) -> None:
        self.broken: dict[Path, set[str]] = {}  # folder -> names found here
        self.named: set[tuple[Path, str]] = set()

    def before_train_epoch(self, runner: Runner) -> None:
        runner.train_dataloader.dataset.set_epoch(runner.epoch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.note(runner.train_dataloader, data_batch)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.note(runner.val_dataloader, data_batch)

    def after_train_epoch(self, runner: Runner) -> None:
        self.report(runner.train_dataloader.dataset.images)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.report(runner.val_dataloader.dataset.images)

    def note(self, loader: DataLoader[Any], batch: dict[str, Any]) -> None:
        names = {name for name in batch["broken"] if name}
        self.broken.setdefault(loader.dataset.images.root, set()).update(names)  # type: ignore[attr-defined]

    def report(self, images: ImageList) -> None:
        everywhere = sorted(set().union(*all_gather_object(self.broken.get(images.root, set()))))
        new = [name for name in everywhere if (images.root, name) not in self.named]
        check_broken(everywhere, len(images), images.root)
        if new and is_main_process():
            print(f"pretrain  {len(everywhere)} of {len(images)} images in {images.root} did not decode and were "
                  f"replaced by the next of their class: {', '.join(new[:3])}{', ..' if len(new) > 3 else ''}", flush=True)
        self.named.update((images.root, name) for name in new)


def run_pretraining(config: Config, train: ImageList, val: ImageList, resume: bool) -> None:
    """Trains config.classifier on `train` with config.policy, into config.work_dir; `val` has the same classes.

    Writes checkpoints, metrics.json ({"top1", "top5"} in percent) and, for resnet50, r50.pth and r50.json; prints a
    closing line. Keys: policy, policy_on ("workers" or "device"), image_size, batch_size (over all processes), epochs, seed,
    workers, classifier (name), optimizer (lr at base_batch_size), base_batch_size, warmup_epochs, label_smoothing,
    precision, work_dir. Raises UserError for a user's mistake.
    """
    forbid_unsafe_loading()
    distributed = join_processes()
    began = time.monotonic()
    policy = resolve_policy(config.policy, config.seed)
    identity = identity_of(config, policy, len(train), len(train.classes))
    checkpoint, epochs_done = resume_point(config.work_dir, identity, "pretrain") if resume else (None, 0)
    runner = build_runner(config, loaders(config, train, val, policy), identity, checkpoint, distributed)
    try:
        runner.train()
        if epochs_done >= config.epochs:  # an interrupted end: nothing is left to train, and nothing was validated here
            runner.val()
    except UserError as error:
        # A loader process wraps what it raises into its traceback; only the sentence is for the user.
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error
    if is_main_process():
        finish(runner, config, policy, val, began)
    barrier()


def training_images(config: Config, images: ImageList, policy: AnyPolicy) -> ImageFolder:
    """Cropped, flipped, then under the policy; with policy_on = "device" the samples only hold what the policy draws.

    The preprocessor then applies it, before it normalises: the order and the images are the same either way.
    UserError where policy_on is unknown, or this policy cannot be applied there.
    """
    place = config.get("policy_on", "workers")
    if place not in ("workers", "device"):
        raise UserError(f"policy_on is {place!r}; write policy_on = 'workers' or policy_on = 'device'")
    if place == "workers" or policy is None:
        return ImageFolder(images, config.image_size, train=True, transform=image_transform(policy), seed=config.seed)
    if isinstance(policy, TorchvisionAugment):
        raise UserError(f"the policy {policy.name} is torchvision's code for one image at a time and cannot be applied on "
                        "the device; write policy_on = 'workers'")
    return DrawnImages(images, config.image_size, policy, config.seed)


def loaders(config: Config, train: ImageList, val: ImageList, policy: AnyPolicy) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of this rank's share; their worker processes make the images one by one."""
    processes = get_world_size()
    workers = config.workers
    if workers is None:
        # Without a GPU the network takes far longer than the images, and wants the cores itself.
        cores = len(os.sched_getaffinity(0)) // processes if torch.cuda.is_available() else 1
        workers = min(MAX_WORKERS, max(1, cores))
    options: dict[str, Any] = {"batch_size": config.batch_size // processes, "num_workers": workers,
                               "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
    train_set = training_images(config, train, policy)
    val_set = ImageFolder(val, config.image_size, train=False)
    return (DataLoader(train_set, sampler=DefaultSampler(train_set, shuffle=True, seed=config.seed),
                       drop_last=len(train) >= config.batch_size, **options),
            DataLoader(val_set, sampler=DefaultSampler(val_set, shuffle=False, round_up=False), **options))


def build_runner(config: Config, data: tuple[DataLoader[Any], DataLoader[Any]], identity: str, checkpoint: Path | None,
                 distributed: bool) -> Runner:
    train, val = data
    network = {"name": config.classifier.name, "num_classes": len(train.dataset.images.classes),  # type: ignore
               "image_size": config.image_size}
    # mmengine's own wrapper of the model wants a GPU for each process.
    wrapper = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False} \
        if distributed and dist.get_backend() != "nccl" else None
    return QuietRunner(
        model={"type": "Classifier", "classifier": network, "label_smoothing": config.label_smoothing},
        work_dir=config.work_dir, train_dataloader=train, val_dataloader=val,
        train_cfg={"by_epoch": True, "max_epochs": config.epochs}, val_cfg={}, val_evaluator={"type": "TopK"},
        optim_wrapper=optimizer(config), param_scheduler=schedule(config, len(train)),
        default_hooks={"logger": {"type": "LoggerHook", "interval": 100}, "checkpoint": {"type": "AtomicCheckpoint"}},
        custom_hooks=[{"type": "WatchImages"}, {"type": "StopAtNaN"}, {"type": "SyncBuffersHook"},
                      {"type": "StampIdentity", "identity": identity}, {"type": "ProgressLine", "stage": "pretrain"}],
        launcher="pytorch" if distributed else "none", randomness={"seed": config.seed},
        env_cfg={"cudnn_benchmark": True}, load_from=str(checkpoint) if checkpoint else None,
        resume=checkpoint is not None, experiment_name="pretrain", cfg=Config({**config, "model_wrapper_cfg": wrapper}))


def optimizer(config: Config) -> dict[str, Any]:
    """The optimiser with lr scaled linearly with the batch; autocast to config.precision on a GPU."""
    chosen = dict(config.optimizer)
    chosen["lr"] *= config.batch_size / config.base_batch_size
    if torch.cuda.is_available() and config.precision != "float32":
        return {"type": "AmpOptimWrapper", "dtype": config.precision, "optimizer": chosen}
    return {"type": "OptimWrapper", "optimizer": chosen}


def schedule(config: Config, steps_per_epoch: int) -> list[dict[str, Any]]:
    """A linear warm-up (at most a tenth of the steps), then the cosine to zero, step by step."""
    steps = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, steps // 10)
    cosine = {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warmup, "end": steps, "T_max": steps - warmup}
    if warmup == 0:
        return [cosine]
    ramp = {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": warmup, "start_factor": 1 / (warmup + 1)}
    return [ramp, cosine]


def policy_hash(policy: AnyPolicy) -> str | None:
    return policy.sha256 if isinstance(policy, Policy) else None


def identity_of(config: Config, policy: AnyPolicy, images: int, classes: int) -> str:
    """What a run must share with the one whose checkpoint it goes on from; not policy_on: both give the same images."""
    hashed = policy_hash(policy)
    return (f"{config.classifier.name}, {images} images, {classes} classes, {config.image_size} px, batch "
            f"{config.batch_size}, {config.epochs} epochs, seed {config.seed}, "
            f"policy {hashed[:12] if hashed else config.policy}")


def finish(runner: Runner, config: Config, policy: AnyPolicy, val: ImageList, began: float) -> None:
    """Writes the backbone and the metrics of the trained network and prints the closing line."""
    model = runner.model.module if dist.is_initialized() else runner.model
    figures = {name: round(runner.message_hub.get_scalar(f"val/{name}").current(), 4) for name in ("top1", "top5")}
    folder, written = Path(config.work_dir), ["metrics.json"]
    if config.classifier.name.split(".")[0] == ARCHITECTURE:  # timm's names may have a tag: resnet50.a1_in1k
        meta = {**IMAGENET, "classes": list(runner.train_dataloader.dataset.images.classes),
                "policy_sha256": policy_hash(policy)}
        samples = [runner.val_dataloader.dataset[index]["image"] for index in range(min(4, len(val)))]
        batch = {"image": torch.stack(samples), "label": torch.zeros(len(samples), dtype=torch.int64)}
        write_verified(model.network, folder / "r50.pth", meta, model.data_preprocessor(batch)["images"])
        written = ["r50.pth", "r50.json", *written]
    write_json(folder / "metrics.json", figures)
    took = datetime.timedelta(seconds=round(time.monotonic() - began))
    print(f"pretrain  done: {', '.join(written)} in {folder}; top-1 {figures['top1']:.2f} %, "
          f"top-5 {figures['top5']:.2f} % on {len(val)} images of {val.root} "
          f"({config.epochs} epochs, policy {config.policy}, {took})", flush=True)


def write_verified(network: torch.nn.Module, path: Path, meta: dict[str, Any], images_BCHW: torch.Tensor) -> None:
    """Writes `path` and its JSON; both get their names only after the file gave the network's own features."""
    draft = make_folder(path.parent / f".export.{os.getpid()}")
    try:
        export_backbone(network.state_dict(), draft / path.name, meta)
        verify_export(network, draft / path.name, images_BCHW)
        # The JSON first: a pth without it would be taken for torchvision's own.
        for name in (path.with_suffix(".json").name, path.name):
            os.replace(draft / name, path.parent / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
