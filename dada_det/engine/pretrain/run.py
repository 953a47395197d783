"""Pretraining as a stage: makes a Runner of a config's plain keys, and a backbone file of the trained network."""

import datetime
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from dada_det.augment import Policy
from dada_det.augment.named import Replayable, policy_key
from dada_det.augment.schedule import Schedule
from dada_det.data.arrays import ArrayImages
from dada_det.data.folders import ImageList
from dada_det.engine.pretrain import classifier  # noqa: F401 (registers Classifier, TopK)
from dada_det.engine.pretrain.data import WatchImages, loaders, parts_of, preprocessing
from dada_det.engine.pretrain.recipe import (
    AverageWeights,
    averaging,
    optimizer,
    precision_of,
    scale_lr,
    schedule,
)
from dada_det.engine.runtime import exact_resume  # noqa: F401 (registers ExactResume)
from dada_det.engine.runtime.checkpoint import forbid_unsafe_loading
from dada_det.engine.runtime.identity import Identity, plain, resume_point
from dada_det.engine.runtime.launch import join_processes, say_machines, without_layout
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.engine.runtime.visualizer import visualizer
from dada_det.errors import UserError
from dada_det.files import make_folder, write_json
from dada_det.models import weights
from dada_det.models.backbone import ARCHITECTURE, IMAGENET, export_backbone, verify_export
from dada_det.models.classifiers import demand_plain, is_own

# Entries of the config that may differ after a resume: paths, loaders, and where or how fast the same is computed.
FREE = ("data", "work_dir", "workers", "checkpoint", "vis_backends", "policy_on", "channels_last", "compile")
GIVEN = ("name", "num_classes", "image_size", "weights")  # entries of config.classifier that are no options of a network
MOST_HASHED = 10_000  # images whose sizes are asked for, one by one: of a million on a network disk that takes many minutes


def run_pretraining(config: Config, policy: Replayable, train: ImageList | ArrayImages, val: ImageList | ArrayImages,
                    resume: bool) -> None:
    """Trains config.classifier on `train` with `policy`, into config.work_dir; `val` has the same classes.

    Writes checkpoints, metrics.json ({"top1", "top5"} in percent) and the backbone with its JSON: r50.pth for resnet50,
    <name>.pth for timm's other networks, none for the project's own; with `ema` both hold and measure the average. Prints a
    closing line. The keys of the config are those of configs/pretrain_r50.py, and policy (what the policy is called), mirror
    (whether training images are flipped) and work_dir.

    Raises:
        UserError: the config or the images are wrong, or a fault of the machine (faults.py).
    """
    forbid_unsafe_loading()
    distributed = join_processes()
    say_machines("pretrain", config.work_dir, resume)
    began = time.monotonic()
    demand_plain(config.classifier.name, config.image_size, {name: value for name, value in config.classifier.items()
                                                             if name not in GIVEN})
    demand_compilable(config.get("compile"))
    identity = identity_of(config, policy, train)
    checkpoint = resume_point(config.work_dir, identity, "pretrain") if resume else None
    if config.get("mirror") is False and is_main_process():
        print("pretrain  no image is flipped (--mirror flips)", flush=True)
    runner = build_runner(config, loaders(config, train, val, policy), identity, checkpoint, distributed)
    try:
        runner.train()
    except RuntimeError as error:
        if not (config.get("compile") and isinstance(error, torch._dynamo.exc.TorchDynamoException)):
            raise
        reason = " ".join(str(error).split("\n")[:2]).strip()
        raise UserError(f"torch.compile cannot compile {config.classifier.name} here ({reason}); write compile = "
                        "False") from error
    if is_main_process():
        finish(runner, config, policy, val, began)
    barrier()


def demand_compilable(options: Any) -> None:
    """Raises UserError if torch.compile does not take the config's `compile`; `target` in it is mmengine's."""
    if isinstance(options, Mapping):
        try:
            torch.compile(torch.nn.Identity(), **{name: value for name, value in options.items() if name != "target"})
        except (TypeError, RuntimeError) as error:
            raise UserError(f"compile = {dict(options)} does not fit torch.compile ({error}); write compile = True, or "
                            "arguments of torch.compile such as dict(mode=\"max-autotune\")") from error


def build_runner(config: Config, data: tuple[DataLoader[Any], DataLoader[Any]], identity: Identity, checkpoint: Path | None,
                 distributed: bool) -> Runner:
    """The Runner of the whole recipe; `compile` is mmengine's own key and reads as it stands in the config."""
    train, val = data
    network = {**config.classifier, "num_classes": len(train.dataset.images.classes),  # type: ignore
               "image_size": config.image_size, "weights": None if checkpoint else config.get("weights")}
    prepared = preprocessing(config)
    # mmengine's own wrapper of the model wants a GPU for each process.
    wrapper = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False} \
        if distributed and dist.get_backend() != "nccl" else None
    parts = parts_of(config)
    runner = QuietRunner(
        model={"type": "Classifier", "classifier": network, "label_smoothing": config.get("label_smoothing", 0.0),
               "channels_last": config.get("channels_last", False), "mixup": config.get("mixup"),
               "bce_threshold": config.get("bce_threshold"),
               "data_preprocessor": {"type": "ImagePreprocessor", "mean": prepared.mean, "std": prepared.std}},
        work_dir=config.work_dir, train_dataloader=train, val_dataloader=val,
        train_cfg={"by_epoch": True, "max_epochs": config.epochs}, val_cfg={}, val_evaluator={"type": "TopK"},
        optim_wrapper=optimizer(config), auto_scale_lr=scale_lr(config),
        param_scheduler=schedule(config, len(train) // parts),
        default_hooks={"logger": {"type": "LoggerHook", "interval": 100}, "runtime_info": {"type": "LateRuntimeInfo"},
                       "checkpoint": {"type": "AtomicCheckpoint", **(config.get("checkpoint") or {})},
                       "param_scheduler": {"type": "SchedulePerUpdate", "parts": parts}},
        custom_hooks=[{"type": WatchImages}, {"type": "StopAtNaN"}, {"type": "SyncBuffersHook"}, *averaging(config),
                      {"type": "TellProgress"},
                      {"type": "StampIdentity", "identity": identity}, {"type": "ExactResume"},
                      {"type": "ProgressLine", "stage": "pretrain"}],
        launcher="pytorch" if distributed else "none", randomness={"seed": config.seed}, visualizer=visualizer(config),
        env_cfg={"cudnn_benchmark": True}, load_from=str(checkpoint) if checkpoint else None,
        resume=checkpoint is not None, experiment_name="pretrain",
        cfg=without_layout(Config({**config, "model_wrapper_cfg": wrapper})))
    if config.get("compile"):
        # A policy asks its draws which rows each kernel needs, at each of which a graph would break: it stays outside.
        preprocessor = unwrapped(runner).data_preprocessor
        preprocessor.forward = torch.compiler.disable(preprocessor.forward)
    return runner


def unwrapped(runner: Runner) -> Any:
    """The model without DDP around it."""
    return runner.model.module if dist.is_initialized() else runner.model


def policy_hash(policy: Replayable) -> str | None:
    return policy.sha256 if isinstance(policy, Policy | Schedule) else None


def identity_of(config: Config, policy: Replayable, images: ImageList | ArrayImages) -> Identity:
    """What a run must share with the one whose checkpoint it goes on from: all of its config that the weights depend on."""
    entries = {name: value for name, value in config.to_dict().items() if name not in FREE}
    started = weights.identity_of(config.get("weights"), config.classifier.name)
    return plain({**entries, "weights": started, "policy": policy_key(policy)[:12],
                  "precision": precision_of(config), "accumulation": parts_of(config), "images": len(images),
                  "classes": len(images.classes), "data": hash_of(images)[:12]})


def hash_of(images: ImageList | ArrayImages) -> str:
    """SHA-256 of the images' names, sizes in bytes and labels; of more than MOST_HASHED files evenly chosen ones; of arrays
    all."""
    if isinstance(images, ArrayImages):
        digest = hashlib.sha256(images.images_NCHW.numpy().data)
    else:
        images = images.select(range(0, len(images), -(-len(images) // MOST_HASHED)))
        digest = hashlib.sha256(images.hash().encode())
    digest.update(repr(images.labels).encode())
    return digest.hexdigest()


def finish(runner: Runner, config: Config, policy: Replayable, val: ImageList | ArrayImages, began: float) -> None:
    """Writes the backbone and the metrics of the trained network, or of its average, and prints the closing line."""
    average = next((hook.ema_model for hook in runner.hooks if isinstance(hook, AverageWeights)), None)
    model = average.module if average else unwrapped(runner)
    figures = {name: round(runner.message_hub.get_scalar(f"val/{name}").current(), 4) for name in ("top1", "top5")}
    folder, written = Path(config.work_dir), ["metrics.json"]
    if not is_own(config.classifier.name):
        name = config.classifier.name.split(".")[0]  # timm's names may have a tag: resnet50.a1_in1k
        meta = {**IMAGENET, **asdict(preprocessing(config)),
                "classes": list(runner.train_dataloader.dataset.images.classes),
                "policy": policy_key(policy), "policy_sha256": policy_hash(policy), "weights": "ema" if average else "last"}
        samples = [runner.val_dataloader.dataset[index]["image"] for index in range(min(4, len(val)))]
        batch = {"image": torch.stack(samples), "label": torch.zeros(len(samples), dtype=torch.int64)}
        path = folder / ("r50.pth" if name == ARCHITECTURE else f"{name}.pth")
        write_verified(model.network, path, meta, model.data_preprocessor(batch)["images"], name)
        written = [path.name, path.with_suffix(".json").name, *written]
    write_json(folder / "metrics.json", figures)
    took = datetime.timedelta(seconds=round(time.monotonic() - began))
    print(f"pretrain  done: {', '.join(written)} in {folder}; top-1 {figures['top1']:.2f} %, "
          f"top-5 {figures['top5']:.2f} % on {len(val)} images of {val.root} "
          f"({config.epochs} epochs, policy {config.policy}, {took})", flush=True)


def write_verified(network: torch.nn.Module, path: Path, meta: dict[str, Any], images_BCHW: torch.Tensor,
                   architecture: str = ARCHITECTURE) -> None:
    """Writes `path` and its JSON, whole, and compares its features with the network's own.

    If they differ or cannot be computed, the file is kept and stderr says why, as hours of training are in it.
    """
    draft = make_folder(path.parent / f".export.{os.getpid()}")
    try:
        export_backbone(network.state_dict(), draft / path.name, meta, architecture)
        try:
            verify_export(network, draft / path.name, images_BCHW, architecture)
        except RuntimeError as error:  # a full GPU among them
            reason = str(error).replace(str(draft), str(path.parent))
            print(f"warning: {path} is kept, but it could not be verified: {reason}", file=sys.stderr)
        # The JSON first: a pth without it would be taken for torchvision's own.
        for name in (path.with_suffix(".json").name, path.name):
            os.replace(draft / name, path.parent / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
