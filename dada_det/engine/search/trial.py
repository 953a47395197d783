"""The end of a search: forks try each operation, then what was found against the fixed policies; the verdict is handed over.

All forks of a fold start from the same weights, trained under `uniform` with half of the images as they are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.augment.named import AnyPolicy, fixed_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.engine.search.forks import Forks, Results, shared_out
from dada_det.search.candidates import alone, half_unaugmented, proposals, stronger, weaker
from dada_det.search.forks import ForkRecipe, train
from dada_det.search.ranks import world
from dada_det.search.verdict import Standing, Verdict, standings, verdict

FORK_SHARE = 0.25  # epochs of a fork over those of a training
WARM_END = 0.3  # learning rate at the end of the warm-up over that at its beginning, which a fork begins with again
KEPT, FINAL = 3, 2  # candidates that get a second seed and a third, beside the best fixed policy
STRONGER = ", stronger"
FRESH = 1000  # number of the first fork that is no warm-up


@dataclass
class Trial:
    """Runs a search's forks.

    network: one that may be trained, whose first weights `first` are; recipe: of a whole training, steps aside; epochs: of a
    whole training; low: dtype of autocast.
    """

    forks: Forks
    network: nn.Module
    recipe: ForkRecipe
    epochs: float
    seed: int
    folder: Path
    low: torch.dtype | None = None
    scores: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    trainings: int = 0  # forks and warm-ups so far
    images: int = 0  # that they have trained on

    def __post_init__(self) -> None:
        self.first = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.results = Results(self.folder)
        self.folds = range(len(self.forks.folds))
        self.groups = [fold.groups_V for fold in self.forks.folds]

    def run(self, proposed: dict[str, Policy]) -> tuple[Verdict, dict[str, AnyPolicy], list[Standing]]:
        """(the verdict, all candidates' policies by name, the operations' effects); proposed: candidates beside our own."""
        self.warm_up()
        effects = self.try_operations()
        policies: dict[str, AnyPolicy] = {name: fixed_policy(name, self.seed) for name in self.forks.fixed}
        found: dict[str, Policy] = {**proposed, **proposals(effects)}
        kinds = {**dict.fromkeys(policies, "fixed"), **dict.fromkeys(found, "found")}
        self.round("first round", {**policies, **found}, 0)
        for vary, label in ((strengths, "strengths"), (refined, "refined")):
            table = self.table(kinds)
            variants = vary([standing.name for standing in table if standing.kind == "found"], found)
            self.round(label, variants, 0)
            found |= variants
            kinds |= dict.fromkeys(variants, "found")
        for number, label, most in ((1, "second seed", KEPT), (2, "third seed", FINAL)):
            table = self.table(kinds)
            best_fixed = next(standing.name for standing in table if standing.kind == "fixed")
            leaders = dict.fromkeys([*(standing.name for standing in table[:most]), best_fixed])
            self.round(label, {name: {**policies, **found}[name] for name in leaders}, number)
        return verdict(self.scores, self.groups, kinds, self.forks.reference), {**policies, **found}, effects

    @property
    def cost(self) -> float:
        """Images that the trainings have seen over those of one whole training on all images of the search."""
        return self.images / (self.epochs * self.forks.whole)

    def table(self, kinds: dict[str, str]) -> list[Standing]:
        return standings(self.scores, self.groups, kinds, self.forks.reference)

    def warm_up(self) -> None:
        """The weights from which a fold's forks start."""
        uniform = fixed_policy("uniform")
        assert isinstance(uniform, Policy)
        policy = half_unaugmented(uniform)
        tasks = {f"warm_fold{fold}": fold for fold in self.folds}

        def work(name: str) -> dict[str, Tensor]:
            recipe = replace(self.recipe, steps=self.forks.steps(tasks[name], self.epochs), last=WARM_END, averaged=0.0)
            self.train(tasks[name], 0, policy, self.first, recipe)
            return {key: tensor.cpu().clone() for key, tensor in self.network.state_dict().items()}

        self.warm = {tasks[name]: state for name, state in self.each("warm-up", list(tasks), work)}
        self.count(list(self.folds), self.epochs)

    def try_operations(self) -> list[Standing]:
        """The effect of each operation alone against the mean operation, the best first."""
        scores = self.round("operations", {name: alone(name) for name in OPERATION_NAMES}, 0, keep=False)
        return standings(scores, self.groups, dict.fromkeys(OPERATION_NAMES, "operation"), self.forks.reference)

    def round(self, label: str, policies: dict[str, AnyPolicy] | dict[str, Policy], number: int,
              keep: bool = True) -> dict[tuple[str, int, int], Tensor]:
        """Scores of a fork of each policy on each fold with seed `number`; `keep`: for the verdict."""
        tasks = {f"{name}_fold{fold}_{number}".replace(" ", "_").replace(",", ""): (name, fold)
                 for name in policies for fold in self.folds}

        def work(task: str) -> Tensor:
            name, fold = tasks[task]
            self.train(fold, FRESH + number, policies[name], self.warm[fold],
                       replace(self.recipe, steps=self.forks.steps(fold, FORK_SHARE * self.epochs)))
            return self.forks.judge(self.network, fold)

        found = {(*tasks[task], number): scores for task, scores in self.each(label, list(tasks), work)}
        self.count([fold for _, fold in tasks.values()], FORK_SHARE * self.epochs)
        if keep:
            self.scores |= found
        return found

    def count(self, folds: Sequence[int], epochs: float) -> None:
        self.trainings += len(folds)
        self.images += sum(self.forks.steps(fold, epochs) * self.forks.batch_size for fold in folds)

    def train(self, fold: int, number: int, policy: AnyPolicy, start: dict[str, Tensor], recipe: ForkRecipe) -> None:
        self.network.load_state_dict(start)
        train(self.network, self.forks.batches(fold, number, policy), recipe, self.seed + number, self.low)

    def each(self, label: str, tasks: Sequence[str], work: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        """shared_out, with a progress line on rank 0 every ten seconds and at the end."""
        began, said = time.monotonic(), time.monotonic()
        for done, (task, result) in enumerate(shared_out(tasks, self.results, work), 1):
            now = time.monotonic()
            if world()[0] == 0 and (now - said >= 10 or done == len(tasks)):
                said = now
                left = timedelta(seconds=round((now - began) / done * (len(tasks) - done)))
                print(f"search  trial, {label}  {done}/{len(tasks)}  ETA {left}", flush=True)
            yield task, result


def strengths(best: Sequence[str], found: dict[str, Policy]) -> dict[str, Policy]:
    """The best found policy stronger and weaker, and the next best stronger."""
    first, second = best[:2]
    return {f"{first}{STRONGER}": stronger(found[first]), f"{first}, weaker": weaker(found[first]),
            f"{second}{STRONGER}": stronger(found[second])}


def refined(best: Sequence[str], found: dict[str, Policy]) -> dict[str, Policy]:
    """The best found policy beside images as they are, and stronger still, where stronger was better."""
    first = best[0]
    more = {f"{first} still": stronger(found[first])} if first.endswith(STRONGER) else {}
    return {f"{first}, half unaugmented": half_unaugmented(found[first]), **more}
