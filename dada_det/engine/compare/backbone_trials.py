"""Trains detectors on several backbones under one recipe and keeps each run's evaluation of every image.

Runs with equal seeds share the first weights of their heads, their batches and their images, whatever the backbone.
"""

import contextlib
import datetime
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from dada_det.data.checks import CocoLayout, check_coco
from dada_det.engine.detect.config import use_results_of_validation
from dada_det.engine.detect.run import run_training
from dada_det.engine.evaluate.figures import evaluation_of
from dada_det.engine.evaluate.results_stream import read_array
from dada_det.engine.evaluate.submission import KINDS
from dada_det.engine.runtime.checkpoint import SAME_COMMAND, find_checkpoint, goes_on_by
from dada_det.engine.runtime.environment import started_processes
from dada_det.engine.runtime.identity import demand_same, plain
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, sha256_of, write_json, write_text
from dada_det.report.detection_statistics import SIZES, Matches, figures_of, matches_of
from dada_det.report.measurements import hardware

RESULT, IDENTITY = "result.json", "identity.json"


@dataclass(frozen=True)
class Trial:
    """One run: what it is called, its seed, and the detector's config, which names its work_dir and backbone file."""

    detector: str
    backbone: str
    fraction: float
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.work_dir)

    def __str__(self) -> str:
        return f"{self.detector}, {self.backbone}, {100 * self.fraction:g} % of the images, seed {self.seed}"


def run_backbone_trials(trials: Sequence[Trial], layout: CocoLayout, work_dir: Path, launcher: str) -> None:
    """Every trial that has not ended yet, in trial.folder; a line for each, with what is left of the time.

    Writes trial.folder/result.json (six figures of each kind in percent, what was run, hardware, versions) and <kind>.npz
    (Matches), and removes the checkpoints.

    Raises:
        UserError: a folder holds a run with other settings (before the first run), or a run breaks off.
    """
    parts = {(trial.fraction, trial.seed): part_of(layout, trial.fraction, trial.seed, work_dir) for trial in trials}
    hashes = {path: sha256_of(path)[:16] for path in {part.part("train")[0] for part in parts.values()} |
              {layout.part("val")[0], *(Path(_backbone(trial.config)) for trial in trials)}}
    identities = [identity_of(trial, parts[trial.fraction, trial.seed], hashes) for trial in trials]
    for trial, identity in zip(trials, identities, strict=True):
        claim(trial.folder, identity)
    left = [(trial, identity) for trial, identity in zip(trials, identities, strict=True)
            if not (trial.folder / RESULT).exists()]
    if len(left) < len(trials) and is_main_process():
        print(f"compare  {len(trials) - len(left)} of {len(trials)} runs are done already and skipped", flush=True)
    began = time.monotonic()
    for done, (trial, identity) in enumerate(left, 1):
        try:
            with goes_on_by(SAME_COMMAND):
                run_backbone_trial(trial, parts[trial.fraction, trial.seed], identity, launcher)
        except UserError as error:
            raise UserError(f"{trial}: {error}") from error
        rest = datetime.timedelta(seconds=round((time.monotonic() - began) / done * (len(left) - done)))
        if is_main_process():
            figures = read_json(trial.folder / RESULT, "run's result")["figures"]
            said = ", ".join(f"{'box' if kind == 'bbox' else 'mask'} AP {of_kind['AP']:.2f}"
                             for kind, of_kind in figures.items())
            print(f"compare  run {len(trials) - len(left) + done}/{len(trials)}  {trial}: {said}  ETA {rest}", flush=True)


def run_backbone_trial(trial: Trial, layout: CocoLayout, identity: dict[str, Any], launcher: str) -> None:
    """Trains, validates once at the end, and keeps the evaluation of each image; goes on from a checkpoint in the folder."""
    config, prefix = trial.config, trial.folder / "results"
    use_results_of_validation(config, prefix)
    summary = check_coco(*layout.part("train"))
    resume = "auto" if find_checkpoint(trial.folder) else None
    run_training(config, layout, summary, resume=resume, amp=False, auto_scale_lr=config.auto_scale_lr.enable,
                 launcher=launcher)
    if not Path(f"{prefix}.bbox.json").is_file():  # cut short between the last checkpoint and the end of the validation
        config.load_from, config.resume = str(find_checkpoint(trial.folder)), False
        config.default_hooks.checkpoint = None
        QuietRunner.from_cfg(config).val()
    if is_main_process():
        keep_result(trial.folder, prefix, layout.part("val")[0], identity)
    barrier()


def keep_result(folder: Path, prefix: Path, annotations: Path, identity: dict[str, Any]) -> None:
    """The run's <kind>.npz and, last, its result.json; then results and checkpoints go."""
    figures = {}
    for kind in KINDS:
        path = Path(f"{prefix}.{kind}.json")
        if path.is_file():
            matches = match(annotations, path, kind)
            matches.save(folder / f"{kind}.npz")
            values = figures_of(matches, np.ones(matches.images, int))
            figures[kind] = {name: None if math.isnan(value) else round(float(value), 4)
                             for name, value in zip(SIZES, values, strict=False)}
    write_json(folder / RESULT, {"figures": figures, "identity": identity, "hardware": hardware(),
                                 "versions": {name: version(name) for name in ("torch", "onedl-mmdetection", "dada_det")}})
    for pattern in ("epoch_*.pth", "iter_*.pth", "last_checkpoint", f"{prefix.name}.*.json", "*-resampled-*.npy"):
        for path in folder.glob(pattern):
            path.unlink()


def match(annotations: Path, results: Path, kind: str) -> Matches:
    """pycocotools' evaluation of each image, for detections in COCO's results format."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluation_of(annotations, read_array(results), kind, reference=True)
        evaluation.evaluate()
    return matches_of(evaluation, [category["name"] for category in evaluation.cocoGt.loadCats(evaluation.params.catIds)])


def part_of(layout: CocoLayout, fraction: float, seed: int, work_dir: Path) -> CocoLayout:
    """`layout` with a fraction of the training images, drawn by `seed`; a larger fraction holds a smaller one's images.

    The annotations of the part are written to work_dir/data.
    """
    if fraction == 1:
        return layout
    annotations, _ = layout.part("train")
    content = read_json(annotations, "annotation file")
    ids = sorted(image["id"] for image in content["images"])  # Python's whole numbers, of any size
    kept = {ids[place] for place in np.random.default_rng(seed).permutation(len(ids))[:max(1, round(fraction * len(ids)))]}
    part = {**content, "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [entry for entry in content["annotations"] if entry["image_id"] in kept]}
    path = make_folder(work_dir / "data") / f"{annotations.stem}-{100 * fraction:g}-s{seed}.json"
    write_text(path, json.dumps(part))
    return replace(layout, train_annotations=path)


def identity_of(trial: Trial, layout: CocoLayout, hashes: dict[Path, str]) -> dict[str, Any]:
    """What makes a run this one and no other."""
    content = plain(trial.config.to_dict())
    content.pop("work_dir")
    content["model"]["backbone"]["init_cfg"].pop("checkpoint")
    for name in ("backbone", "backbone_command", "data_root"):  # the config's defaults, which the flags have replaced
        content.pop(name, None)
    batch = (trial.config.train_dataloader.get("batch_size") or 1) * started_processes()  # also sets the learning rate
    return {"detector": trial.detector, "fraction": trial.fraction, "seed": trial.seed, "batch_size": batch,
            "config": content, "backbone": hashes[Path(_backbone(trial.config))], "train": hashes[layout.part("train")[0]],
            "val": hashes[layout.part("val")[0]]}


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Notes in `folder` which run it is for. Only a folder with that note is ever cleared (keep_result).

    Raises:
        UserError: it is another run's, or holds files that no run has written.
    """
    path = make_folder(folder) / IDENTITY
    if path.exists():
        demand_same(path, read_json(path, "run's identity"), identity)
    elif is_main_process():
        if strangers := sorted(found.name for found in folder.iterdir() if IDENTITY not in found.name):
            raise UserError(f"{folder} holds {strangers[0]}, which no run of a comparison has written; give another "
                            "--work-dir")
        write_json(path, identity)


def _backbone(config: Config) -> str:
    return config.model.backbone.init_cfg.checkpoint
