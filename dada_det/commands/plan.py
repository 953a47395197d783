"""tools/plan.py: hours, decode cores, memory and the limit of a config on N GPUs, from figures measured on one."""

import csv
import re
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json
from dada_det.report.plan import TRIAL_OVER_STEPS, Figures, as_row, plan, table
from dada_det.report.statistics import median_interval

RESULTS = common.ROOT / "results"
SECONDS = 15.0  # that the steps of one batch size are measured for
STEPS = (3, 30)  # at least, at most
SAMPLES = 100
# What --measured plans where no CONFIG is given, and for how many (GPUs of a node, nodes).
STUDY = (*(f"configs/pretrain_r50{recipe}.py" for recipe in ("", "_modern", "_paper", "_rsb_a1", "_rsb_a2", "_rsb_a3")),
         "configs/search_imagenet.py",
         *(f"configs/{detector}_r50_baseline.py" for detector in ("retinanet", "faster_rcnn", "mask_rcnn")))
SCALES = ((1, 1), (8, 1), (8, 8))
HOST_BATCH = 8  # images of the steps whose time on the host is taken
TIMES = ("seconds_per_image", "low", "high", "host_seconds")  # of Figures
MODELLED = ("time is linear in images and in devices, memory in images; communication, validation and the start of a run "
            "are not modelled")


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, and measures where it is told to; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "plan.py", "Says how long each CONFIG (a search, pretraining, a detector) takes on N GPUs, how many cores decode "
        "needs, how much memory a GPU, and which of the three limits. The figures come from results/plan_<hardware>.json; "
        "--measure takes those of this machine and writes them there. With --measured they are those of tools/bench/gpu.sh, "
        "and the plan is of a whole study, for 1, 8 and 64 GPUs.",
        "python tools/plan.py configs/pretrain_r50.py configs/retinanet_r50_dada.py --gpus 8 --nodes 2")
    parser.add_argument("config", nargs="*", metavar="CONFIG", help="of a search, pretraining or a detector")
    parser.add_argument("--gpus", type=common.positive, metavar="N", help="of each node (default: 1)")
    parser.add_argument("--nodes", type=common.positive, metavar="M", help="machines (default: 1)")
    parser.add_argument("--measured", type=Path, metavar="OUT", help="folder of tools/bench/gpu.sh: its figures, for CONFIG "
                        "or else ResNet-50 by each recipe, the search with its trial, and the three detectors")
    parser.add_argument("--cores", type=common.positive, metavar="N",
                        help="of each node (default: those of the machine that was measured)")
    parser.add_argument("--images", type=common.positive, metavar="N", help="training images (default: ImageNet's, the "
                        "search's, COCO train2017's)")
    parser.add_argument("--measure", action="store_true", help="measure the configs here first, about a minute each")
    parser.add_argument("--data", metavar="DIR", help="with --measure: images to decode, as the stage's --data")
    parser.add_argument("--threads", type=common.positive, metavar="N",
                        help="with --measure on a CPU: of torch (default: torch's own)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="folder of the plan_*.json (default: the project's results)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="change entries of every CONFIG")
    parser.add_argument("--json", metavar="FILE", help="write hardware, versions and rows")
    return common.run(body, parser, argv)


def body(args: Namespace) -> None:
    if args.data and not args.measure:
        raise UserError("--data is what --measure decodes; add --measure, or leave it out")
    if args.measured and args.measure:
        raise UserError("--measured takes the figures that are in its folder, and --measure takes new ones; leave one out")
    if not args.config and not args.measured:
        raise UserError("no config is given; give one such as configs/pretrain_r50.py, or --measured OUT")
    folder = args.measured or args.results
    known, trial = read_figures(folder), trial_share(args.measured) if args.measured else 0.0
    paths = args.config or STUDY
    configs = {config_name(path, args.cfg_options): common.load_config(path, args.cfg_options) for path in paths}
    if len(configs) < len(set(paths)):
        raise UserError("two of the configs have one name, by which figures are kept; rename one of the files")
    scales = SCALES if args.measured and not (args.gpus or args.nodes) else ((args.gpus or 1, args.nodes or 1),)
    from dada_det.engine.compare.plan_steps import demand_of, has_trial

    for config in configs.values():  # so that a mistake is told before anything is measured
        demand_of(config, scales[0][0] * scales[0][1], args.images)
    for name, config in configs.items() if args.measure else ():
        new = measure(name, config, args)
        known = [*(old for old in known if (old.config, old.hardware) != (name, new.hardware)), new]
        path = figures_path(folder, new.hardware)
        write(path, [as_row(each) for each in known if each.hardware == new.hardware])
        print(f"plan  wrote the figures of {name} on {new.hardware} in {path}", file=sys.stderr)
    rows, notes, on_gpu = [], dict[str, None](), False
    options = f" --cfg-options {' '.join(args.cfg_options)}" if args.cfg_options else ""
    for name, config in configs.items():
        found = [figures for figures in known if figures.config == name and fits(figures, config)] \
            or stand_ins(known, name, config)
        if not found:
            again = f"`bash tools/bench/gpu.sh {folder} --only images plan_images plan_boxes`" if args.measured else \
                f"`python tools/plan.py {' '.join(args.config)} --measure{options}` on the machine that will train"
            raise UserError(f"{folder} has no figures of {name}; run {again}")
        for figures in found:
            on_gpu |= figures.on_gpu
            measured = facts(figures)
            if figures.stage == "search" and has_trial(config):
                figures, note = with_trial(figures, trial) if trial else with_estimated_trial(figures, known, config)
                notes[f"{name}: the time {note}."] = None
            for gpus, nodes in scales:
                devices = (gpus if figures.on_gpu else 1) * nodes
                rows.append(plan(figures, demand_of(config, devices, args.images), gpus, nodes, args.cores))
                rows[-1] |= {"measured": measured}
    print("\n".join(table(rows)))
    for said in dict.fromkeys(f"{row['config']}: {row['measured']}; images: {row['images_from']}" for row in rows):
        print(said)
    for note in notes:
        print(note)
    if not on_gpu:
        print(f"No GPU was measured, so --gpus {scales[-1][0]} changes nothing (a machine without one is one device): run "
              "the same with --measure on a machine that has one.")
    if args.json:
        write(Path(args.json), rows, {"gpus": args.gpus, "nodes": args.nodes})
    print(f"plan  done: {len(rows)} rows {f'in {args.json}' if args.json else '(not kept: no --json)'}; {MODELLED}")


def trial_share(folder: Path) -> float:
    """The seconds of a search's trial over those of its steps, as gpu.csv of `folder` holds it; 0 where it does not."""
    path = folder / "gpu.csv"
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `bash tools/bench/gpu.sh {folder}` on a machine with a GPU first")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            values = [float(line["value"]) for line in csv.DictReader(file)
                      if (line["figure"], line["result"]) == (TRIAL_OVER_STEPS, "pass")]
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not what gpu.sh writes ({error}); run it again") from error
    return values[0] if values else 0.0


def with_estimated_trial(figures: Figures, known: Sequence[Figures], config: Any) -> tuple[Figures, str]:
    """(a search's figures with the time of its trial, where that is from): nine trainings, each as long as a pretraining of
    the same network takes for as many images. The figures stay where no such training was measured on their hardware."""
    from dada_det.engine.compare.plan_steps import TRIAL_TRAININGS, trial_passes

    passes = trial_passes(config)
    same = ("hardware", "threads", "model", "precision", "image_size")
    for one in known:
        if one.stage == "pretraining" and all(getattr(one, name) == getattr(figures, name) for name in same):
            share = passes * one.seconds_per_image / figures.seconds_per_image
            return (replace(figures, **{name: getattr(figures, name) + passes * getattr(one, name) for name in TIMES}),
                    f"holds the search's trial, {TRIAL_TRAININGS} trainings at the cost of {one.config}'s step, {share:.2f} "
                    "times the time of the steps")
    return figures, (f"leaves out the search's trial, {TRIAL_TRAININGS} trainings, {passes} times the images of the "
                     f"steps; --measure a pretraining of {figures.model} too, in {figures.precision} and with the same "
                     "image_size")


def with_trial(figures: Figures, share: float) -> tuple[Figures, str]:
    """The same with the `share` of the steps' time that a trial took; trainings share out over devices as batches do."""
    return (replace(figures, **{name: getattr(figures, name) * (1 + share) for name in TIMES}),
            f"holds the search's trial, which has taken {share:.2f} times as long as the steps")


def fits(figures: Figures, config: Any) -> bool:
    """Whether figures under a config's name are of its network and image size; another file may have the same name."""
    return figures.stage == "detection" or (figures.model, figures.image_size or config.image_size) == (
        config.classifier.name, config.image_size)


def stand_ins(known: Sequence[Figures], name: str, config: Any) -> list[Figures]:
    """Figures of another recipe of pretraining with the same network, images of one size and the same precision: its step
    costs as much."""
    from dada_det.engine.compare.plan_steps import stage_of

    if stage_of(config) != "pretraining":
        return []
    return [replace(figures, config=name) for figures in known
            if (figures.stage, figures.model, figures.image_size) == ("pretraining", config.classifier.name,
                                                                      config.image_size)
            and config.precision in ("auto", figures.precision)]


def config_name(path: str, options: Sequence[str]) -> str:
    """The config as configs/ names it, such as "debug/pretrain", and its changes: figures of one are not of another."""
    parts = Path(path).with_suffix("").parts
    stem = "/".join(parts[-2:]) if parts[-2:-1] == ("debug",) else parts[-1]
    return " ".join([stem, *options])


def read_figures(folder: Path) -> list[Figures]:
    """The rows of every plan_*.json in `folder`.

    Raises:
        UserError: a file is not what --measure writes.
    """
    found = []
    for path in sorted(folder.glob("plan_*.json")):
        content = read_json(path, "figures")
        try:
            found += [Figures(hardware=content["hardware"], **row) for row in content["rows"]]
        except (KeyError, TypeError) as error:
            names = ", ".join(field.name for field in fields(Figures))
            raise UserError(f"{path} is not what --measure writes (rows of {names}); remove it and measure again") from error
    return found


def figures_path(folder: Path, hardware: str) -> Path:
    return folder / f"plan_{re.sub('[^a-z0-9]+', '_', hardware.lower()).strip('_')}.json"


def measure(name: str, config: Any, args: Namespace) -> Figures:
    """The figures of a config on this machine."""
    import torch

    from dada_det.engine.compare import plan_steps
    from dada_det.engine.compare.step_cost import core_seconds, host_seconds, peak_bytes, step_seconds
    from dada_det.report.measurements import hardware

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    stage = plan_steps.build_stage(config, args.data)
    demand = plan_steps.demand_of(config, (args.gpus or 1) * (args.nodes or 1), args.images)
    sizes, peaks, seconds = plan_steps.batches_for(stage, demand.per_device), [], [0.0]
    for batch in sizes:
        print(f"plan  {name}  {stage.model}, batch {batch}, about {SECONDS:.0f} s", file=sys.stderr, flush=True)
        step = stage.step(batch)
        step.run()
        peaks.append(peak_bytes(step))
        began, seconds = time.monotonic(), []
        while len(seconds) < STEPS[0] or (len(seconds) < STEPS[1] and time.monotonic() - began < SECONDS):
            seconds.append(step_seconds(step) / batch)
    per_image = max(0.0, (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]))
    samples: list[float] = []
    if stage.samples is not None:
        print(f"plan  {name}  samples of {stage.source}", file=sys.stderr, flush=True)
        stage.samples(0)
        samples = core_seconds(stage.samples, range(0, stage.count, max(1, stage.count // SAMPLES)))[:SAMPLES]
    low, high = median_interval(seconds)
    host = 0.0
    if plan_steps.device().type == "cuda":
        step = stage.step(min(HOST_BATCH, sizes[0]))
        step.run()
        host = host_seconds(step)
    return Figures(name, stage.name, hardware(), stage.model, stage.precision, sizes[1], statistics.median(seconds), low,
                   high, len(seconds), peaks[1] - per_image * sizes[1], per_image,
                   statistics.mean(samples) if samples else None, len(samples), stage.source, **plan_steps.machine(),
                   host_seconds=host, image_size=None if stage.name == "detection" else config.image_size)


def facts(figures: Figures) -> str:
    """What was measured where, in one line."""
    decode = (f"a sample {1000 * figures.sample_core_seconds:.2f} ms of a core ({figures.sample_source})"
              if figures.sample_core_seconds is not None else
              "no decode in the loop" if figures.stage == "search" else "decode not measured (give --data with --measure)")
    size = f" of {figures.image_size} px" if figures.image_size else ""
    threads = "" if figures.on_gpu else f", {figures.threads} of {figures.cores} cores"
    return (f"measured on {figures.hardware}{threads}, {figures.model} in {figures.precision}, batch {figures.batch}{size}: "
            f"{1000 * figures.seconds_per_image:.4g} ms an image ({1000 * figures.low:.4g}..{1000 * figures.high:.4g}, "
            f"n = {figures.n}); {decode}")


def write(path: Path, rows: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> None:
    from dada_det.report.measurements import write_rows

    make_folder(path.parent)
    write_rows(path, rows, settings)


if __name__ == "__main__":
    raise SystemExit(main())
