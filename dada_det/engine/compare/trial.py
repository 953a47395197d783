"""One trial: a classifier trained under a recipe, with one policy, and its accuracy on unseen images.

Trials with equal seeds share their first weights, their batches and their crops, whatever the policy, so that their
difference is the policy's. Shapes: B images of a batch, C = 3 channels, H x W pixels.
"""

import hashlib
import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from dada_det.augment.named import AnyPolicy, image_transform, policy_key
from dada_det.data.memory import MemoryImages, center_crop, random_crop
from dada_det.data.random import epoch_order, generator_for
from dada_det.engine.pretrain import classifier, preprocessor  # noqa: F401 (registers Classifier, TopK, ImagePreprocessor)
from dada_det.engine.runtime.checkpoint import checkpoints, forbid_unsafe_loading
from dada_det.engine.runtime.hooks import AtomicCheckpoint, ProgressLine
from dada_det.engine.runtime.identity import demand_own, demand_same, own_folder, resume_point
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, write_json
from dada_det.models import weights
from dada_det.models.classifiers import build_classifier
from dada_det.report.measurements import hardware

METRICS = "metrics.json"
UNFINISHED = "unfinished"  # the folder of a trial that runs or was cut short: checkpoints and mmengine's log
CHECKPOINT_SECONDS = 60.0  # a trial that is cut short loses this much; most trials end before their first checkpoint
CROPS, DRAWS, NETWORK = 1, 2, 3  # the random streams of a trial beside epoch_order's, keyed (seed, stream, step)


@dataclass(frozen=True)
class Recipe:
    """How a trial trains: SGD with Nesterov's momentum 0.9, lr on a cosine to zero, step by step.

    Args:
        model: a name of build_classifier.
        image_size: side of the crop in pixels.
        lr: for this batch_size.
        mirror: flip half of the training images.
        padding: black border before the crop, in pixels.
        precision: "float32", or "bfloat16" (autocast for the training passes).
        weights: what every trial starts from, a file or "timm", whose mean and std the images then have.
        average: fraction of the steps, the last ones, whose mean weights (BatchNorm's statistics too) are tested; 0: the
            weights of the last step.
    """

    model: str
    classes: int
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    mirror: bool
    padding: int = 0
    precision: str = "float32"
    weights: str | None = None
    average: float = 0.0


def run_trial(train: MemoryImages, test: MemoryImages, *, policy: AnyPolicy, recipe: Recipe, seed: int,
              work_dir: Path | str, resume: bool = False, quiet: bool = False) -> dict[str, float]:
    """{"top1", "top5"} in percent on `test`, of recipe.model trained on `train` with `policy`.

    A training image gets a random crop and flip, then the policy; a test image the central crop. At the very end it writes
    work_dir/metrics.json: the figures, what was run (`identity`), hardware and versions. Until then all files are in
    work_dir/unfinished, which is then removed. Nothing else in work_dir is touched.

    Args:
        resume: read the result of a finished trial, and continue an interrupted one from its checkpoint.
        quiet: print no progress.

    Raises:
        UserError: the folder is another trial's or has files of these names that no trial wrote, recipe and images do not
            fit, or the loss becomes infinite.
    """
    forbid_unsafe_loading()
    check_sizes(train, test, recipe)
    work_dir = make_folder(work_dir)
    own = identity_of(data_hash(train, test), policy, recipe, seed)
    demand_own(work_dir / UNFINISHED)
    demand_result(work_dir / METRICS)
    if resume and (figures := finished(work_dir, own)) is not None:
        return figures
    folder = work_dir / UNFINISHED
    checkpoint = resume_point(folder, own, "trial") if resume and checkpoints(folder) else None
    if checkpoint is None:
        # It says what is wrong before anything is removed.
        build_classifier(recipe.model, recipe.classes, recipe.image_size, recipe.weights)
        (work_dir / METRICS).unlink(missing_ok=True)
        own_folder(folder, own, keep=False)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    train, test = (MemoryImages(images.images_NCHW.to(device), images.labels_N.to(device)) for images in (train, test))
    runner = build_runner(TrainBatches(train, recipe, policy, seed), CentralCrops(test, recipe), recipe, seed, folder,
                          own, checkpoint, quiet)
    runner.model.to(memory_format=torch.channels_last)  # convolutions take 1.2 (CPU) to 2 times (GPU) as long without
    runner.train()
    figures = {name: round(value, 4) for name, value in runner.test().items()}
    for handler in [handler for handler in runner.logger.handlers if isinstance(handler, logging.FileHandler)]:
        handler.close()  # a bench runs hundreds of trials, each with a log file
        runner.logger.removeHandler(handler)  # mmengine would write to it as long as this logger is the current one
    write_json(work_dir / METRICS, {**figures, "identity": own, "hardware": hardware(),
                                    "versions": {name: version(name) for name in ("torch", "dada_det")}})
    shutil.rmtree(folder)
    return figures


def check_sizes(train: MemoryImages, test: MemoryImages, recipe: Recipe) -> None:
    """Raises UserError if the batch is larger than the training set, or the crop than the images."""
    if not 2 <= recipe.batch_size <= len(train):
        raise UserError(f"a batch of {recipe.batch_size} does not fit {len(train)} training images; choose one between 2 "
                        "and that number")
    smallest = min(*test.images_NCHW.shape[2:], *(side + 2 * recipe.padding for side in train.images_NCHW.shape[2:]))
    if recipe.image_size > smallest:
        raise UserError(f"a crop of {recipe.image_size} px does not fit into images of {smallest} px; choose a smaller one")


def data_hash(train: MemoryImages, test: MemoryImages) -> str:
    """SHA-256 (hexadecimal) over the pixels and labels of both."""
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(repr(tuple(part.images_NCHW.shape)).encode())
        for tensor in (part.images_NCHW, part.labels_N):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def identity_of(data: str, policy: AnyPolicy, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What makes a trial this one and no other, as JSON values.

    Args:
        data: from `data_hash`.
    """
    started = {} if recipe.weights is None else {"weights": weights.identity_of(recipe.weights, recipe.model)}
    averaged = {"average": recipe.average} if recipe.average else {}
    without = {key: value for key, value in asdict(recipe).items() if key not in ("weights", "average")}
    return {**without, **started, **averaged, "seed": seed, "policy": policy_key(policy)[:16], "data": data[:16]}


def finished(work_dir: Path | str, identity: dict[str, Any]) -> dict[str, float] | None:
    """{"top1", "top5"} of the trial that ended in `work_dir`, or None.

    Raises:
        UserError: the folder holds the result of another trial.
    """
    path = Path(work_dir) / METRICS
    if not path.exists():
        return None
    found = read_json(path, "trial's result")
    demand_same(path, found.get("identity") if isinstance(found, dict) else None, identity)
    return {name: found[name] for name in ("top1", "top5")}


def demand_result(path: Path) -> None:
    """Raises UserError if there is a file at `path`, where the result goes, that no trial has written."""
    if path.exists():
        found = read_json(path, "trial's result")
        if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
            raise UserError(f"{path} is not a trial's result, which would take its place; move it away, or give another "
                            "--work-dir")


class TrainBatches:
    """The training batches of one epoch after another, each a function of (seed, epoch, index) and the policy."""

    def __init__(self, images: MemoryImages, recipe: Recipe, policy: AnyPolicy, seed: int) -> None:
        self.dataset, self.recipe, self.seed = images, recipe, seed
        self.transform: Callable[..., Any] = image_transform(policy)
        self.epoch = 0

    @property
    def sampler(self) -> "TrainBatches":
        """Where mmengine's hook looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        # Dropout and its like draw from the global streams, which a checkpoint does not hold.
        torch.manual_seed(generator_for(self.seed, NETWORK, epoch).initial_seed())

    def __len__(self) -> int:
        return len(self.dataset) // self.recipe.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = epoch_order(len(self.dataset), self.seed, self.epoch)[:len(self) * self.recipe.batch_size]
        for index, chosen in enumerate(order.to(self.dataset.labels_N.device).split(self.recipe.batch_size)):
            step = self.epoch * len(self) + index
            images = random_crop(self.dataset.images_NCHW[chosen], self.recipe.image_size, self.recipe.padding,
                                 self.recipe.mirror, generator_for(self.seed, CROPS, step))
            # A stream of its own, so that no policy shifts the crops of another.
            augmented = self.transform(images, generator=generator_for(self.seed, DRAWS, step))
            yield {"image": augmented, "label": self.dataset.labels_N[chosen]}


class CentralCrops:
    """The central crop of every image, in order."""

    def __init__(self, images: MemoryImages, recipe: Recipe) -> None:
        self.dataset, self.recipe = images, recipe

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        parts = (tensor.split(self.recipe.batch_size) for tensor in (self.dataset.images_NCHW, self.dataset.labels_N))
        for images, labels in zip(*parts, strict=True):
            yield {"image": center_crop(images, self.recipe.image_size), "label": labels}


class TrialRunner(QuietRunner):
    """A Runner that starts in milliseconds: it asks no compiler for its version and writes no config."""

    def _log_env(self, env_cfg: dict) -> None:
        pass

    def dump_config(self) -> None:
        pass

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """None: mmengine's imports matplotlib and keeps its figures until the process ends."""


@HOOKS.register_module()
class TimedCheckpoint(AtomicCheckpoint):
    """An AtomicCheckpoint at the first end of an epoch after each CHECKPOINT_SECONDS, the first ones included.

    None after the last epoch: the result follows at once.
    """

    def __init__(self) -> None:
        super().__init__(keep=1, seconds=CHECKPOINT_SECONDS)
        self.last_time = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        if not self.is_last_train_epoch(runner):
            super().after_train_epoch(runner)


@HOOKS.register_module()
class MeanWeights(EMAHook):
    """mmengine's EMAHook, whose mean outlives the training: its own begins anew before the test."""

    def before_run(self, runner: Runner) -> None:
        if not hasattr(self, "ema_model"):
            super().before_run(runner)


@HOOKS.register_module()
class TrialProgress(ProgressLine):
    """A ProgressLine for trials of seconds or hours: the first line after `seconds`, and none for the end of an epoch."""

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.last = time.monotonic()

    def due(self, anyway: bool) -> bool:
        return super().due(False)


def build_runner(train: TrainBatches, test: CentralCrops, recipe: Recipe, seed: int, folder: Path,
                 identity: dict[str, Any], checkpoint: Path | None, quiet: bool) -> Runner:
    steps = recipe.epochs * len(train)
    network = {"name": recipe.model, "num_classes": recipe.classes, "image_size": recipe.image_size,
               "weights": None if checkpoint else recipe.weights}
    prepared = weights.preprocessing_of(recipe.weights, recipe.model)
    on_gpu = torch.cuda.is_available()
    hooks: list[dict[str, Any]] = [{"type": "StopAtNaN"}, {"type": "TellProgress"},
                                   {"type": "StampIdentity", "identity": identity}]
    if recipe.average:
        hooks.append({"type": "MeanWeights", "ema_type": "StochasticWeightAverage", "update_buffers": True,
                      "begin_iter": min(steps, steps - round(recipe.average * steps) + 1)})
    if not quiet:
        hooks.append({"type": "TrialProgress", "stage": f"trial  {folder.parent.name}"})
    return TrialRunner(
        model={"type": "Classifier", "classifier": network,
               "data_preprocessor": {"type": "ImagePreprocessor", "mean": prepared.mean, "std": prepared.std}},
        work_dir=str(folder),
        train_dataloader=train, train_cfg={"by_epoch": True, "max_epochs": recipe.epochs},
        test_dataloader=test, test_cfg={}, test_evaluator={"type": "TopK"},
        optim_wrapper={"type": "BFloat16OptimWrapper" if recipe.precision == "bfloat16" else "OptimWrapper",
                       "optimizer": {"type": "SGD", "lr": recipe.lr, "momentum": 0.9, "nesterov": True,
                                     "weight_decay": recipe.weight_decay}},
        param_scheduler={"type": "CosineAnnealingLR", "by_epoch": False, "T_max": steps, "end": steps},
        # Logger, timer and runtime_info note every step's loss, which waits for the GPU, and nobody reads their notes.
        default_hooks={"logger": None, "timer": None, "runtime_info": None, "checkpoint": {"type": "TimedCheckpoint"}},
        custom_hooks=hooks, randomness={"seed": seed, "deterministic": not on_gpu},
        # mmengine sets the start method of processes, and a worker of a comparison has one already.
        env_cfg={"cudnn_benchmark": on_gpu, "mp_cfg": {"mp_start_method": multiprocessing.get_start_method()}},
        log_level="WARNING", load_from=str(checkpoint) if checkpoint else None,
        resume=checkpoint is not None, experiment_name="trial")
