"""The joint search against exhaustion: all pairs of architecture and policy of a small space, trained from scratch.

    python tools/bench/planted_daas.py --seeds 8 --first-search-seed 2 --search-seeds 8 --json results/planted_daas.json

Two cells of one node (a normal and a reduction cell), each edge avg_pool_3x3 or sep_conv_3x3: 16 architectures, 12 of them
different (both inputs of the first cell are the stem). Three sub-policies, the pairs of three operations; the validation
images are transformed by both operations of one of them. A third of the images trains, a third is transformed and
validates, a third is transformed the same way and is seen by nobody. The shift is planted where a policy acts, on the crop
that the network sees: enlarged or shrunk after it, images look different at the borders, and accuracies are the noise of
how well a network copes with that. Every pair of architecture and sub-policy (both operations on every image, as strong as
the planted ones) is trained with each of --seeds and tested on the last third; the means rank the pairs. The joint search
then runs through its own command with each of --search-seeds, and what it found, the genotype and the sub-policy with the
largest preference, is looked up among them.

rank    of the pair found among all pairs, by mean accuracy (1 is the best)
regret  mean accuracy of the best pair minus that of the pair found, in points
saved   accuracy of the network of genotype.json trained from scratch with policy.json as saved, of that seed
"""

import argparse
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dada_det.augment import apply_operation
from dada_det.augment.named import AnyPolicy
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.commands import common
from dada_det.data.memory import MemoryImages, center_crop
from dada_det.data.random import generator_for
from dada_det.engine.compare.trial import Recipe, run_trial
from dada_det.files import read_json
from dada_det.models.darts import name_of
from dada_det.models.genotype import Edge, Genotype
from dada_det.report.measurements import Rows
from dada_det.report.statistics import paired_difference
from measuring import measure, rows_in, run_search
from planted_images import images_for, write_folders

CANDIDATES = ("avg_pool_3x3", "sep_conv_3x3")
OPERATIONS = ("TranslateX", "Rotate", "Invert")  # of the policies
PLANTED = ("Rotate", "Invert")
STRENGTH = 0.95
SIDE, CROP = 9, 8  # pixels of a stored image, and of what a network sees
CHANNELS, CELLS = 8, 2
BATCH, LR, EPOCHS, SEARCH_EPOCHS = 50, 0.2, 12, 100
SEARCH = ("search.warmup_epochs=50", "weights_optimizer.lr=0.1", "architecture_optimizer.lr=0.03")
Pair = tuple[tuple[str, ...], str]  # the operations of the four edges, and the sub-policy's name


@dataclass(frozen=True)
class Task:
    """One training of a pair, or, without a pair, one search and the training of what it found."""

    seed: int
    pair: Pair | None = None

    @property
    def key(self) -> list[Any]:
        return [self.seed, self.pair and [list(self.pair[0]), self.pair[1]]]


def canonical(operations: tuple[str, ...]) -> tuple[str, ...]:
    """The same for architectures that differ by the order of the first cell's inputs, which are both the stem."""
    return (*sorted(operations[:2]), *operations[2:])


def pairs() -> list[Pair]:
    architectures = sorted({canonical(operations) for operations in itertools.product(CANDIDATES, repeat=4)})
    return [(architecture, policy) for architecture in architectures for policy in
            ("+".join(names) for names in itertools.combinations(OPERATIONS, 2))]


@functools.lru_cache(maxsize=1)
def images(seed: int) -> tuple[MemoryImages, ...]:
    """(training third, validation third, unseen third), the last two transformed by both planted operations."""
    pixels, labels_N = images_for(PLANTED[0], seed, None, SIDE)
    small = F.interpolate(pixels.float(), SIDE, mode="area").round().to(torch.uint8)
    generator, third, moved = generator_for(seed, 12), len(small) // 3, center_crop(small, CROP)
    for name in PLANTED:
        signs_N = (torch.rand(len(moved), generator=generator) < 0.5).float() * 2 - 1
        moved = apply_operation(moved, name, STRENGTH, signs_N, ranges="strength", generator=generator)
    moved = F.pad(moved, (0, SIDE - CROP, 0, SIDE - CROP))  # the central crop leaves the border out again
    return tuple(MemoryImages(source[part * third:(part + 1) * third], labels_N[part * third:(part + 1) * third])
                 for part, source in enumerate((small, moved, moved)))


def policy_of(name: str) -> Policy:
    return Policy("strength", (SubPolicy(1.0, tuple(Operation(one, 1.0, STRENGTH) for one in name.split("+"))),))


def genotype_of(operations: tuple[str, ...]) -> Genotype:
    nodes = [(Edge(half[0], 0), Edge(half[1], 1)) for half in (operations[:2], operations[2:])]
    return Genotype((nodes[0],), (nodes[1],))


def accuracy(genotype: Genotype, policy: AnyPolicy, seed: int) -> float:
    train, _, unseen = images(seed)
    recipe = Recipe(model=name_of(genotype, CHANNELS, CELLS), classes=10, image_size=CROP, epochs=EPOCHS, batch_size=BATCH,
                    lr=LR, weight_decay=2e-4, mirror=False)
    with tempfile.TemporaryDirectory() as folder:
        return run_trial(train, unseen, policy=policy, recipe=recipe, seed=seed, work_dir=folder, quiet=True)["top1"]


def run(task: Task) -> Rows:
    """The row of a task; seconds: of processor time."""
    began = time.process_time()
    if task.pair is not None:
        found: dict[str, Any] = {"architecture": list(task.pair[0]), "policy": task.pair[1],
                                 "accuracy": accuracy(genotype_of(task.pair[0]), policy_of(task.pair[1]), task.seed)}
    else:
        found = searched(task.seed)
    return [{"key": task.key, "seed": task.seed, **found, "seconds": round(time.process_time() - began, 2)}]


def searched(seed: int) -> dict[str, Any]:
    """What the search command finds on the folders of this seed."""
    train, val, _ = images(seed)
    options = [f"classifier.channels={CHANNELS}", f"classifier.cells={CELLS}", "classifier.nodes=1",
               f"classifier.operations=[{','.join(CANDIDATES)}]", f"operations=[{','.join(OPERATIONS)}]", "mirror=False",
               f"base_batch_size={BATCH}", *SEARCH]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folders(folder / "data", train=train, val=val)
        run_search(["--config", "configs/debug/search_daas.py", "--data", f"{folder}/data", "--val-data",
                    f"{folder}/data/val", "--image-size", str(CROP), "--batch-size", str(BATCH), "--epochs",
                    str(SEARCH_EPOCHS), "--seed", str(seed), "--work-dir", f"{folder}/search", "--cfg-options", *options])
        genotype, policy = Genotype.load(folder / "search/genotype.json"), Policy.load(folder / "search/policy.json")
        everything = read_json(folder / "search/search.json", "search result")
    operations = tuple(edge.operation for cell in (genotype.normal, genotype.reduction) for edge in cell[0])
    return {"architecture": list(canonical(operations)), "probabilities": everything["architecture"],
            "policy": "+".join(operation.name for operation in policy.sub_policies[0].operations),
            "preferences": [entry["preference"] for entry in everything["sub_policies"]],
            "accuracy": accuracy(genotype, policy, seed)}


def short(architecture: list[str] | tuple[str, ...]) -> str:
    """The four edges, as in "avg,sep avg,sep": the normal cell, then the reduction cell."""
    names = [name.split("_")[0] for name in architecture]
    return f"{names[0]},{names[1]} {names[2]},{names[3]}"


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The ranking, then a line for every search, then the summary."""
    by_pair: dict[Pair, dict[int, float]] = {}
    for row in rows:
        if row["key"][1]:
            by_pair.setdefault((tuple(row["architecture"]), row["policy"]), {})[row["seed"]] = row["accuracy"]
    means = {pair: sum(own.values()) / len(own) for pair, own in by_pair.items()}
    ranking = sorted(means, key=lambda pair: -means[pair])
    best = ranking[0]
    lines = [f"rank  {'architecture':<18}  {'policy':<18}  accuracy  behind the best (95 %, {len(by_pair[best])} seeds)"]
    for rank, pair in enumerate(ranking, 1):
        mean, half = paired_difference(list(by_pair[best].values()), [by_pair[pair][seed] for seed in by_pair[best]])
        lines.append(f"{rank:4d}  {short(pair[0]):<18}  {pair[1]:<18}  {means[pair]:8.1f}  {mean:6.1f} ± {half:.1f}")
    searches = sorted((row for row in rows if not row["key"][1]), key=lambda row: row["seed"])
    lines.append(f"seed  {'found':<18}  {'policy':<18}  rank  regret  saved")
    ranks, regrets = [], []
    for row in searches:
        pair = (tuple(row["architecture"]), row["policy"])
        ranks.append(ranking.index(pair) + 1)
        regrets.append(means[best] - means[pair])
        lines.append(f"{row['seed']:4d}  {short(pair[0]):<18}  {pair[1]:<18}  {ranks[-1]:4d}  {regrets[-1]:6.1f}  "
                     f"{row['accuracy']:5.1f}")
    if searches:
        chance = sum(means[best] - mean for mean in means.values()) / len(means)
        lines.append(f"of {len(ranking)} pairs the best one was found in {ranks.count(1)} of {len(ranks)} searches; mean "
                     f"rank {sum(ranks) / len(ranks):.1f} (chance {(len(ranking) + 1) / 2:.1f}), mean regret "
                     f"{sum(regrets) / len(regrets):.1f} points (chance {chance:.1f}), best architecture in "
                     f"{sum(tuple(row['architecture']) == best[0] for row in searches)}, best policy in "
                     f"{sum(row['policy'] == best[1] for row in searches)}")
    return lines


def body(args: argparse.Namespace) -> None:
    settings = {"epochs": EPOCHS, "batch": BATCH, "lr": LR, "search_epochs": SEARCH_EPOCHS, "search": list(SEARCH)}
    tasks = [Task(seed, pair) for seed in range(args.seeds) for pair in pairs()]
    tasks += [Task(seed) for seed in range(args.first_search_seed, args.first_search_seed + args.search_seeds)]
    rows = rows_in(args.json, settings)
    known = [row["key"] for row in rows]
    left = [task for task in tasks if task.key not in known]
    measure("planted_daas", run, left, args.processes, rows, args.json, settings,
            lambda task, new: f"seed {task.seed}  {'pair' if task.pair else 'search'}  {short(new[0]['architecture'])}  "
                              f"{new[0]['policy']}  {new[0]['accuracy']:.1f} %")
    print("\n".join(report(rows)))
    print(f"planted_daas  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("planted_daas.py", __doc__ or "",
                               "python tools/bench/planted_daas.py --seeds 8 --first-search-seed 2 --search-seeds 8 "
                               "--processes 2 --json results/planted_daas.json")
    parser.add_argument("--seeds", type=common.positive, default=4,
                        help="of the exhaustion, from 0 on (default: %(default)s)")
    parser.add_argument("--search-seeds", type=int, default=4, help="how many (default: %(default)s)")
    parser.add_argument("--first-search-seed", type=common.seed, default=0, help="(default: %(default)s)")
    parser.add_argument("--processes", type=common.positive, default=1, help="side by side, one thread each (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write hardware, versions and rows after every run; runs that it holds are not run again")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
