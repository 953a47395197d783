"""Our tools/train_det.py against MMDetection's own tools/train.py: the same losses, and what ours costs in time.

    python tools/bench/train_det.py --data data/coco --json train_det.json

Both train one resolved config on the same data with the same seed, in turns, each in a fresh process. MMDetection's runs
with its own CheckpointHook and none of ours but those that the result depends on (BackboneGuardHook, ExactResume); ours has
AtomicCheckpoint, StopAtNaN, ProgressLine, LearningRateNote and checks of the data on top, and MMDetection's a log on the
console. Every step is logged. A row is a config:

steps, scalars  training steps of a run; logged losses, learning rates and validation figures that were compared
differing       of these, those that are not equal to the last digit in every run
step, process   wall time of ours over MMDetection's: the steps without the first two; the whole process. Geometric mean over
                the rounds, with a 95 % interval by Student's t
cpu             the same for the processor seconds of the whole process, which other load on the machine disturbs less
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.data.checks import find_coco
from dada_det.errors import UserError
from dada_det.files import read_json

CONFIGS = ("configs/debug/faster_rcnn.py", "configs/retinanet_r50_dada.py")
ESSENTIAL = ("BackboneGuardHook", "ExactResume")  # of our hooks: what MMDetection's own tool runs with
CLOCKS = {"time", "data_time", "memory"}  # what is logged beside the scalars that are compared
WARM_UP = 2  # steps
TOOLS = ("ours", "mmdet")
COLUMNS = {"config": "<20", "steps": ">6", "scalars": ">8", "differing": ">10",
           **dict.fromkeys(("step", "process", "cpu"), ">23")}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("train_det.py", "Our detector training against MMDetection's own tool.",
                               "python tools/bench/train_det.py --data data/coco --json train_det.json")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="C", help="(default: %(default)s)")
    parser.add_argument("--data", metavar="DIR", help="COCO's layout (default: the demo's, written at first use)")
    parser.add_argument("--image-size", type=common.positive, default=96, metavar="N",
                        help="longer side in pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=common.positive, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=common.positive, default=3, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    return common.run(body, parser, argv)


def body(args: argparse.Namespace) -> None:
    if args.data is None:
        from dada_det.data.synthetic import ensure_demo_data

        args.data = ensure_demo_data() / "coco"
    find_coco(args.data)
    print("".join(f"{name:{form}}" for name, form in COLUMNS.items()), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backbone = write_backbone(Path(folder))
        for config in args.configs:
            rows.append(measure(args, config, backbone, Path(folder) / Path(config).stem))
            print(line_of(rows[-1]), flush=True)
    if args.json:
        from dada_det.report.measurements import write_rows

        write_rows(args.json, rows)
        print(f"wrote {args.json}")


def line_of(row: dict[str, Any]) -> str:
    """The row in the table's columns; a ratio with its interval."""
    texts = {name: row[name] for name in COLUMNS}
    for clock in ("step", "process", "cpu"):
        mean, *ends = row[clock]
        texts[clock] = f"{mean:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")
    return "".join(f"{texts[name]:{form}}" for name, form in COLUMNS.items())


def write_backbone(folder: Path) -> Path:
    """A random ResNet-50 whose BatchNorm has seen noise, so that a frozen one keeps its signals in range."""
    import torch
    from torchvision.models import resnet50

    from dada_det.models.backbone import IMAGENET, export_backbone

    torch.manual_seed(0)
    network = resnet50(weights=None).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))
    export_backbone(network.state_dict(), folder / "r50.pth", {**IMAGENET, "classes": [], "policy_sha256": None})
    return folder / "r50.pth"


def measure(args: argparse.Namespace, config: str, backbone: Path, folder: Path) -> dict[str, Any]:
    """The row of one config. The first run of ours is not measured: it writes the config that MMDetection's tool reads."""
    folder.mkdir()
    ours = [common.ROOT / "tools/train_det.py", short_config(args, config, folder), "--backbone", backbone,
            "--data", args.data]
    run([*ours, "--work-dir", folder / "first"])
    stock = [mmdetection_tool(), stock_config(folder / "first" / f"{Path(config).stem}.py", folder)]
    commands = dict(zip(TOOLS, (ours, stock), strict=True))
    scalars, seconds = [], []
    for number in range(args.rounds):
        found: dict[str, dict[str, float]] = {}
        for tool in TOOLS if number % 2 == 0 else TOOLS[::-1]:
            work_dir = folder / f"{tool}-{number}"
            found[tool] = run([*commands[tool], "--work-dir", work_dir])
            lines = log_of(work_dir)
            scalars.append(compared(lines))
            found[tool]["step"] = sum([line["time"] for line in lines if "loss" in line][WARM_UP:])
        seconds.append(found)
    return {"config": Path(config).stem, "image_size": args.image_size, "rounds": args.rounds,
            "steps": sum(name == "loss" for _, name in scalars[0]), "scalars": len(scalars[0]),
            "differing": differing(scalars),
            **{clock: ratio(seconds, clock) for clock in ("step", "process", "cpu")}, "seconds": seconds}


def short_config(args: argparse.Namespace, config: str, folder: Path) -> Path:
    """`config` at a small size for few epochs, with every step in its log, as a file."""
    change = common.load_config(config)
    from dada_det.engine.detect.config import use_epochs, use_image_size

    images = len(read_json(find_coco(args.data).part("train")[0], "annotation file")["images"])
    use_epochs(change, args.epochs, images, processes=1)
    use_image_size(change, args.image_size)
    change.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    change.log_processor = {**change.get("log_processor", {}), "window_size": 1}
    change.dump(folder / Path(config).name)
    return folder / Path(config).name


def stock_config(resolved: Path, folder: Path) -> Path:
    """The config that our tool has resolved, without our hooks but ESSENTIAL, as MMDetection's tool can read it."""
    config = common.load_config(str(resolved))
    config.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": config.default_hooks.checkpoint.interval,
                                       "by_epoch": config.default_hooks.checkpoint.get("by_epoch", True)}
    config.custom_hooks = [hook for hook in config.custom_hooks if hook["type"] in ESSENTIAL]
    config.dump(folder / f"stock-{resolved.name}")
    return folder / f"stock-{resolved.name}"


def mmdetection_tool() -> Path:
    spec = importlib.util.find_spec("mmdet")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / ".mim" / "tools" / "train.py"


def run(command: Sequence[Any]) -> dict[str, float]:
    """{"process", "cpu"}: wall and processor seconds of a Python program in a fresh process; UserError where it fails."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=said, stderr=subprocess.STDOUT,
                                   env={**os.environ, "PYTHONPATH": str(common.ROOT)})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise UserError(f"{command[0]} ended with {process.returncode}: {said.read().strip().splitlines()[-1]}")
    return {"process": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime}


def log_of(work_dir: Path) -> list[dict[str, Any]]:
    """The lines of mmengine's scalars.json, in their order."""
    path = next(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compared(lines: Sequence[dict[str, Any]]) -> dict[tuple[int, str], str]:
    """(number of the line, scalar's name) -> value as it was written, so that NaN equals NaN."""
    return {(number, name): json.dumps(value) for number, line in enumerate(lines) for name, value in line.items()
            if name not in CLOCKS}


def differing(scalars: Sequence[dict[tuple[int, str], str]]) -> int:
    """How many scalars are not the same in every run, or not there."""
    return sum(len({found.get(name) for found in scalars}) > 1 for name in set().union(*scalars))


def ratio(seconds: Sequence[dict[str, dict[str, float]]], clock: str) -> list[float]:
    """[ours over MMDetection's, lower end, upper end]: the geometric mean of the rounds' ratios; of one round that alone."""
    from dada_det.report.statistics import mean_interval

    mean, width = mean_interval([math.log(found["ours"][clock] / found["mmdet"][clock]) for found in seconds])
    return [math.exp(mean), *([] if math.isnan(width) else [math.exp(mean - width), math.exp(mean + width)])]


if __name__ == "__main__":
    sys.exit(main())
