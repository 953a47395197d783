"""Training and testing a detector: MMDetection's Runner with checked inputs, whole artefacts and one closing line."""

import datetime
import functools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed
from pycocotools import coco, cocoeval
from torch import nn

from dada_det.data.checks import CocoLayout, check_coco
from dada_det.data.coco_instances import CocoSummary
from dada_det.engine.detect import config as change
from dada_det.engine.detect import guard  # noqa: F401  registers DADAResNet and hands mmcv its operators
from dada_det.engine.detect.identity import identity_of
from dada_det.engine.detect.whole_images import demand_whole, reader_of, what_trains
from dada_det.engine.evaluate.figures import FIGURES, evaluate_results
from dada_det.engine.evaluate.results_stream import read_array
from dada_det.engine.evaluate.submission import KINDS, check_submission, submission_stem, surest, write_submission
from dada_det.engine.runtime.checkpoint import check_checkpoint, find_checkpoint, forbid_unsafe_loading
from dada_det.engine.runtime.hooks import ProgressLine, StampIdentity
from dada_det.engine.runtime.identity import Identity, resume_point
from dada_det.engine.runtime.launch import join_processes, say_machines
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.errors import UserError
from dada_det.files import write_json


@dataclass(frozen=True)
class TestFlags:
    """MMDetection's flags of tools/test.py, with its meanings."""

    out: str | None = None
    show: bool = False
    show_dir: str | None = None
    wait_time: float = 2.0
    tta: bool = False


def run_training(config: Config, layout: CocoLayout, summary: CocoSummary, *, resume: str | None, amp: bool,
                 auto_scale_lr: bool, launcher: str) -> None:
    """Trains the detector of `config` on `layout`, whose training part is `summary`, into config.work_dir.

    Args:
        resume: None, "auto" (the newest checkpoint of the work_dir) or a checkpoint's path.

    Prints one closing line.
    """
    _join(config, launcher)
    if resume is None and config.get("resume"):
        resume = config.pop("load_from", None) or "auto"
    config.resume = False  # it is this run's alone, and the work_dir's copy of the config can begin another
    change.drop_training_hooks(config)
    change.take_back(config)
    say_machines(Path(config.filename).stem, config.work_dir, resume is not None)
    (annotations, images), val_part = layout.part("train"), layout.part("val")
    val = check_coco(*val_part)
    _demand_masks(config, summary, annotations)
    _demand_masks(config, val, val_part[0])
    _refuse_sync_bn(config)
    change.use_backbone(config)
    change.use_data(config, layout, summary.categories)
    demand_maps(config)
    broken, notes = what_trains(config, summary, annotations, images)
    demand_whole(val.pictures, *val_part, reader_of(change.pipeline_of(config, "val")))
    if amp:
        if not torch.cuda.is_available():
            raise UserError("--amp trains in float16 and needs a GPU, of which there is none here; leave it out")
        config.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    config.auto_scale_lr.enable = auto_scale_lr
    identity = identity_of(config, get_world_size())
    found = _resume_point(config, resume, identity)
    change.leave_out(config, broken)
    change.use_training_hooks(config, Path(config.filename).stem)
    runner = _runner(config)
    runner.register_hook(StampIdentity(identity))
    validated = _LastFigures()
    runner.register_hook(validated)
    if found:
        matching_weights(check_checkpoint(found), runner.model, found, config)
        runner._resume, runner._load_from = True, str(found)
    if is_main_process():
        for note in notes:
            _say_once(note)
    runner.train()
    if is_main_process():
        adopted = f"; {config.adopted}" if config.get("adopted") else ""
        print(f"{Path(config.filename).stem}  done: wrote {find_checkpoint(config.work_dir)}; {validated}{adopted}")


def run_test(config: Config, layout: CocoLayout, summary: CocoSummary, checkpoint: str, test_dev: bool,
             flags: TestFlags, launcher: str) -> None:
    """Evaluates `checkpoint` on the validation part of `layout`, or writes test-dev's zips; prints one closing line.

    Args:
        summary: of the annotations that are used (image_info with `test_dev`).
        checkpoint: a file, or "none" for the detector as training would start it: the backbone from its file, the rest
            random by the config's seed.
    """
    _join(config, launcher)
    change.use_backbone(config)
    change.use_data(config, layout, summary.categories)
    annotations, images = layout.part("test" if test_dev else "val")
    if test_dev:
        change.use_test_dev(config, annotations, images)
    else:
        _demand_masks(config, summary, annotations)
    demand_whole(summary.pictures, annotations, images, reader_of(change.pipeline_of(config, "test")))
    if is_main_process() and summary.dropped:
        print(f"{annotations}: COCO's figures count as objects what training would leave out, {summary.dropped_boxes}")
    content = None if checkpoint == "none" else check_checkpoint(checkpoint)
    config.load_from, config.resume = None, False  # of a training; mmengine's test would load it over the checkpoint
    _use_test_flags(config, flags)
    with tempfile.TemporaryDirectory(prefix=".results-", dir=config.work_dir) as folder:
        change.write_results_to(config, Path(folder) / "results")
        runner = _runner(config, _TestRunner)
        _give_weights(runner, content, checkpoint, config)
        if flags.out:
            from mmdet.evaluation import DumpDetResults

            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=flags.out))
        runner.test()
        if is_main_process():
            files = {kind: Path(folder) / f"results.{kind}.json" for kind in KINDS}
            files = {kind: path for kind, path in files.items() if path.is_file()}
            (_submit if test_dev else _score)(files, annotations, config)


@HOOKS.register_module()
class TestProgressLine(ProgressLine):
    """ProgressLine of the test loop: images done and the time that is left."""

    began: float | None = None

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        steps, now = len(runner.test_dataloader), time.monotonic()
        self.began = self.began or now
        if self.due(batch_idx + 1 == steps):
            left = (now - self.began) / max(1, batch_idx) * (steps - batch_idx - 1)
            self.print(f"test  step {batch_idx + 1}/{steps}  ETA {datetime.timedelta(seconds=round(left))}")


def matching_weights(content: dict[str, Any], model: nn.Module, path: str | Path, config: Config) -> dict[str, Any]:
    """The state dict in a checkpoint's `content`. Raises UserError, naming a tensor, unless it fills `model` exactly."""
    found, wanted = content.get("state_dict", content), _unwrapped(model).state_dict()
    shapes = {name: tuple(value.shape) for name, value in found.items() if isinstance(value, torch.Tensor)}
    for name in [*wanted, *shapes]:
        here, there = tuple(wanted[name].shape) if name in wanted else None, shapes.get(name)
        if here != there:
            raise UserError(f"the checkpoint {path} does not fit the detector of {config.filename}: {name} is "
                            f"{there or 'absent'} in the file and {here or 'absent'} in the detector; give the config and "
                            "the data (and, for a checkpoint from before 30 November 2026, the --backbone) that it was "
                            "trained with")
    classes = classes_in(content)
    expected = tuple(config.test_dataloader.dataset.metainfo.classes)
    if classes and classes != expected:
        raise UserError(f"the checkpoint {path} was trained on other categories ({', '.join(classes[:3])}..) than the "
                        f"annotations have ({', '.join(expected[:3])}..); give the data it was trained for")
    return found


def classes_in(content: dict[str, Any]) -> tuple[str, ...]:
    """The categories that a checkpoint's `content` names; () where it names none."""
    meta = (content.get("meta") or {}).get("dataset_meta")
    classes = meta.get("classes") if isinstance(meta, dict) else None
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()


def _join(config: Config, launcher: str) -> None:
    forbid_unsafe_loading()
    _refuse_pickles(config)
    joined = join_processes()
    gloo = joined and dist.get_backend() == "gloo"
    change.use_processes(config, "pytorch" if joined else launcher, gloo)


def _refuse_pickles(config: Config) -> None:
    """UserError where a data set is to read a pickle file (proposal_file, ann_file), which could run code."""
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for entry in change.dicts_in(config.get(loader)):
            for name, value in entry.items():
                if isinstance(value, str) and value.endswith((".pkl", ".pickle")):
                    raise UserError(f"{loader} has {name}={value}: a pickle file can carry code and is not opened; give the "
                                    "same as JSON")


@functools.cache
def _say_once(line: str) -> None:
    """Prints a line about the data, once for all runs of a comparison."""
    print(line)


def _demand_masks(config: Config, summary: CocoSummary, annotations: Path) -> None:
    if change.has_masks(config) and summary.without_mask:
        raise UserError(f"{annotations} has {summary.without_mask} annotations without a segmentation, "
                        f"which {Path(config.filename).stem} needs; add them or take a detector of boxes")


def demand_maps(config: Config) -> None:
    """UserError where the training loads maps of pixels' classes and their folder is not there."""
    folder = change.innermost(config.train_dataloader.dataset).data_prefix.get("seg")
    loads = any(step.get("with_seg") for step in change.pipeline_of(config, "train"))
    if loads and not (folder and Path(folder).is_dir()):
        raise UserError(f"{Path(config.filename).stem} learns a class of each pixel, and its maps are not at {folder}; put "
                        "them there (train_dataloader.dataset.data_prefix.seg), or take a detector without a semantic_head")


def _refuse_sync_bn(config: Config) -> None:
    """UserError where BatchNorm is to be shared by processes without a GPU, which torch cannot do."""
    if dist.is_initialized() and not torch.cuda.is_available() and any(
            entry.get("type") == "SyncBN" for entry in change.dicts_in(config.model)):
        raise UserError("SyncBN shares its statistics between GPUs, and there is none here; leave norm_cfg.type=SyncBN out, "
                        "or train in one process, where it is plain BatchNorm")


class _TestRunner(QuietRunner):
    """Leaves the training's copy of the config in the work_dir; a test's names a folder that is gone after it."""

    def dump_config(self) -> None:
        pass


def _runner(config: Config, kind: type[QuietRunner] = QuietRunner) -> Runner:
    # pycocotools prints its progress and tables; the closing line gives the figures.
    for module in (coco, cocoeval):
        module.print = lambda *texts, **options: None
    return kind.from_cfg(config)


def _unwrapped(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def _resume_point(config: Config, resume: str | None, identity: Identity) -> Path | None:
    if resume is None:
        return None
    return resume_point(config.work_dir, identity, Path(config.filename).stem, None if resume == "auto" else resume)


class _LastFigures(Hook):
    """The box and mask AP in percent of this process's last validation; a checkpoint's history ends before its own."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] | None = None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics or {}

    def __str__(self) -> str:
        if self.metrics is None:
            return "nothing was validated; tools/test_det.py gives its figures"
        found = {kind: self.metrics.get(f"coco/{kind}_mAP") for kind in KINDS}
        said = [f"{'box' if kind == 'bbox' else 'mask'} AP {100 * value:.1f}" for kind, value in found.items()
                if value is not None]
        return ", ".join(said) or "it detects nothing in the validation images yet"  # CocoMetric then gives no figure


def _use_test_flags(config: Config, flags: TestFlags) -> None:
    if flags.tta:
        if change.has_masks(config):
            raise UserError("--tta: MMDetection merges the boxes of several views but not their masks; leave it out "
                            f"for {Path(config.filename).stem}")
        change.use_test_time_augmentation(config)
    if flags.show or flags.show_dir:
        hooks = config.get("default_hooks") or {}
        drawing = {"type": "DetVisualizationHook", **(hooks.get("visualization") or {}), "draw": True, "show": flags.show,
                   "wait_time": flags.wait_time, "test_out_dir": flags.show_dir}
        config.default_hooks = {**hooks, "visualization": drawing}
        config.visualizer = config.get("visualizer") or {"type": "DetLocalVisualizer",
                                                         "vis_backends": [{"type": "LocalVisBackend"}]}
    config.custom_hooks = [{"type": "TestProgressLine", "stage": Path(config.filename).stem}]


def _give_weights(runner: Runner, content: dict[str, Any] | None, path: str, config: Config) -> None:
    model = _unwrapped(runner.model)
    detector = getattr(model, "module", model)  # inside test-time augmentation
    if content is None:
        set_random_seed(config.get("randomness", {}).get("seed") or 0)  # heads equal on all ranks and in all runs
        detector.init_weights()
    else:
        detector.load_state_dict(matching_weights(content, detector, path, config))


def _score(files: dict[str, Path], annotations: Path, config: Config) -> None:
    figures = {kind: evaluate_results(annotations, path, kind) for kind, path in files.items()}
    metrics = {kind: {name: found[name] for name in FIGURES[:6]} for kind, found in figures.items()}
    path = Path(config.work_dir) / "metrics.json"
    write_json(path, metrics)
    said = ", ".join(f"{'box' if kind == 'bbox' else 'mask'} AP {values['AP']:.1f} (AP50 {values['AP50']:.1f})"
                     for kind, values in metrics.items())
    print(f"{Path(config.filename).stem}  done: wrote {path}; {said}")


def _submit(files: dict[str, Path], image_info: Path, config: Config) -> None:
    stem, written = submission_stem(config.filename), []
    for kind, file in files.items():
        path = write_submission(surest(read_array(file)), image_info, Path(config.work_dir) / "test-dev" / kind, stem, kind)
        coverage = check_submission(path, image_info)
        written.append(f"{path} ({coverage.results} {kind} results on {coverage.covered} of {coverage.images} images)")
    print(f"{Path(config.filename).stem}  done: wrote {'; '.join(written)}")
