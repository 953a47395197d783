"""What flags and data make of a detector's MMDetection config. Every function changes the config it is given."""

import colorsys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dada_det.data.checks import CocoLayout
from dada_det.engine.detect.adopt import STRIDES, facts_beside, neck_channels, use_neck_channels
from dada_det.engine.evaluate.figures import has_faster_evaluator
from dada_det.errors import UserError
from dada_det.models.backbone import ARCHITECTURE, IMAGENET

CHECKPOINT_STEPS = 1000  # within an epoch a checkpoint after so many, which is what a kill costs at most
GOLDEN_RATIO = 0.618034  # successive hues this far apart never come close
KEPT = ("frozen_stages", "norm_eval", "norm_cfg", "init_cfg")  # options that stay when another backbone replaces one
RESNET_ONLY = ("depth", "num_stages", "out_indices", "style")
CLASS_NUMBERS = ("num_classes", "num_things_classes")  # how a head's config says for how many categories it is
OTHER_HEADS = ("rpn_head", "semantic_head")  # one tells objects from background, the other has classes of pixels
COCO_METRICS = ("CocoMetric", "FasterCocoMetric")  # evaluators that get their ids numbered (NumberedCocoMetric)


def use_data(config: Config, layout: CocoLayout, classes: tuple[str, ...]) -> None:
    """Points the dataloaders and evaluators at the parts of `layout` and gives every head one output a class.

    A part that `layout` is without is not used: its dataloader is left alone but for the classes.
    """
    use_classes(config, classes)
    train, val = (layout.train_annotations, layout.train_images), (layout.val_annotations, layout.val_images)
    for part, (annotations, images) in {"train": train, "val": val, "test": val}.items():
        dataset = innermost(config[f"{part}_dataloader"].dataset)
        dataset.data_root = ""
        if annotations is not None and images is not None:
            prefix, maps = {"img": str(images)}, (dataset.get("data_prefix") or {}).get("seg")
            if maps:  # of classes of pixels: as the path stands, which is that of a copy of the config, or beside the images
                prefix["seg"] = str(maps if Path(maps).is_dir() else images.parent / maps)
            dataset.update(ann_file=str(annotations), data_prefix=prefix)
    for evaluator in (*_evaluators(config.val_evaluator), *_evaluators(config.test_evaluator)):
        if layout.val_annotations is not None and ("ann_file" in evaluator or evaluator.type in COCO_METRICS):
            evaluator.ann_file = str(layout.val_annotations)
        if evaluator.type in COCO_METRICS:
            from dada_det.engine.evaluate import numbered_metric  # noqa: F401  registers the types; imports mmdet

            # The faster one gives the same figures, with the same settings, in a fifth of the time.
            evaluator.type = "NumberedFasterCocoMetric" if has_faster_evaluator() else "NumberedCocoMetric"


def use_classes(config: Config, classes: tuple[str, ...]) -> None:
    """Names the categories to every data set and gives every head one output a class."""
    for part in ("train", "val", "test"):
        dataset = innermost(config[f"{part}_dataloader"].dataset)
        palette = (dataset.get("metainfo") or {}).get("palette") or ()
        dataset.metainfo = {"classes": classes,
                            "palette": palette if len(palette) == len(classes) else palette_of(len(classes))}
    for entry in class_dicts(config.model):
        entry.update({name: len(classes) for name in CLASS_NUMBERS if name in entry})
        weights = (entry.get("loss_cls") or {}).get("class_weight")
        if "num_things_classes" in entry and isinstance(weights, list) and len(weights) != len(classes) + 1:
            entry.loss_cls.class_weight = [1.0] * len(classes) + weights[-1:]  # the last is that of no object


def class_dicts(model: Any) -> Iterator[Any]:
    """Every dict inside `model` but for those of heads whose classes are others than the data's (OTHER_HEADS)."""
    if isinstance(model, dict):
        yield model
        model = [entry for name, entry in model.items() if name not in OTHER_HEADS]
    for entry in model if isinstance(model, list | tuple) else ():
        yield from class_dicts(entry)


def palette_of(classes: int) -> list[tuple[int, ...]]:
    """A colour for each class, RGB in 0..255, neighbours far apart."""
    colours = [colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.8, 0.95) for number in range(classes)]
    return [tuple(int(255 * value) for value in colour) for colour in colours]


def use_backbone(config: Config) -> None:
    """Builds the detector around the network of its backbone, where that is no ResNet-50, with the mean and std of it.

    Both are said by config.backbone_facts, where a checkpoint has told them, else by the JSON beside the backbone file.
    frozen_stages, norm_eval and norm_cfg stay as they are. Mean and std take the place of ImageNet's, which MMDetection's
    configs have.

    Raises:
        UserError: the network has no maps that the neck could take, or the config asks for what only a ResNet has.
    """
    before = config.model.backbone
    facts = config.pop("backbone_facts", None) or facts_beside(before.init_cfg.checkpoint)
    follow_preprocessing(config.model.data_preprocessor, facts)
    architecture = facts["architecture"]
    if architecture == ARCHITECTURE:
        return
    from dada_det.engine.detect.guard import feature_maps  # imports mmdet

    strange = set(before) - {"type", "architecture", "strides", *KEPT, *RESNET_ONLY}
    channels = neck_channels(config.model)
    strides = STRIDES[-len(channels):]
    maps = before.get("out_indices", range(len(STRIDES)))  # of a ResNet
    if strange or not 1 <= len(channels) <= len(STRIDES) or (before.type == "DADAResNet" and \
            tuple(STRIDES[place] for place in maps) != strides):
        raise UserError(f"{config.filename} has a ResNet of its own kind ({', '.join(sorted(strange)) or 'another neck'}), "
                        f"and timm's {architecture} cannot take its place; give a config such as "
                        "configs/retinanet_r50_dada.py")
    use_neck_channels(config.model, feature_maps(architecture, strides).feature_info.channels())
    config.model.backbone = {"type": "DADATimm", "architecture": architecture, "strides": strides,
                             **{name: before[name] for name in KEPT if name in before}}


def follow_preprocessing(preprocessor: Any, facts: dict[str, Any]) -> None:
    """Gives `preprocessor` the mean and std of the backbone, if it has ImageNet's; the guard compares any other."""
    names = [name for name in ("mean", "std") if facts.get(name)]
    if all([round(float(value), 3) for value in preprocessor.get(name) or ()] == IMAGENET[name] for name in names):
        preprocessor.update({name: facts[name] for name in names})


def use_test_dev(config: Config, annotations: Path, images: Path) -> None:
    """Points the test dataloader at image_info annotations, which have no boxes to load."""
    dataset = innermost(config.test_dataloader.dataset)
    dataset.update(ann_file=str(annotations), data_prefix={"img": str(images)},
                   pipeline=[step for step in dataset.pipeline if step["type"] != "LoadAnnotations"])


def leave_out(config: Config, names: list[str]) -> None:
    """Trains without the images of these file names."""
    if names:
        dataset = innermost(config.train_dataloader.dataset)
        dataset.update(type="WholeCocoDataset", left_out=names)


def take_back(config: Config) -> None:
    """Takes away what leave_out has changed, where the config is the copy of an earlier run's: this one looks anew."""
    dataset = innermost(config.train_dataloader.dataset)
    if dataset.type == "WholeCocoDataset":
        dataset.type = "CocoDataset"
        dataset.pop("left_out", None)


def write_results_to(config: Config, prefix: Path) -> None:
    """Makes the test evaluator write COCO's results files <prefix>.{bbox,segm}.json, as it goes, in the place of figures.

    Evaluators beside COCO's, such as DumpDetResults, stay.
    """
    from dada_det.engine.evaluate import streamed_results  # noqa: F401  registers StreamedResults; imports mmdet

    others = [evaluator for evaluator in _evaluators(config.test_evaluator) if "CocoMetric" not in str(evaluator.type)]
    config.test_evaluator = [{"type": "StreamedResults", "ann_file": innermost(config.test_dataloader.dataset).ann_file,
                              "outfile_prefix": str(prefix)}, *others]


def use_results_of_validation(config: Config, prefix: Path) -> None:
    """Validates once, at the end of training, and then also writes <prefix>.{bbox,segm}.json."""
    from dada_det.engine.evaluate import streamed_results  # noqa: F401  registers StreamedResults; imports mmdet

    loop = config.train_cfg
    loop.update(val_interval=loop.get("max_epochs") or loop.max_iters, val_begin=1)
    config.val_evaluator = [*_evaluators(config.val_evaluator),
                            {"type": "StreamedResults", "ann_file": "", "outfile_prefix": str(prefix)}]


def use_epochs(config: Config, epochs: int | None, images: int, processes: int) -> None:
    """Trains for `epochs` (None: for as long as the config says), with the schedule stretched or shrunk to fit.

    Args:
        images: number of training images. For a config that counts iterations an epoch is that many images.

    The warm-up of a schedule by epochs, which is counted in iterations, takes at most a tenth of all steps.
    """
    loop, batch = config.train_cfg, config.train_dataloader.batch_size * processes
    by_epoch = "max_epochs" in loop
    passes = config.train_dataloader.dataset.get("times", 1)
    steps_an_epoch = max(1, -(-images * passes // batch))
    before = loop.max_epochs if by_epoch else loop.max_iters
    after = before if epochs is None else epochs if by_epoch else epochs * steps_an_epoch
    loop["max_epochs" if by_epoch else "max_iters"] = after
    for schedule in dicts_in(config.get("param_scheduler")):  # a list, one alone, or none
        for name in ("begin", "end", "T_max", "milestones"):
            if name in schedule and schedule.get("by_epoch", True) == by_epoch:
                value, least = schedule[name], 0 if name == "begin" else 1
                schedule[name] = ([max(least, round(each * after / before)) for each in value] if isinstance(value, list)
                                  else max(least, round(value * after / before)))
            elif name == "end" and name in schedule:
                schedule.end = max(1, min(schedule.end, after * steps_an_epoch // 10))


def use_image_size(config: Config, side: int) -> None:
    """Resizes every image so that its longer side is `side` px; a range of scales keeps its ratios below that.

    Raises:
        UserError: an image is resized by something else, before anything is changed.
    """
    places = {**{f"{part}_dataloader": config[f"{part}_dataloader"].dataset for part in ("train", "val", "test")},
              "custom_hooks": config.get("custom_hooks"), "model.data_preprocessor": config.model.get("data_preprocessor")}
    steps = [(step, place) for place, value in places.items() for step in dicts_in(value)
             if "Resize" in str(step.get("type"))]
    for step, place in steps:
        more = [name for name in ("ratio_range", "resize_type") if step.get(name)]
        if step["type"] not in ("Resize", "RandomResize") or more:
            kind = " with ".join([str(step["type"]), *more])
            raise UserError(f"--image-size does not fit {config.filename}, where {kind} in {place} chooses the size; leave "
                            "it out, or set the sizes with --cfg-options")
    for step, _ in steps:
        if step["type"] == "Resize":
            step.update(scale=(side, side), keep_ratio=True)
        else:
            shorter = [min(scale) for scale in step["scale"]]
            step.update(scale=[(round(side * each / max(shorter)),) * 2 for each in shorter], keep_ratio=True)


def use_processes(config: Config, launcher: str, gloo: bool) -> None:
    """Many processes; over gloo each holds its model where it is, and DDP must not ask for a device of its own."""
    config.launcher = launcher
    if gloo:
        own = config.get("model_wrapper_cfg") or {"find_unused_parameters": config.get("find_unused_parameters", False)}
        config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "broadcast_buffers": False, **own,
                                    "device_ids": None}


def use_training_hooks(config: Config, stage: str) -> None:
    """Whole checkpoints, a stop at NaN and lines of progress in place of MMDetection's log on the console."""
    exact = any(hook["type"] == "ExactResume" for hook in config.get("custom_hooks") or [])
    config.default_hooks = config.get("default_hooks") or {}
    config.default_hooks.checkpoint = {"steps": CHECKPOINT_STEPS if exact else 0,
                                       **(config.default_hooks.get("checkpoint") or {}), "type": "AtomicCheckpoint"}
    config.default_hooks.runtime_info = {"type": "LateRuntimeInfo"}
    own = config.get("custom_hooks") or []
    there = [hook["type"] for hook in own]
    config.custom_hooks = [*own, *(hook for hook in _training_hooks(stage) if hook["type"] not in there)]


def drop_training_hooks(config: Config) -> None:
    """Takes away the hooks that use_training_hooks has added, where the config is the copy of an earlier run's."""
    added = [{**hook, "stage": ""} for hook in _training_hooks("")]
    config.custom_hooks = [hook for hook in config.get("custom_hooks") or [] if {**hook, "stage": ""} not in added]


def _training_hooks(stage: str) -> list[dict[str, Any]]:
    return [{"type": "LearningRateNote", "stage": stage}, {"type": "StopAtNaN"},
            {"type": "ProgressLine", "stage": stage, "metrics": ["coco/bbox_mAP", "coco/segm_mAP"]}]


def use_test_time_augmentation(config: Config) -> None:
    """MMDetection's --tta: the config's own tta_model and tta_pipeline, else a horizontal flip."""
    model = config.get("tta_model") or {
        "type": "DetTTAModel", "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}}
    dataset = innermost(config.test_dataloader.dataset)
    pack = {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor",
                                                   "flip", "flip_direction")}
    flips = {"type": "TestTimeAug", "transforms": [[{"type": "RandomFlip", "prob": p} for p in (1.0, 0.0)], [pack]]}
    dataset.pipeline = config.get("tta_pipeline") or [*dataset.pipeline[:-1], flips]
    config.model = {**model, "module": config.model}


def filter_of(config: Config) -> dict[str, Any]:
    """By which rules MMDetection leaves images out of training."""
    return innermost(config.train_dataloader.dataset).get("filter_cfg") or {}


def pipeline_of(config: Config, part: str) -> list[Any]:
    """The transforms of the data set of "train", "val" or "test"."""
    return innermost(config[f"{part}_dataloader"].dataset).pipeline


def has_masks(config: Config) -> bool:
    """Whether the detector learns masks: it has a head for them, or its pipelines load them."""
    loaders = [config.get(f"{part}_dataloader") for part in ("train", "val", "test")]
    return any("mask_head" in entry for entry in dicts_in(config.model)) or any(
        entry.get("with_mask") for entry in dicts_in(loaders))


def dicts_in(value: Any) -> Iterator[Any]:
    """`value` and every dict inside it, through dicts, lists and tuples."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from dicts_in(entry)


def _evaluators(evaluator: Any) -> list[Any]:
    return evaluator if isinstance(evaluator, list) else [evaluator]


def innermost(dataset: Any) -> Any:
    """The data set inside wrappers such as RepeatDataset."""
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset
