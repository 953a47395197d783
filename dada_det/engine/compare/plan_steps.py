"""Makes one training step of any stage's config, on random or real images, and counts the images of the whole run."""

import contextlib
import io
import itertools
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope

from dada_det.augment.named import resolve_policy
from dada_det.data.checks import check_coco, find_coco
from dada_det.data.folders import SUBSET_IMAGES
from dada_det.data.imagenet import MARGIN
from dada_det.data.memory import MemoryImages
from dada_det.engine.compare.step_cost import TrainingStep, build_optimizer, classifier_step
from dada_det.engine.pretrain.classifier import Classifier
from dada_det.engine.pretrain.data import image_sizes, parts_of, training_images
from dada_det.engine.pretrain.recipe import precision_of
from dada_det.engine.search.problems import classification
from dada_det.engine.search.run import METHODS, optimizers
from dada_det.engine.search.searcher import build_searcher
from dada_det.engine.search.trainings import Fold
from dada_det.errors import UserError
from dada_det.report.plan import Demand

POLICY = "dada-imagenet"  # of the samples whose processor time is taken
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257}  # of pretraining, by kind
COCO_IMAGES = 117_266  # of train2017 that have a box, which MMDetection trains on
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "svhn": 10}
VAL_BATCHES = 8  # of validation images, at least as many as any search's val_batches
SEARCHED = {"imagenet": 120, "cifar10": 10, "cifar100": 100, "svhn": 10}  # classes of a search, by kind
TRIAL_TRAININGS = 9  # of a search's trial: one for each policy, on all images of the search


@dataclass(frozen=True)
class PlannedStage:
    """step: of a batch of so many images; samples: makes one as a loader's process does, or None; source: their images."""

    name: str
    model: str
    precision: str
    step: Callable[[int], TrainingStep]
    samples: Callable[[int], Any] | None
    count: int  # of samples
    source: str


def stage_of(config: Config) -> str:
    """The stage of a config: "search", "pretraining" or "detection".

    Raises:
        UserError: it is a config of no stage that can be planned.
    """
    if "search" in config and "classifier" in config and config.get("kind") in SEARCHED:
        return "search"
    if "classifier" in config and "optimizer" in config and config.get("kind", "imagenet") in IMAGES:
        return "pretraining"
    if "model" in config and "train_dataloader" in config:
        return "detection"
    raise UserError(f"{config.filename} is no config that can be planned; give one of a search over images, of pretraining "
                    "or of a detector, such as configs/pretrain_r50.py")


def has_trial(config: Config) -> bool:
    """Whether a search by this config ends with a trial."""
    return config.get("trial", True) and config.get("method", "dada") == "dada" and config.search.get("mode") != "paper"


def demand_of(config: Config, devices: int, images: int | None) -> Demand:
    """What the config asks of `devices`.

    Args:
        images: of the training set, None for those of the config's own data set.
    """
    name = stage_of(config)
    if name == "detection":
        return detection_demand(config, devices, images)
    kind, batch = config.get("kind", "imagenet"), config.batch_size
    if name == "search":
        own, source = searched_images(config, images)
    else:
        own, source = IMAGES[kind], f"the training images of {kind}"
    count = own if images is None else images
    whole = count // batch * batch or count
    sizes = image_sizes(config) if name == "pretraining" else [config.image_size] * config.epochs
    passes = sum(size**2 for size in sizes) / config.image_size**2
    held = -(-batch // devices // (parts_of(config) if name == "pretraining" else 1))
    return Demand(whole * passes, held, "--images" if images else source)


def searched_images(config: Config, images: int | None) -> tuple[int, str]:
    """(the images that train in a search's steps: with data.val_root all, else half; what they are); `images` counts instead
    where it is given.

    Raises:
        UserError: it is not, and nobody can know how many there are.
    """
    if images is None and config.kind == "imagenet" and config.data.get("subset") is None:
        raise UserError(f"{config.filename} searches all classes of a folder (data.subset=None), whose images nobody has "
                        "counted; give how many of them train with --images")
    per_class = config.data.get("images_per_class") or config.data.get("subset_images", SUBSET_IMAGES)
    whole, said = SEARCHED[config.kind] * per_class, f"{SEARCHED[config.kind]} classes x {per_class} images"
    return (whole, said) if config.data.get("val_root") else (whole // 2, f"half of {said}")


def trial_passes(config: Config) -> int:
    """The images that a search's trial trains on, over those of its steps: all, over all with data.val_root, else half."""
    return TRIAL_TRAININGS * (1 if config.data.get("val_root") else 2)


def detection_demand(config: Config, devices: int, images: int | None) -> Demand:
    batch, loop = config.train_dataloader.batch_size, config.train_cfg
    if "max_iters" in loop:
        return Demand(loop.max_iters * batch * devices, batch, "the config's iterations")
    times = config.train_dataloader.dataset.get("times", 1)
    return Demand((images or COCO_IMAGES) * times * loop.max_epochs, batch, "--images" if images else "COCO train2017")


def build_stage(config: Config, data: str | None) -> PlannedStage:
    """The step of a config on this machine, as its stage runs it.

    Args:
        data: as the stage's --data, for the samples.
    """
    torch.backends.cudnn.benchmark = stage_of(config) == "pretraining" or bool(
        config.get("env_cfg", {}).get("cudnn_benchmark"))
    return {"search": search_stage, "pretraining": pretraining_stage, "detection": detection_stage}[stage_of(config)](
        config, data)


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def pretraining_stage(config: Config, data: str | None) -> PlannedStage:
    kind, size = config.get("kind", "imagenet"), config.image_size

    def step(batch: int) -> TrainingStep:
        model = Classifier({**config.classifier, "num_classes": CLASSES[kind], "image_size": size},
                           config.get("label_smoothing", 0.0), config.get("channels_last", False)).to(device()).train()
        images = torch.randn(batch, 3, size, size, device=device())
        labels = torch.arange(batch, device=device()) % CLASSES[kind]
        return classifier_step(model, build_optimizer(model, dict(config.optimizer)), images, labels, precision_of(config))

    root = data or config.data.root
    samples, count, source = None, 0, ""
    if kind == "imagenet" and Path(root, "train").is_dir():
        from dada_det.data.splits import scan_split

        images = scan_split(root, "train")
        dataset = training_images(config, images, resolve_policy(POLICY, config.seed))
        dataset.set_epoch(config.epochs)  # at the full size
        samples, count = dataset.__getitem__, len(dataset)
        kilobytes = statistics.mean(images.size(index) for index in range(0, count, max(1, count // 100))) / 1000
        source = f"{count} images of {kilobytes:.0f} kB, policy {POLICY}"
    elif data:
        raise UserError(f"{data} has no folder train/; give the folder that holds it with --data")
    return PlannedStage("pretraining", config.classifier.name, precision_of(config), step, samples, count, source)


def search_stage(config: Config, data: str | None) -> PlannedStage:
    """On random images, few of them: a search decodes its images once, and those on the device come to the step's memory."""
    classes, padded = SEARCHED[config.kind], config.get("padding", 0)
    side = config.image_size if padded else round(config.image_size * MARGIN)
    low = config.precision == "bfloat16" and device().type == "cuda"

    def step(batch: int) -> TrainingStep:
        wanted = Config({"mirror": True, "clip_grad": None, **config, "batch_size": batch})
        train, val = (MemoryImages(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8),
                                   torch.arange(count) % classes) for count in (batch, VAL_BATCHES * batch))
        problem = classification(wanted, [Fold(train, val, torch.arange(len(val)))], len(train), classes, "")
        network = problem.network()
        algorithm = METHODS[config.get("method", "dada")](wanted)(network)
        batches = problem.batches(algorithm)
        searcher = build_searcher(wanted, problem, network, algorithm).train()
        wrappers = optimizers(searcher, wanted)
        period = algorithm.settings.val_every  # steps, one of which validates
        epochs = itertools.count(config.epochs - 1)  # of one step each, after the warm-up, when the policy learns too

        def run() -> None:
            for epoch in itertools.islice(epochs, period):
                searcher.search_step(batches.batch(epoch, 0), wrappers, epoch)

        return TrainingStep(run, searcher, [wrapper.optimizer for wrapper in wrappers.values()], period)

    return PlannedStage("search", config.classifier.name, "bfloat16" if low else "float32", step, None, 0, "")


def detection_stage(config: Config, data: str | None) -> PlannedStage:
    """On real images, as a detector's step depends on their boxes; the backbone starts from random weights."""
    from dada_det.engine.detect import config as detector_config
    from dada_det.engine.detect.whole_images import what_trains

    layout = find_coco(data or config.data_root, ("train",))
    summary = check_coco(*layout.part("train"))
    detector_config.use_data(config, layout, summary.categories)
    detector_config.leave_out(config, what_trains(config, summary, *layout.part("train"))[0])
    # The same network without the guard, which wants a backbone's file.
    config.model.backbone.update(type="ResNet", init_cfg=None)
    init_default_scope("mmdet")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it loads
        dataset = DATASETS.build(config.train_dataloader.dataset)
    options = dict(config.optim_wrapper.optimizer)
    if config.optim_wrapper.get("type") == "AmpOptimWrapper":
        raise UserError(f"{config.filename} has an AmpOptimWrapper, and detectors are measured in float32; take it out")

    def step(batch: int) -> TrainingStep:
        model = MODELS.build(config.model).to(device()).train()
        optimizer = build_optimizer(model, options)
        samples = pseudo_collate([dataset[index % len(dataset)] for index in range(batch)])

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            inputs = model.data_preprocessor(samples, True)
            model.parse_losses(model(**inputs, mode="loss"))[0].backward()
            optimizer.step()

        return TrainingStep(run, model, [optimizer])

    return PlannedStage("detection", config.model.type, "float32", step, dataset.__getitem__, len(dataset),
                 f"{len(dataset)} images of {Path(data or config.data_root).name}")


def batches_for(stage: PlannedStage, per_device: int) -> Sequence[int]:
    """Two batch sizes to measure: half of what a device will hold and all of it; few images on a CPU, as time is linear."""
    most = per_device if device().type == "cuda" else min(per_device, 2 if stage.name == "detection" else 4)
    return (max(1, most // 2), most) if most > 1 else (1, 2)


def machine() -> dict[str, int]:
    """device_bytes, cores and threads, as report/plan.py's Figures have them."""
    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        return {"device_bytes": torch.cuda.get_device_properties(device()).total_memory, "cores": cores, "threads": 0}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"device_bytes": memory, "cores": cores, "threads": min(cores, torch.get_num_threads())}
