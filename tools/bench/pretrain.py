"""How fast pretraining is: its pipeline through the Runner, the same with its data in memory, and the bare model.

    python tools/bench/pretrain.py --data data/imagenet --json pretrain.json
    python tools/bench/pretrain.py --data data/imagenet --decode

All rows of a model take turns in one process. A round is some steps of each; the next one begins with another. The loader's
processes have filled their queue when a round's clock starts and have as much left to do when it stops, and they rest while
another row is measured. Images are the training images of DIR under --policy, a new crop in every round.

pipeline  configs/pretrain_r50.py as it trains: loader processes, preprocessor, hooks, optimiser wrapper (wall time)
memory    the same Runner with batches that the loader made before (wall time)
bare      forward, backward and the optimiser's step on one batch that lies on the device (wall time)
samples   decode, crop, flip and policy of single images in this process: images a second and core (processor time)

images_per_second  the median over the rounds, and low, high: its 95 % interval from the order statistics
ratio              images_per_second over those of bare in the same round, the median, and its 95 % interval; n: the rounds
ratio_cpu          on a CPU the same in processor time of the training process alone, which what else runs on the machine
                   hardly changes; where it is near 1 and `ratio` is not, cores are missing
cores              of `samples`: how many the bare model keeps busy (on a CPU by ratio_cpu, with all its threads)

--decode, one row a library: a JPEG of DIR becomes a random crop of --image-size, a PIL image, in this process (processor
time; the ratio is to "pillow"); simplejpeg is measured where it is installed. Greyscale and colour JPEGs without EXIF only.
"""

import argparse
import contextlib
import io
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import decoders  # beside this file
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dada_det.augment.named import resolve_policy
from dada_det.commands import common
from dada_det.data.folders import ImageList
from dada_det.data.splits import scan_split
from dada_det.engine.compare.step_cost import build_optimizer, classifier_step, core_seconds, now
from dada_det.engine.pretrain.data import loaders
from dada_det.engine.pretrain.recipe import precision_of
from dada_det.engine.pretrain.run import build_runner
from dada_det.errors import UserError
from dada_det.report.measurements import write_rows
from dada_det.report.statistics import median_interval

KINDS = ("pipeline", "memory")  # of an epoch
COLUMNS = {"model": "<16", "what": "<18", "images_per_second": ">17.1f", "low": ">9.1f", "high": ">9.1f", "ratio": ">7.3f",
           "ratio_low": ">9.3f", "ratio_high": ">10.3f", "ratio_cpu": ">9.3f", "ratio_cpu_low": ">13.3f",
           "ratio_cpu_high": ">14.3f", "n": ">4d"}
GOAL = 0.95  # of the bare model's speed


class Rounds(Hook):
    """Gives the Runner batches from its loader in one epoch and from memory in the next, and times a part of each.

    seconds: of each kind of KINDS and of "bare" and "samples", (wall time, processor time) of each round; per step, of
    samples per image.
    """

    priority = "LOWEST"  # after the hooks that prepare the loader

    def __init__(self, rounds: int, steps: int, settle: int, samples: int, progress: Callable[[int], None]) -> None:
        self.rounds, self.steps, self.settle, self.samples, self.progress = rounds, steps, settle, samples, progress
        self.seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*KINDS, "bare", "samples")}
        self.kept: list[dict[str, Any]] = []
        self.began = 0.0, 0.0
        self.loader: Any = None
        self.bare: Any = None

    def before_train(self, runner: Runner) -> None:
        runner.train_loop.val_begin = runner.max_epochs + 1  # no validation

    def kind(self, runner: Runner) -> str:
        number, half = divmod(runner.epoch, 2)
        return KINDS[(half + number) % 2 if number else half]  # the first round fills the memory

    def before_train_epoch(self, runner: Runner) -> None:
        self.loader = self.loader or runner.train_loop.dataloader
        runner.train_loop.dataloader = self.loader if self.kind(runner) == "pipeline" else Memory(self.loader, self.kept)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.epoch == 0:
            self.kept.append(data_batch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        device = next(runner.model.parameters()).device
        if batch_idx == self.settle - 1:
            self.began = clocks(device)
        elif batch_idx == self.settle + self.steps - 1:
            self.note(self.kind(runner), device)

    def after_train_epoch(self, runner: Runner) -> None:
        if runner.epoch % 2 == 1:
            return
        if self.bare is None:
            batch = runner.model.data_preprocessor(self.kept[0])
            self.bare = classifier_step(runner.model, build_optimizer(runner.model, dict(runner.cfg.optimizer)),
                                        batch["images"], batch["labels"], precision_of(runner.cfg))
            self.bare.run()
        self.began = clocks(self.bare.device)
        for _ in range(self.steps):
            self.bare.run()
        self.note("bare", self.bare.device)
        first, dataset = self.samples * (runner.epoch // 2), self.loader.dataset
        indices = [index % len(dataset) for index in range(first, first + self.samples)]
        self.seconds["samples"].append((statistics.mean(core_seconds(dataset.__getitem__, indices)),) * 2)
        self.progress(runner.epoch // 2)

    def note(self, what: str, device: torch.device) -> None:
        wall, processor = (after - before for after, before in zip(clocks(device), self.began, strict=True))
        self.seconds[what].append((wall / self.steps, processor / self.steps))


def clocks(device: torch.device) -> tuple[float, float]:
    """Wall time and processor time of this process, once the device has done all it was given."""
    return now(device), time.process_time()


class Memory:
    """A loader's batches that were kept; the hooks find its data set."""

    def __init__(self, loader: Any, batches: Sequence[dict[str, Any]]) -> None:
        self.dataset, self.batches = loader.dataset, batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def measure(model: str, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a model, and what they were measured with."""
    config = common.load_config("configs/pretrain_r50.py", args.cfg_options)
    config.merge_from_dict({"classifier": {"name": model}, "image_size": args.image_size, "policy": args.policy,
                            "batch_size": args.batch_size, "epochs": 2 * (args.rounds + 1),
                            "checkpoint": {"interval": 10**9, "save_last": False, "steps": 0}})
    if args.workers is not None:
        config.workers = args.workers
    images = scan_split(args.data, "train")
    policy = resolve_policy(args.policy, config.seed)
    workers = loaders(config, images, images, policy)[0].num_workers
    settle = max(2, 2 * workers)  # the loader keeps two batches a process ready
    chosen = drawn(images, (args.steps + 2 * settle) * config.batch_size)
    began = time.monotonic()

    def progress(number: int) -> None:
        left = timedelta(seconds=round((time.monotonic() - began) / (number + 1) * (args.rounds - number)))
        print(f"pretrain  {model}  round {number}/{args.rounds}  ETA {left}", file=sys.stderr, flush=True)

    hook = Rounds(args.rounds, args.steps, settle, args.samples, progress)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config.work_dir = folder
        runner = build_runner(config, loaders(config, chosen, chosen, policy), {}, None, False)
        runner.register_hook(hook)
        runner.train()
    batch, cores = config.batch_size, len(os.sched_getaffinity(0))
    wall, processor = ({what: [(1 if what == "samples" else batch) / each[clock] for each in taken[1:]]
                        for what, taken in hook.seconds.items()} for clock in (0, 1))
    rows = [{"model": model, **row} for row in table_rows(wall, "bare")]
    if not torch.cuda.is_available():
        for row, own in zip(rows, table_rows(processor, "bare"), strict=True):
            row |= {name.replace("ratio", "ratio_cpu"): own[name] for name in ("ratio", "ratio_low", "ratio_high")}
    by_what = {row["what"]: row for row in rows}
    samples = by_what["samples"]
    samples["cores"] = torch.get_num_threads() / samples["ratio_cpu"] if "ratio_cpu" in samples else 1 / samples["ratio"]
    return rows, {"image_size": config.image_size, "batch_size": batch, "workers": workers, "cores": cores,
                  "threads": torch.get_num_threads(), "precision": precision_of(config), "policy": args.policy,
                  "steps": args.steps, "images": len(images)}


def drawn(images: ImageList, count: int) -> ImageList:
    """`count` of the images, each as often as the others."""
    order = random.Random(0).sample(range(len(images)), len(images))
    return images.select(itertools.islice(itertools.cycle(order), count))


def table_rows(rates: dict[str, list[float]], reference: str) -> list[dict[str, Any]]:
    """A row for each of `rates` (images a second in each round), with its ratio to `reference` round by round."""
    rows = []
    for what, values in rates.items():
        ratios = [each / base for each, base in zip(values, rates[reference], strict=True)]
        (low, high), (ratio_low, ratio_high) = median_interval(values), median_interval(ratios)
        rows.append({"what": what, "images_per_second": statistics.median(values), "low": low, "high": high,
                     "ratio": statistics.median(ratios), "ratio_low": ratio_low, "ratio_high": ratio_high,
                     "n": len(values)})
    return rows


def verdict(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    """One line: how near the pipeline comes to the bare model, and how many cores that takes."""
    by_what = {row["what"]: row for row in rows}
    pipeline, samples, cores = by_what["pipeline"], by_what["samples"], settings["cores"]
    needed = samples["cores"]
    own = f" ({pipeline['ratio_cpu']:.1%} in the training process's own processor time)" if "ratio_cpu" in pipeline else ""
    reached = f"{rows[0]['model']}: the pipeline reaches {pipeline['ratio']:.1%} of the bare model{own}"
    need = (f"decode, crop and policy make {samples['images_per_second']:.0f} images/s a core, of which the bare model "
            f"keeps {needed:.2f} busy")
    if pipeline["ratio"] >= GOAL:
        return f"{reached}; {need}"
    if needed > settings["workers"]:
        return f"{reached}: decode limits; {need}, and {settings['workers']} loader processes run ({cores} cores here)"
    return f"{reached}: the loader's {settings['workers']} processes share {cores} cores with the model; {need}"


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print("  ".join(f"{row[name]:{form}}" if name in row else "-".rjust(int(form[1:].partition(".")[0]))
                        for name, form in COLUMNS.items()), flush=True)


def body(args: argparse.Namespace) -> None:
    if not Path(args.data).is_dir():
        raise UserError(f"the data folder {args.data} does not exist; give the folder that holds train/ with --data")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.batch_size < 2:
        raise UserError("--batch-size 1 is too small; give at least 2")
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu", "rounds": args.rounds}
    print("  ".join(f"{name:{form.partition('.')[0].rstrip('d')}}" for name, form in COLUMNS.items()))
    if args.decode:
        sources = decoders.read_jpegs(Path(args.data), args.samples)
        rates = decoders.measure(sources, args.image_size, args.rounds)
        rows = [{"model": "-", **row} for row in table_rows(rates, "pillow")]
        show(rows)
        settings |= {"image_size": args.image_size, **decoders.facts(sources)}
        if args.json:
            write_rows(args.json, rows, settings)
    else:
        said = []
        for model in args.model:
            found, settings[model] = measure(model, args)
            show(found)
            rows += found
            said.append(verdict(found, settings[model]))
            if args.json:
                write_rows(args.json, rows, settings)  # what is measured stays when a long measurement is cut short
        print("\n".join(said))
    print(f"pretrain  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="pretrain.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/imagenet", metavar="DIR",
                        help="folder that holds train/, classes as folders or tar shards (default: %(default)s)")
    parser.add_argument("--model", nargs="+", default=["resnet50"], metavar="M",
                        help="of timm's or the project's classifiers (default: %(default)s)")
    parser.add_argument("--decode", action="store_true", help="measure the libraries that decode JPEGs instead")
    parser.add_argument("--policy", default="dada-imagenet", metavar="P", help="as in pretraining (default: %(default)s)")
    parser.add_argument("--image-size", type=common.positive, default=224, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=common.positive, default=256 if on_gpu else 16, metavar="N",
                        help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes (default: the config's)")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="of torch on the CPU (default: torch's own)")
    parser.add_argument("--rounds", type=common.positive, default=10, metavar="N",
                        help="one more warms up (default: %(default)s)")
    parser.add_argument("--steps", type=common.positive, default=50 if on_gpu else 6, metavar="N",
                        help="of a row in a round (default: %(default)s)")
    parser.add_argument("--samples", type=common.positive, default=64, metavar="N",
                        help="single images in a round, also of --decode (default: %(default)s)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value", help="entries of the config")
    parser.add_argument("--json", metavar="FILE", help="write hardware, versions and rows")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
