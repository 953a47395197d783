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

LIMIT = 480.0  # seconds, of all checks together
BENCH = Path(__file__).resolve().parent
COLUMNS = ("check", "result", "seconds", "figure", "value", "aim")
CLASSES, EACH, SIDE = 120, 50, 500  # of the ImageNet-shaped search: as many classes and images, and so wide, as DADA's


@dataclass(frozen=True)
class Figure:
    """A number that a check leaves in a file, and the interval that it has to lie in (None: it is only told)."""

    name: str
    read: Callable[[], float]
    aim: tuple[float, float] | None = None


@dataclass(frozen=True)
class Check:
    """A command under a time limit in seconds, and its figures."""

    name: str
    seconds: float
    command: Sequence[str]
    figures: Sequence[Figure] = ()


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a bench has written."""
    return read_json(path, "measurement")["rows"]


def row(path: Path, /, **wanted: Any) -> dict[str, Any]:
    """The row whose entries are `wanted`."""
    return next(row for row in rows(path) if wanted.items() <= row.items())


def checks(out: Path, cpu: bool) -> list[Check]:
    """All checks in their order; later ones use what earlier ones leave in `out`."""
    device = "cpu" if cpu else "cuda"
    images, backbone, scale = out / "imagenet", out / "pretrain_workers/r50.pth", 4 if cpu else 1

    def stage(name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", f"dada_det.commands.{name}", *map(str, arguments)]

    def bench(name: str, *arguments: object) -> list[str]:
        return [sys.executable, str(BENCH / f"{name}.py"), *map(str, arguments)]

    def json(name: str) -> Path:
        return out / f"{name}.json"

    def search(name: str, *arguments: object) -> list[str]:
        return stage("search", "--config", f"configs/debug/{name}.py", "--work-dir", out / name, *arguments)

    def pretrain(where: str) -> list[str]:
        size = ["--image-size", 32, "--epochs", 1] if cpu else []
        return stage("pretrain", "--config", "configs/debug/pretrain.py", "--policy", "dada-imagenet", "--work-dir",
                     out / f"pretrain_{where}", *size, "--cfg-options", f"policy_on={where}")

    def detector(name: str, *arguments: object) -> list[str]:
        short = ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2",
                 "val_dataloader.dataset.indices=4"]
        return stage("train_det", f"configs/debug/{name}.py", "--backbone", backbone, "--work-dir", out / name, *arguments,
                     *(short if cpu else []))

    def error(way: str, precision: str) -> Callable[[], float]:
        return lambda: row(json("reward_error"), way=way, precision=precision)["error"]

    def rate(what: str) -> Callable[[], float]:
        return lambda: row(json("pretrain_speed"), what=what)["images_per_second"]

    small = ["--image-size", 32, "--batch-size", 8] if cpu else []
    shaped = [*small[:2], "--batch-size", 16, "--epochs", 2, "--cfg-options", "classifier.name=convnet"] if cpu else []
    steps = search_steps(cpu)
    operations = ["--operations", "Rotate", "Equalize"] if cpu else []
    return [
        Check("images", 60, [sys.executable, str(BENCH / "gpu.py"), str(out), "--images", *(["--cpu"] if cpu else [])]),
        Check("parity", 60 * scale, bench("parity", "--device", device, "--json", json("parity"), *operations), [
            Figure("largest difference from Pillow, levels",
                   lambda: max(each["max_difference"] for each in rows(json("parity"))), (0, 0))]),
        Check("tests", 90 * scale, [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
                                    "tests/augment", "tests/engine/pretrain/test_pretrain_preprocessor.py",
                                    "tests/engine/pretrain/test_pretrain_recipes.py"]),
        Check("search", 60 * scale, search("search", *(["--epochs", 2] if cpu else []))),
        Check("search_det", 90 * scale, search("search_det", *(["--epochs", 2, "--image-size", 64] if cpu else []))),
        Check("pretrain_workers", 60 * scale, pretrain("workers")),
        Check("pretrain_device", 60 * scale, pretrain("device")),
        Check("retinanet", 90 * scale, detector("retinanet")),
        Check("faster_rcnn", 90 * scale, detector("faster_rcnn", *([] if cpu else ["--amp"]))),
        Check("mask_rcnn", 90 * scale, detector("mask_rcnn")),
        Check("test_det", 60 * scale, stage("test_det", "configs/debug/retinanet.py", newest(out / "retinanet"),
                                            "--backbone", backbone, "--work-dir", out / "test_det")),
        Check("search_step", 90 * scale, bench("search_step", "--models", "convnet" if cpu else "resnet50", "--modes",
                                               "default", "--rounds", 2 if cpu else 6, "--device", device, "--json",
                                               json("search_step")), [
            Figure("step over plain training", lambda: rows(json("search_step"))[0]["ratio"]),
            Figure("plain forward and backward, ms", lambda: rows(json("search_step"))[0]["plain_ms"])]),
        Check("search_imagenet", 150 * scale, stage("search", "--data", images, "--work-dir", out / "search_imagenet",
                                                    *shaped), [
            Figure("images a second", lambda: steps[0] * steps[1] / seconds_of(out, "search_imagenet")),
            Figure("share of the floor, as many plain passes", lambda: (
                steps[0] * rows(json("search_step"))[0]["plain_ms"] / 1000 / seconds_of(out, "search_imagenet")))]),
        Check("reward_error", 90 * scale, bench(
            "reward_error", "--data", images, "--json", json("reward_error"),
            *(["--model", "convnet", "--image-size", 16, "--batch-size", 8, "--steps", 5] if cpu else [])), [
            Figure(f"{way} in {precision}", error(way, precision)) for way, precision in CASES]),
        Check("augment", 60 * scale, bench("augment", "--device", device, "--rounds", 2 if cpu else 20, "--json",
                                           json("augment")), [
            Figure("share of a ResNet-50 step", lambda: row(json("augment"), path="batch",
                                                            what="dada")["share_of_training_step"], (0, 0.03))
            if not cpu else Figure("images a second", lambda: row(json("augment"), path="batch",
                                                                  what="dada")["images_per_second"])]),
        Check("pretrain_speed", 90 * scale, bench(
            "pretrain", "--data", images, "--rounds", 1 if cpu else 5, "--steps", 1 if cpu else 20, "--samples", 4, "--json",
            json("pretrain_speed"), *(["--model", "convnet", "--workers", 0, *small] if cpu else [])), [
            Figure("images a second", rate("pipeline")), Figure("with the data in memory", rate("memory")),
            Figure("over the bare model", lambda: row(json("pretrain_speed"), what="pipeline")["ratio"],
                   None if cpu else (0.95, 9))]),
        Check("nccl_one", 60 * scale, [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m",
            *search("search", "--epochs", 2, "--work-dir", out / "nccl_one")[2:]]),
        Check("gloo_two", 90 * scale, search("search", "--gpus", 2, "--epochs", 2, "--work-dir", out / "gloo_two")),
    ]


def search_steps(cpu: bool) -> tuple[int, int]:
    """(steps, images of a step) of the ImageNet-shaped search: half of the images train."""
    classes, each, epochs, batch = (4, 12, 2, 16) if cpu else (CLASSES, EACH, 20, 128)
    return classes * each // 2 // batch * epochs, batch


def newest(folder: Path) -> Path:
    """The checkpoint that training a detector leaves last."""
    found = sorted(folder.glob("iter_*.pth"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else folder / "iter_1.pth"


def seconds_of(out: Path, name: str) -> float:
    """What a check has taken, as gpu.csv holds it."""
    with open(out / "gpu.csv", encoding="utf-8", newline="") as file:
        return next(float(line["seconds"]) for line in csv.DictReader(file) if line["check"] == name)


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


def run(check: Check, out: Path, limit: float, environment: dict[str, str]) -> tuple[str, float]:
    """("pass", "fail" or "timeout", seconds) of a check's command; what it says goes to its log."""
    began = time.monotonic()
    with open(out / f"{check.name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(check.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=common.ROOT,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "timeout", time.monotonic() - began
    return "pass" if code == 0 else "fail", time.monotonic() - began


def measured(figure: Figure) -> tuple[Any, bool]:
    """(the figure's value or why there is none, whether it reaches its aim)."""
    try:
        value = float(figure.read())
    except (UserError, KeyError, StopIteration, OSError, IndexError) as error:
        return f"missing ({type(error).__name__})", False
    return value, figure.aim is None or figure.aim[0] <= value <= figure.aim[1]


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

    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if args.cpu else {})}
    names = [check.name for check in checks(out, args.cpu)]
    if unknown := set(args.only or names) - set(names):
        raise UserError(f"--only {unknown.pop()} is no check; choose of {', '.join(names)}")
    lines: list[dict[str, Any]] = []
    began, limit = time.monotonic(), LIMIT * (8 if args.cpu else 1)
    print(f"gpu  {'the CPU, toy sizes' if args.cpu else hardware()}, at most {limit:.0f} s", flush=True)
    for name in args.only or names:
        check = next(check for check in checks(out, args.cpu) if check.name == name)  # anew: it may read what others left
        left = limit - (time.monotonic() - began)
        result, seconds = ("not run", 0.0) if left <= 0 else run(check, out, min(check.seconds, left), environment)
        line = {"check": name, "result": result, "seconds": round(seconds, 1), "figure": "", "value": "", "aim": ""}
        write(out, [*lines, line])  # the figures of some are their own seconds
        own = [line]
        if result == "pass" and check.figures:
            own = []
            for figure in check.figures:
                value, reached = measured(figure)
                aim = "" if figure.aim is None else f"{figure.aim[0]:g}..{figure.aim[1]:g}"
                own.append({**line, "result": "pass" if reached else "fail", "figure": figure.name, "value": value,
                            "aim": aim})
        lines += own
        write(out, lines)
        print(f"gpu  {name}  {own[-1]['result']}  {seconds:.1f} s", file=sys.stderr, flush=True)
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
