"""tools/compare_backbones.py: backbones held against each other under detectors, with intervals over images and seeds."""

import argparse
import copy
import hashlib
import json
import math
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dada_det.commands import common
from dada_det.commands.detector_data import demand_classes, demand_nothing_given, demand_same_categories, use_single
from dada_det.commands.train_det import check_backbone, detector_config
from dada_det.data.checks import CocoLayout, check_coco, find_coco
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json

if TYPE_CHECKING:
    from dada_det.engine.compare.backbone_trials import Trial

SHORT = ("retinanet", "faster_rcnn", "mask_rcnn")
RESAMPLES = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "compare_backbones.py", "Trains each detector on each backbone with each of the seeds 0 to n - 1, under one recipe; "
        "equal seeds share heads, batches and images. Prints AP with a 95 % interval over images (paired bootstrap), its "
        "spread over seeds, and the paired difference to the last backbone, by size and class; writes W/comparison.csv, "
        "W/runs.csv and W/comparison.png. The same command again skips the runs that are done and goes on with those cut "
        "short. Checkpoints are removed once a run has its result.",
        "python tools/compare_backbones.py --data data/coco --detectors retinanet mask_rcnn --seeds 3 --fraction 0.1 1 \\\n"
        "      --backbones policy=work_dirs/p/r50.pth none=work_dirs/n/r50.pth")
    parser.add_argument("--backbones", required=True, nargs="+", metavar="[NAME=]FILE",
                        help="files that pretraining wrote; {seed} in a name is the seed; the last is the reference")
    parser.add_argument("--detectors", required=True, nargs="+", metavar="D",
                        help=f"configs, or {', '.join(SHORT)} for configs/<name>_r50_dada.py")
    parser.add_argument("--data", required=True, metavar="DIR", help="COCO's layout: annotations/, {train,val}2017/ or "
                        "{train,val}/")
    parser.add_argument("--seeds", type=common.positive, default=3, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--fraction", type=share, nargs="+", default=[1.0], metavar="f", help="of the training images, "
                        "drawn by seed; a larger fraction holds a smaller one's images; several are compared one by one "
                        "(default: 1)")
    parser.add_argument("--epochs", type=common.positive, metavar="E", help="passes over the images of the fraction, with "
                        "the config's schedule stretched to them (default: the config's)")
    parser.add_argument("--image-size", type=common.positive, metavar="N", help="longer side in pixels (default: the "
                        "config's)")
    parser.add_argument("--resamples", type=common.positive, default=RESAMPLES, metavar="N",
                        help="of the validation images, for the intervals (default: %(default)s)")
    parser.add_argument("--work-dir", default="work_dirs/compare_backbones", metavar="W", help="(default: %(default)s)")
    common.add_common_flags(parser)
    return common.run(body, parser, argv, module="dada_det.commands.compare_backbones")


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction in 0..1")
    return number


def body(args: Namespace) -> None:
    names, detectors = common.named(args.backbones, "--backbones"), common.named(args.detectors, "--detectors")
    if len(names) < 2:
        raise UserError("--backbones needs at least two, the last of which is the reference; write NAME=FILE NAME=FILE")
    if not Path(args.data).exists():
        raise UserError(f"--data {args.data} does not exist; give the path of one that does")
    if args.image_size is not None and args.image_size < 32:
        raise UserError(f"--image-size {args.image_size} is too small for a detector; give at least 32 px")
    layout = find_coco(args.data)
    demand_same_categories(layout.train_annotations, check_coco(*layout.part("train")),
                           layout.val_annotations, check_coco(*layout.part("val")))
    work_dir = make_folder(args.work_dir)
    trials = make_trials(args, names, detectors, layout, work_dir)
    for file in dict.fromkeys(trial.config.model.backbone.init_cfg.checkpoint for trial in trials):
        check_backbone(file, {"backbone_command": "tools/pretrain_r50.sh"})
    from dada_det.engine.compare.backbone_trials import run_backbone_trials

    print_once(f"compare  {len(trials)} runs: {len(detectors)} detectors, {len(names)} backbones, {args.seeds} seeds, "
               f"fractions {', '.join(f'{fraction:g}' for fraction in args.fraction)}")
    try:
        run_backbone_trials(trials, layout, work_dir, "none")
    except KeyboardInterrupt:
        print("compare  the same command goes on where this one stopped", file=sys.stderr)
        raise
    if is_first_process():
        report(args, trials, work_dir)


def make_trials(args: Namespace, names: dict[str, str], detectors: dict[str, str], layout: CocoLayout,
                work_dir: Path) -> list["Trial"]:
    """One trial for each detector, fraction, backbone and seed, with its config; seeds outermost, so that a comparison that
    is stopped early is paired."""
    from dada_det.engine.compare.backbone_trials import Trial
    from dada_det.engine.detect.config import use_epochs, use_image_size

    images = len(read_json(layout.part("train")[0], "annotation file")["images"])
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    plain = {detector: detector_config(Namespace(
        config=f"configs/{path}_r50_dada.py" if path in SHORT else path, backbone=None, data=None,
        cfg_options=args.cfg_options, work_dir=str(work_dir))) for detector, path in detectors.items()}
    annotations, _ = layout.part("train")
    categories = check_coco(*layout.part("train")).categories
    for config in plain.values():
        demand_nothing_given(config, ("train", "val"), "every run trains on --data")
        demand_classes(config, categories, args.cfg_options, annotations)
        use_single(config, "val")
    trials = []
    for seed in range(args.seeds):
        files = {backbone: file.replace("{seed}", str(seed)) for backbone, file in names.items()}
        if missing := [file for file in files.values() if not Path(file).is_file()]:
            raise UserError(f"--backbones {missing[0]} does not exist; give files that tools/pretrain_r50.sh wrote")
        for detector in detectors:
            for fraction in dict.fromkeys(args.fraction):
                for backbone, file in files.items():
                    config = copy.deepcopy(plain[detector])
                    config.model.backbone.init_cfg.checkpoint = file
                    config.work_dir = str(work_dir / "runs" / f"{detector}-{backbone}-{100 * fraction:g}-s{seed}")
                    config.randomness = {**config.get("randomness", {}), "seed": seed}
                    config.setdefault("auto_scale_lr", {"enable": False})
                    use_epochs(config, args.epochs, max(1, round(fraction * images)), processes)
                    if args.image_size:
                        use_image_size(config, args.image_size)
                    trials.append(Trial(detector, backbone, fraction, seed, config))
    return trials


def report(args: Namespace, trials: Sequence["Trial"], work_dir: Path) -> None:
    """Table, CSV files and plot, all from what the trials have kept."""
    from dada_det.engine.compare.backbone_trials import RESULT
    from dada_det.report import detection_comparison as comparison
    from dada_det.report.comparison import write_csv
    from dada_det.report.detection_statistics import SIZES

    scores, rows = [], []
    for number, trial in enumerate(ordered(trials), 1):
        found = read_json(trial.folder / RESULT, "run's result")
        for kind, figures in found["figures"].items():
            scores.append(score_of(trial, kind, args.resamples))
            rows.append({"detector": trial.detector, "kind": kind, "fraction": trial.fraction, "backbone": trial.backbone,
                         "seed": trial.seed,
                         **{name: math.nan if figures[name] is None else figures[name] for name in SIZES},
                         "val_images": scores[-1].images,
                         "config_hash": hash_of_config(found["identity"]["config"]),
                         **{f"{name}_hash": found["identity"][name] for name in ("backbone", "train", "val")},
                         "hardware": found["hardware"], **found["versions"]})
        if number % 10 == 0:
            print(f"compare  resampled the images of {number} of {len(trials)} runs", flush=True)
    reference = trials[-1].backbone
    summary = comparison.summarise(scores, reference)
    write_csv(work_dir / "runs.csv", rows)
    comparison.write_rows(work_dir / "comparison.csv", summary)
    comparison.plot(work_dir / "comparison.png", summary, scores, reference,
                    f"{Path(args.data).name}: {args.seeds} seeds, {args.resamples} resamples of {scores[0].images} images")
    print(comparison.table(summary, reference))
    print(f"compare  done: comparison.csv, comparison.png, runs.csv ({len(rows)} rows) and runs/ in {work_dir}")


def hash_of_config(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def ordered(trials: Sequence["Trial"]) -> list["Trial"]:
    """By detector, fraction and backbone in the order of the flags, seeds innermost."""
    ranks = {name: list(dict.fromkeys(getattr(trial, name) for trial in trials))
             for name in ("detector", "fraction", "backbone")}
    return sorted(trials, key=lambda trial: [rank.index(getattr(trial, name)) for name, rank in ranks.items()])


def score_of(trial: "Trial", kind: str, resamples: int) -> Any:
    """The run's figures, and on resampled images; those are kept beside the run, as they take a minute on COCO."""
    import numpy as np

    from dada_det.files import whole_file
    from dada_det.report.detection_comparison import Score, Setting
    from dada_det.report.detection_statistics import Matches, figures_of, image_weights, resample

    matches = Matches.load(trial.folder / f"{kind}.npz")
    path = trial.folder / f"{kind}-resampled-{resamples}.npy"
    if not path.exists():
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, resample(matches, image_weights(matches.images, resamples)))
    return Score(Setting(trial.detector, kind, trial.fraction), trial.backbone, trial.seed, matches.figures,
                 figures_of(matches, np.ones(matches.images, int)), np.load(path, allow_pickle=False), matches.images)


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def print_once(text: str) -> None:
    if is_first_process():
        print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
