"""tools/plan.py: hours, decode cores, memory and the limit of a config on N GPUs, from figures measured on one."""

import re
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json
from dada_det.report.plan import Figures, as_row, plan, table
from dada_det.report.statistics import median_interval

RESULTS = common.ROOT / "results"
SECONDS = 15.0  # that the steps of one batch size are measured for
STEPS = (3, 30)  # at least, at most
SAMPLES = 100
MODELLED = ("time is linear in images and in devices, memory in images; communication, validation and the start of a run "
            "are not modelled")


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, and measures where it is told to; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "plan.py", "Says how long each CONFIG (a search, pretraining, a detector) takes on N GPUs, how many cores decode "
        "needs, how much memory a GPU, and which of the three limits. The figures come from results/plan_<hardware>.json; "
        "--measure takes those of this machine and writes them there.",
        "python tools/plan.py configs/pretrain_r50.py configs/retinanet_r50_dada.py --gpus 8 --nodes 2")
    parser.add_argument("config", nargs="+", metavar="CONFIG", help="of a search, pretraining or a detector")
    parser.add_argument("--gpus", type=common.positive, default=1, metavar="N", help="of each node (default: 1)")
    parser.add_argument("--nodes", type=common.positive, default=1, metavar="M", help="machines (default: 1)")
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
    known = read_figures(args.results)
    configs = {config_name(path, args.cfg_options): common.load_config(path, args.cfg_options) for path in args.config}
    from dada_det.engine.compare.plan_steps import demand_of

    for config in configs.values():
        demand_of(config, args.gpus * args.nodes, args.images)  # so that a mistake is told before anything is measured
    for name, config in configs.items() if args.measure else ():
        new = measure(name, config, args)
        known = [*(old for old in known if (old.config, old.hardware) != (name, new.hardware)), new]
        path = figures_path(args.results, new.hardware)
        write(path, [as_row(each) for each in known if each.hardware == new.hardware])
        print(f"plan  wrote the figures of {name} on {new.hardware} in {path}", file=sys.stderr)
    rows = []
    for name, config in configs.items():
        found = [figures for figures in known if figures.config == name]
        if not found:
            raise UserError(f"{args.results} has no figures of {name}; run `python tools/plan.py {' '.join(args.config)} "
                            "--measure` on the machine that will train")
        for figures in found:
            devices = (args.gpus if figures.on_gpu else 1) * args.nodes
            rows.append(plan(figures, demand_of(config, devices, args.images), args.gpus, args.nodes, args.cores))
            rows[-1] |= {"measured": facts(figures)}
    print("\n".join(table(rows)))
    for row in rows:
        print(f"{row['config']}: {row['measured']}; images: {row['images_from']}")
    if not any(figures.on_gpu for figures in known if figures.config in configs):
        print(f"No GPU was measured, so --gpus {args.gpus} changes nothing (a machine without one is one device): run the "
              "same with --measure on a machine that has one.")
    if args.json:
        write(Path(args.json), rows, {"gpus": args.gpus, "nodes": args.nodes})
    print(f"plan  done: {len(rows)} rows {f'in {args.json}' if args.json else '(not kept: no --json)'}; {MODELLED}")


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
    from dada_det.engine.compare.step_cost import core_seconds, peak_bytes, step_seconds
    from dada_det.report.measurements import hardware

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    stage = plan_steps.build_stage(config, args.data)
    demand = plan_steps.demand_of(config, args.gpus * args.nodes, args.images)
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
    return Figures(name, stage.name, hardware(), stage.model, stage.precision, sizes[1], statistics.median(seconds), low,
                   high, len(seconds), peaks[1] - per_image * sizes[1], per_image,
                   statistics.mean(samples) if samples else None, len(samples), stage.source, **plan_steps.machine())


def facts(figures: Figures) -> str:
    """What was measured where, in one line."""
    decode = (f"a sample {1000 * figures.sample_core_seconds:.2f} ms of a core ({figures.sample_source})"
              if figures.sample_core_seconds is not None else
              "no decode in the loop" if figures.stage == "search" else "decode not measured (give --data with --measure)")
    threads = "" if figures.on_gpu else f", {figures.threads} of {figures.cores} cores"
    return (f"measured on {figures.hardware}{threads}, {figures.model} in {figures.precision}, batch {figures.batch}: "
            f"{1000 * figures.seconds_per_image:.4g} ms an image ({1000 * figures.low:.4g}..{1000 * figures.high:.4g}, "
            f"n = {figures.n}); {decode}")


def write(path: Path, rows: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> None:
    from dada_det.report.measurements import write_rows

    make_folder(path.parent)
    write_rows(path, rows, settings)


if __name__ == "__main__":
    raise SystemExit(main())
