"""What a step of the search costs: a whole step over a plain forward+backward of the same model and batch.

Plain is train mode, the gradient of every weight, no optimiser step. On a GPU model, batch, image size and precision are
the config's own, as the search runs it; on a CPU the batch and the images are small and all is float32. A whole step is
SearchBatches.batch (crops, flips, noise) and Searcher.search_step with the stage's own optimisers, in the same process;
where one of several steps validates (val_every), the mean of as many. They take turns, these steps and PLAIN plain passes
a round, nearly as long: what disturbs the machine for a while falls on both alike, where a single short pass would mostly
be spared. The images are random: no kernel's time depends on them.

ratio             (step - the weights' own update) / mean of the round's plain passes, the median over rounds; low, high:
                  its 95 % interval
weights_update    SGD and clipping over plain, which plain training pays too; policy_update (Adam) is part of the ratio
augmentation      the policies' operations as a share of the step; data: crops, flips and noise as a share of it
memory_ratio      peak bytes of a step over those of plain training (forward, backward, the weights' update), each with
                  the weights, optimiser states and running means that it has to hold: CUDA's max_memory_allocated; on the
                  CPU what torch's allocator has handed out and not got back, by the profiler's record (so without
                  fragmentation and without Python itself)
rewards_per_step  images that got a reward of their own, in ddas copies of the batch; baseline: what is subtracted from it

The modes are DADA's two and ddas; each takes the search settings of its own config (ddas on CIFAR: 8 validation batches).
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler calls a machine without a GPU an error

import torch
from torch.nn import functional as F

from dada_det.commands import common
from dada_det.data.imagenet import MARGIN
from dada_det.data.memory import MemoryImages
from dada_det.devices import float32_arithmetic
from dada_det.engine.runtime.launch import read_config
from dada_det.engine.search.loop import SearchBatches
from dada_det.engine.search.problem import Problem
from dada_det.engine.search.problems import classification_batches
from dada_det.engine.search.run import METHODS, optimizers
from dada_det.engine.search.searcher import Searcher, build_searcher
from dada_det.errors import UserError
from dada_det.files import make_folder
from dada_det.models.classifiers import build_classifier
from dada_det.report.measurements import hardware, write_rows
from dada_det.report.statistics import median_interval as interval
from dada_det.search import estimators, step
from dada_det.search.ddas import Ddas

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODES = {"default": "search_{}", "paper": "search_{}_paper", "ddas": "search_ddas_{}"}  # config
BASELINES = {"default": "batch", "paper": "none", "ddas": "unaugmented"}
MODELS = {"wide_resnet40_2": ("cifar10", 10, 32, 32), "resnet50": ("imagenet", 120, 128, 8),
          "convnet": ("imagenet", 10, 16, 32)}  # data of the config, classes, and of a CPU side in pixels and batch
COLUMNS = {"model": "15", "mode": "20", "ratio": "6.2f", "low": "6.2f", "high": "6.2f", "memory_ratio": "13.2f",
           "rewards_per_step": "17d", "baseline": ">12", "augmentation": "13.1%", "data": "6.1%", "weights_update": "15.2f",
           "policy_update": "14.2f", "plain_ms": "9.1f"}
AFTER_WARM_UP = 10**6  # an epoch
PLAIN = 4  # plain passes a round, half of them before the steps and half after them


@dataclass(frozen=True)
class Case:
    """A model in one mode, with the batches and the optimisers that the search stage makes for it."""

    searcher: Searcher
    batches: SearchBatches
    wrappers: Any  # what engine.search.optimizers gives
    device: torch.device

    def steps(self, number: int) -> None:
        """Whole steps of the search, their data included, after the warm-up epochs: from one validation pass to the next."""
        period = self.batches.settings.val_every
        for which in range(number * period, (number + 1) * period):
            batch = self.batches.batch(*divmod(which, len(self.batches)))
            self.searcher.search_step(batch, self.wrappers, epoch=AFTER_WARM_UP)

    def plain(self, number: int) -> Callable[[], None]:
        """Plain forward+backward on a batch made ready beforehand."""
        batch = self.batches.batch(0, number % len(self.batches))
        images = self.searcher.normalise(batch.images_BCHW)
        assert isinstance(batch.targets_B, torch.Tensor)
        labels_B, low = batch.targets_B, self.searcher.low

        def run() -> None:
            with float32_arithmetic():
                with torch.autocast(self.device.type, dtype=low, enabled=low is not None):
                    logits = self.searcher.network(images)
                F.cross_entropy(logits.float(), labels_B).backward()

        return run

    def plain_training(self, number: int) -> None:
        """Plain forward+backward and the weights' update."""
        self.plain(number)()
        self.wrappers["weights"].step()
        self.wrappers["weights"].zero_grad()

    def own_bytes(self) -> int:
        """What the searcher and its optimisers hold that plain training does not have."""
        plain = {tensor.data_ptr() for tensor in [*self.searcher.network.parameters(), *self.searcher.network.buffers(),
                                                  *states_of(self.wrappers["weights"])]}
        return sum(tensor.nbytes for tensor in self.held() if tensor.data_ptr() not in plain)

    def held(self) -> list[torch.Tensor]:
        """All that stays from step to step."""
        return [*self.searcher.parameters(), *self.searcher.buffers(),
                *(state for wrapper in self.wrappers.values() for state in states_of(wrapper))]


def states_of(wrapper: Any) -> list[torch.Tensor]:
    """The tensors of an optimiser's state."""
    states = wrapper.optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def build(model: str, mode: str, changes: Sequence[str], device: torch.device) -> Case:
    """The searcher of configs/search_*.py with `changes` (name=value) of its search settings, on random images."""
    data, classes, size, batch_size = MODELS[model]
    config = read_config(str(CONFIGS / f"{MODES[mode].format(data)}.py"), [f"search.{change}" for change in changes])
    if device.type == "cpu":
        config.batch_size, config.image_size = batch_size, size
    batch_size, size = config.batch_size, config.image_size
    make_algorithm = METHODS[config.get("method", "dada")](config)
    torch.manual_seed(0)
    network = build_classifier(model, classes, size)
    algorithm = make_algorithm(network)
    side = size if config.get("padding", 0) else round(size * MARGIN)
    halves = [MemoryImages(torch.randint(0, 256, (20 * batch_size, 3, side, side), dtype=torch.uint8).to(device),
                           torch.randint(0, classes, (20 * batch_size,)).to(device)) for _ in range(2)]
    problem = Problem(lambda: network, partial(classification_batches, config, halves[0], halves[1]), {}, data_hash="")
    batches = problem.batches(algorithm)
    searcher = build_searcher(config, problem, network, algorithm, device).train()
    return Case(searcher, batches, optimizers(searcher, config), device)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """The numbers of one row; the first round warms up and is not counted."""
    memory_ratio, ratios, plains, parts, period = 0.0, [], [], [], case.batches.settings.val_every
    for number in range(rounds + 1):
        whole_steps = partial(case.steps, number)
        before = [plain_seconds(case, number) for _ in range(PLAIN // 2)]
        took = seconds(whole_steps, case.device) / period
        plain = statistics.mean(before + [plain_seconds(case, number) for _ in range(PLAIN // 2)])
        with watched(case) as spent:  # of a step of its own: on a GPU each look at the clock waits for the device
            spent["step"] = seconds(whole_steps, case.device)
        spent = {name: amount / period for name, amount in spent.items()}
        if number == 0:
            memory_ratio = peak_bytes(case, case.steps) / (peak_bytes(case, case.plain_training) - case.own_bytes())
            continue
        ratios.append((took - spent["weights_update"]) / plain)
        plains.append(plain)
        parts.append({**spent, "plain": plain})
    low, high = interval(ratios)
    share = {name: statistics.median(part[name] / part["step"] for part in parts) for name in ("augmentation", "data")}
    updates = {name: statistics.median(part[name] / part["plain"] for part in parts)
               for name in ("weights_update", "policy_update")}
    return {"ratio": statistics.median(ratios), "low": low, "high": high, "memory_ratio": memory_ratio,
            "rewards_per_step": int(parts[-1]["rewards"]), **share, **updates,
            "baseline": BASELINES[str(case.searcher.algorithm.provenance.get("mode", "ddas"))],
            "plain_ms": 1000 * statistics.median(plains), "rounds": rounds}


def plain_seconds(case: Case, number: int) -> float:
    took = seconds(case.plain(number), case.device)
    case.wrappers["weights"].zero_grad()
    return took


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall time of `run`, until the device has done all of it."""
    start = now(device)
    run()
    return now(device) - start


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def watched(case: Case) -> Iterator[dict[str, float]]:
    """Seconds spent in the parts of a step, by name, and the number of "rewards"."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = now(case.device)
            result = function(*arguments, **options)
            spent[name] += now(case.device) - start
            return result
        return call

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(rewards: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            spent["rewards"] += len(rewards)
            return function(rewards, *arguments, **options)
        return call

    def counted_by_method(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda own, rewards, *rest: counted(partial(method, own))(rewards, *rest)

    weights, policy = case.wrappers["weights"], case.wrappers["policy"]
    with (patch.object(step, "apply_draws", timed("augmentation", step.apply_draws)),
          patch.object(weights, "step", timed("weights_update", weights.step)),
          patch.object(policy, "step", timed("policy_update", policy.step)),
          patch.object(SearchBatches, "batch", timed("data", SearchBatches.batch)),
          patch.object(Ddas, "learn", counted_by_method(Ddas.learn)),
          # Each estimate of the magnitudes goes through one of these, with every reward once.
          patch.object(estimators, "marginal_score", counted(estimators.marginal_score)),
          patch.object(estimators, "straight_through_magnitude", counted(estimators.straight_through_magnitude))):
        yield spent


def peak_bytes(case: Case, run: Callable[[int], None]) -> int:
    """Peak bytes while `run(0)` runs, what the searcher and its optimisers hold included."""
    gc.collect()
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
        run(0)
        return torch.cuda.max_memory_allocated(case.device)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        run(0)
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now_held = peak = sum(tensor.nbytes for tensor in case.held())
    for event in sorted(events, key=lambda event: event.start_ns()):
        now_held += event.nbytes()
        peak = max(peak, now_held)
    return peak


def body(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; give --device cpu")
    if args.json is not None:
        make_folder(args.json.parent)
    device = torch.device(args.device)
    print(f"{hardware()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.rounds} rounds")
    widths = {name: max(len(name), int(form.lstrip("<>").partition(".")[0].rstrip("d"))) for name, form in COLUMNS.items()}
    print("  ".join(f"{name:{'<' if name in ('model', 'mode') else '>'}{widths[name]}}" for name in COLUMNS))
    rows = []
    for model in args.models:
        for mode in args.modes:
            case = build(model, mode, args.settings, device)
            row = {"model": model, "mode": " ".join([mode, *args.settings]), "batch": case.batches.batch_size,
                   "image_size": case.batches.image_size, "precision": "bfloat16" if case.searcher.low else "float32",
                   **measure(case, args.rounds)}
            rows.append(row)
            print("  ".join(f"{row[name]:{form}}".rjust(widths[name]) for name, form in COLUMNS.items()), flush=True)
    if args.json is not None:
        write_rows(args.json, rows, {"device": str(device), "threads": torch.get_num_threads(), "rounds": args.rounds})
    print(f"search_step  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("search_step.py", __doc__ or "",
                               "python tools/bench/search_step.py --models wide_resnet40_2 --modes default paper ddas\n"
                               "  python tools/bench/search_step.py --modes default --settings val_every=1 --json step.json")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["wide_resnet40_2", "resnet50"],
                        help="(default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["default", "paper"],
                        help="(default: %(default)s)")
    parser.add_argument("--settings", nargs="+", default=[], metavar="name=value",
                        help="changes of the modes' search settings")
    parser.add_argument("--rounds", type=common.positive, default=12, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="of torch on the CPU (default: torch's own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write hardware, versions and rows")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
