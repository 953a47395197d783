"""All that only a GPU can show, check by check, each under its own time limit.

    bash tools/bench/gpu.sh OUT
    bash tools/bench/gpu.sh OUT --only parity pretrain_device
    bash tools/bench/gpu.sh OUT --cpu           toy sizes on the CPU, which shows that the checks themselves work

A check is one command in a process group of its own: one that hangs is ended and costs no other. It passes where the command
ends with 0 and its figure reaches the aim. OUT/<check>.log holds what it said; OUT/gpu.csv one line a figure (check, result,
seconds, figure, value, aim), and the same stands in the closing table. The exit code is 2 where one fails. After LIMIT
seconds in all, what has not run is "not run".
"""

import argparse
import csv
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reward_error import CASES  # beside this file

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, write_text
from dada_det.report.plan import TRIAL_OVER_STEPS

LIMIT = 480.0  # seconds, of all checks together
SLOWER = 10  # times as long all of it may take with --cpu, at toy sizes
BENCH = Path(__file__).resolve().parent
COLUMNS = ("check", "result", "seconds", "figure", "value", "aim")
CLASSES, EACH, SIDE = 120, 50, 500  # of the ImageNet-shaped search: as many classes and images, and so wide, as DADA's
EPOCHS, BATCH = 3, 128  # of it; the trial, nine whole trainings, would take all the time with the config's 20


@dataclass(frozen=True)
class Left:
    """What the checks have left in the folder `out`."""

    out: Path
    cpu: bool

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of the bench that has written out/<name>.json."""
        return read_json(self.out / f"{name}.json", "measurement")["rows"]

    def row(self, name: str, /, **wanted: Any) -> dict[str, Any]:
        """The first of them whose entries are `wanted`."""
        return next(row for row in self.rows(name) if wanted.items() <= row.items())

    def seconds(self, check: str) -> float:
        """What a check has taken, as gpu.csv holds it."""
        with open(self.out / "gpu.csv", encoding="utf-8", newline="") as file:
            return next(float(line["seconds"]) for line in csv.DictReader(file) if line["check"] == check)


@dataclass(frozen=True)
class Figure:
    """A number that a check leaves, and the interval that it has to lie in (None: it is only told)."""

    name: str
    read: Callable[[Left], float]
    aim: tuple[float, float] | None = None
    gpu: bool = False  # it is there on a GPU alone


@dataclass(frozen=True)
class Check:
    """A command under a time limit in seconds, and its figures.

    command: its first word is one of dada_det.commands, bench/<a file beside this one>, `python`, `pytest` or `torchrun`.
    In braces: OUT, the folder; LAST, the newest checkpoint of the check retinanet; the names of TOYS. toy: more arguments,
    with --cpu; of a flag given twice the later one holds.
    """

    name: str
    seconds: float
    command: str
    toy: str = ""
    figures: Sequence[Figure] = ()


def shape(cpu: bool) -> tuple[int, int, int, int]:
    """(classes, images of each, epochs, batch) of the ImageNet-shaped search."""
    return (4, 12, 2, 16) if cpu else (CLASSES, EACH, EPOCHS, BATCH)


def search_steps(cpu: bool) -> int:
    """Its steps: half of the images train."""
    classes, each, epochs, batch = shape(cpu)
    return classes * each // 2 // batch * epochs


def trial_seconds(left: Left) -> float:
    """What of its time goes into the trial: from the last preferences to the verdict."""
    folder = left.out / "search_imagenet"
    return (folder / "verdict.json").stat().st_mtime - (folder / "search.json").stat().st_mtime


def trial_rate(left: Left) -> float:
    """Images a second that the trial trains on."""
    classes, each, epochs, _ = shape(left.cpu)
    cost = read_json(left.out / "search_imagenet/verdict.json", "verdict")["cost"]
    return cost * epochs * classes * each / trial_seconds(left)


def step_seconds(left: Left) -> float:
    """A step of the search, as the check search_step has measured it."""
    row = left.rows("search_step")[0]
    return row["ratio"] * row["plain_ms"] / 1000


def search_rate(left: Left) -> float:
    """Images a second of the search without its trial, its start and the decoding of its images included."""
    return search_steps(left.cpu) * shape(left.cpu)[3] / (left.seconds("search_imagenet") - trial_seconds(left))


def share_of_floor(left: Left) -> float:
    """The time of as many plain forward and backward passes over that of the search without its trial."""
    return search_rate(left) * left.rows("search_step")[0]["plain_ms"] / 1000 / shape(left.cpu)[3]


def reward_error(way: str, precision: str) -> Figure:
    return Figure(f"{way} in {precision}", lambda left: left.row("reward_error", way=way, precision=precision)["error"])


TOYS = {  # what the table has in braces, on a GPU and with --cpu
    False: {"DEVICE": "cuda", "AMP": "--amp", "DETECTORS": " ".join(
        f"configs/{name}_r50_baseline.py" for name in ("retinanet", "faster_rcnn", "mask_rcnn"))},
    True: {"DEVICE": "cpu", "AMP": "", "DETECTORS": "configs/debug/retinanet.py"}}
SHORT = "--image-size 32 --epochs 1"
SMALL = "--image-size 32 --batch-size 8 --model convnet"
STEPS = ("--cfg-options train_cfg.max_iters=2 train_cfg.val_interval=2 default_hooks.checkpoint.interval=2 "
         "val_dataloader.dataset.indices=4")
BACKBONE = "--backbone {OUT}/pretrain_workers/r50.pth"
PRETRAIN = "pretrain --config configs/debug/pretrain.py --policy dada-imagenet"

# In their order: later ones use what earlier ones leave.
CHECKS: tuple[Check, ...] = (
    Check("images", 60, "bench/gpu {OUT} --images", "--cpu"),
    Check("parity", 60, "bench/parity --device {DEVICE} --json {OUT}/parity.json", "--operations Rotate Equalize", [
        Figure("largest difference from Pillow, levels",
               lambda left: max(row["max_difference"] for row in left.rows("parity")), (0, 0))]),
    Check("tests", 90, "pytest -q -m gpu -p no:cacheprovider tests/augment tests/engine/pretrain/"
                       "test_pretrain_preprocessor.py tests/engine/pretrain/test_pretrain_recipes.py"),
    Check("search", 60, "search --config configs/debug/search.py --work-dir {OUT}/search", "--epochs 2"),
    Check("search_det", 90, "search --config configs/debug/search_det.py --work-dir {OUT}/search_det",
          "--image-size 64 --batch-size 4 --epochs 1 --cfg-options data.images=12"),
    Check("pretrain_workers", 60, f"{PRETRAIN} --work-dir {{OUT}}/pretrain_workers", SHORT),
    Check("pretrain_device", 60, f"{PRETRAIN} --work-dir {{OUT}}/pretrain_device --cfg-options policy_on=device", SHORT),
    Check("retinanet", 90, f"train_det configs/debug/retinanet.py {BACKBONE} --work-dir {{OUT}}/retinanet", STEPS),
    Check("faster_rcnn", 90, f"train_det configs/debug/faster_rcnn.py {BACKBONE} --work-dir {{OUT}}/faster_rcnn {{AMP}}",
          STEPS),
    Check("mask_rcnn", 90, f"train_det configs/debug/mask_rcnn.py {BACKBONE} --work-dir {{OUT}}/mask_rcnn", STEPS),
    Check("test_det", 60, f"test_det configs/debug/retinanet.py {{LAST}} {BACKBONE} --work-dir {{OUT}}/test_det"),
    Check("search_step", 90, "bench/search_step --modes default --device {DEVICE} --json {OUT}/search_step.json --rounds 6 "
                             "--models resnet50", "--rounds 2 --models convnet", [
        Figure("step over plain training", lambda left: left.rows("search_step")[0]["ratio"]),
        Figure("plain forward and backward, ms", lambda left: left.rows("search_step")[0]["plain_ms"])]),
    Check("search_imagenet", 200, f"search --data {{OUT}}/imagenet --work-dir {{OUT}}/search_imagenet --epochs {EPOCHS}",
          "--image-size 32 --batch-size 16 --epochs 2 --cfg-options classifier.name=convnet", [
        Figure("the search, images a second", search_rate),
        Figure("share of the floor, as many plain passes", share_of_floor),
        Figure("its trial, images a second", trial_rate),
        Figure("its trial, seconds", trial_seconds),
        Figure(TRIAL_OVER_STEPS, lambda left: trial_seconds(left) / (search_steps(left.cpu) * step_seconds(left)))]),
    Check("reward_error", 90, "bench/reward_error --data {OUT}/imagenet --json {OUT}/reward_error.json",
          "--model convnet --image-size 16 --batch-size 8 --steps 5", [reward_error(*case) for case in CASES]),
    Check("augment", 60, "bench/augment --device {DEVICE} --json {OUT}/augment.json --rounds 20", "--rounds 2", [
        Figure("images a second", lambda left: left.row("augment", path="batch", what="dada")["images_per_second"]),
        Figure("share of a ResNet-50 step", lambda left: left.row("augment", path="batch", what="dada")[
            "share_of_training_step"], (0, 0.03), gpu=True)]),
    Check("pretrain_speed", 90, "bench/pretrain --data {OUT}/imagenet --json {OUT}/pretrain_speed.json --samples 4 "
                                "--rounds 5 --steps 20", f"--rounds 1 --steps 1 --workers 0 {SMALL}", [
        Figure("images a second", lambda left: left.row("pretrain_speed", what="pipeline")["images_per_second"]),
        Figure("with the data in memory", lambda left: left.row("pretrain_speed", what="memory")["images_per_second"]),
        Figure("over the bare model", lambda left: left.row("pretrain_speed", what="pipeline")["ratio"], (0.95, 9),
               gpu=True)]),
    Check("nccl_one", 60, "torchrun --standalone --nproc-per-node 1 -m dada_det.commands.search --config "
                          "configs/debug/search.py --work-dir {OUT}/nccl_one --epochs 2", "--no-trial"),
    Check("gloo_two", 90, "search --config configs/debug/search.py --work-dir {OUT}/gloo_two --gpus 2 --epochs 2"),
    Check("plan_images", 60, "plan configs/pretrain_r50.py configs/search_imagenet.py --measure --data {OUT}/imagenet "
                             "--results {OUT}", "--cfg-options classifier.name=convnet image_size=32"),
    Check("plan_boxes", 90, "plan {DETECTORS} --measure --data data/demo/coco --results {OUT}",
          "--cfg-options train_dataloader.dataset.pipeline.2.scale=(64,64)"),
)


def command_of(check: Check, left: Left) -> list[str]:
    """The words of a check's command."""
    last = sorted((left.out / "retinanet").glob("iter_*.pth"), key=lambda path: path.stat().st_mtime)
    text = check.command + (f" {check.toy}" if left.cpu else "")
    program, *words = shlex.split(text.format(OUT=shlex.quote(str(left.out)), **TOYS[left.cpu],
                                              LAST=shlex.quote(str(last[-1])) if last else "no_checkpoint"))
    modules = {"pytest": "pytest", "torchrun": "torch.distributed.run"}
    if program == "python":
        return [sys.executable, *words]
    if program.startswith("bench/"):
        return [sys.executable, str(BENCH / f"{program.removeprefix('bench/')}.py"), *words]
    return [sys.executable, "-m", modules.get(program, f"dada_det.commands.{program}"), *words]


def make_images(root: Path, cpu: bool) -> None:
    """root/train/<class>/*.jpg: random blobs in a colour of each class, as large as photographs."""
    classes, each, side = (4, 12, 60) if cpu else (CLASSES, EACH, SIDE)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(make_class, [(root, label, each, side) for label in range(classes)]))


def make_class(task: tuple[Path, int, int, int]) -> None:
    root, label, each, side = task
    generator = np.random.default_rng(label)
    folder = make_folder(root / "train" / f"class{label:03d}")
    colour = generator.integers(40, 216, 3)
    for number in range(each):
        coarse = generator.normal(colour, 40, (side // 10, side // 8, 3)).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        noise = generator.integers(-8, 9, (side * 3 // 4, side, 3))
        Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def run(check: Check, left: Left, limit: float) -> tuple[str, float]:
    """("pass", "fail" or "timeout", seconds) of a check's command; what it says goes to its log."""
    began, environment = time.monotonic(), {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if left.cpu else {})}
    with open(left.out / f"{check.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command_of(check, left), stdout=log, stderr=subprocess.STDOUT, env=environment,
                                   cwd=common.ROOT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "timeout", time.monotonic() - began
    return "pass" if code == 0 else "fail", time.monotonic() - began


def measured(figure: Figure, left: Left) -> tuple[Any, bool]:
    """(the figure's value or why there is none, whether it reaches its aim)."""
    try:
        value = float(figure.read(left))
    except (UserError, KeyError, StopIteration, OSError, IndexError, ZeroDivisionError) as error:
        return f"missing ({type(error).__name__})", False
    return value, figure.aim is None or figure.aim[0] <= value <= figure.aim[1]


def lines_of(check: Check, line: dict[str, Any], left: Left) -> list[dict[str, Any]]:
    """The lines of a check that has run: one for each figure, or `line` alone."""
    lines = []
    for figure in check.figures if line["result"] == "pass" else ():
        if left.cpu and figure.gpu:
            continue
        value, reached = measured(figure, left)
        aim = "" if figure.aim is None else f"{figure.aim[0]:g}..{figure.aim[1]:g}"
        lines.append({**line, "result": "pass" if reached else "fail", "figure": figure.name, "value": value, "aim": aim})
    return lines or [line]


def write(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(out / "gpu.csv", text.getvalue())


def body(args: argparse.Namespace) -> None:
    out = make_folder(args.out.resolve())
    if args.images:
        make_images(out / "imagenet", args.cpu)
        return
    from dada_det.report.measurements import hardware

    names = [check.name for check in CHECKS]
    if unknown := set(args.only or names) - set(names):
        raise UserError(f"--only {unknown.pop()} is no check; choose of {', '.join(names)}")
    lines: list[dict[str, Any]] = []
    left = Left(out, args.cpu)
    slower = SLOWER if args.cpu else 1
    began, limit = time.monotonic(), LIMIT * slower
    print(f"gpu  {'the CPU, toy sizes' if args.cpu else hardware()}, at most {limit:.0f} s", flush=True)
    for check in CHECKS:
        if check.name not in (args.only or names):
            continue
        rest = limit - (time.monotonic() - began)
        result, seconds = ("not run", 0.0) if rest <= 0 else run(check, left, min(check.seconds * slower, rest))
        line = {"check": check.name, "result": result, "seconds": round(seconds, 1), "figure": "", "value": "", "aim": ""}
        write(out, [*lines, line])  # the figures of some are their own seconds
        lines += lines_of(check, line, left)
        write(out, lines)
        print(f"gpu  {check.name}  {lines[-1]['result']}  {seconds:.1f} s", file=sys.stderr, flush=True)
    for line in lines:
        value = f"{line['value']:.4g}" if isinstance(line["value"], float) else line["value"]
        print(f"{line['check']:<17} {line['result']:<8} {line['seconds']:>7.1f} s  {line['figure']:<42} {value:>10}  "
              f"{line['aim']}".rstrip())
    bad = sorted({line["check"] for line in lines if line["result"] != "pass"})
    if bad:
        raise UserError(f"{len(bad)} of {len(args.only or names)} checks did not pass: {', '.join(bad)}; {out}/<check>.log "
                        "says why")
    print(f"gpu  done: {len(args.only or names)} checks passed; figures in {out / 'gpu.csv'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit code (0, 2 where one did not pass or for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the logs, gpu.csv and all that the checks write")
    parser.add_argument("--cpu", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these checks alone")
    parser.add_argument("--images", action="store_true", help="make the images of the ImageNet-shaped search, and end")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
