"""The end of a search: every policy that may be handed over trains from the first weights, and the verdict compares them.

Short trainings (forks) from the weights that `uniform` has left say before what each operation is worth, which proposes one
more policy. A policy's trainings on all folds together see as many images as one whole training.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from dada_det.search.candidates import alone, proposals
from dada_det.search.forks import ForkRecipe, State, train
from dada_det.search.ranks import world
from dada_det.search.verdict import Standing, Verdict, standings, verdict

START = "uniform"  # the policy whose trainings leave the weights that forks start from
FORK_SHARE = 0.15  # epochs of a fork over those of a training
WHOLE_AVERAGED, FORK_AVERAGED = 0.3, 0.5  # fraction of the steps, the last ones, whose mean weights are judged
NUMBER = {True: 1, False: 2}  # of the random streams of whole trainings and of forks
Key = tuple[str, int]  # a policy's name and a fold


@dataclass
class Trial:
    """Runs the trainings of a search's trial.

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
    scores: dict[Key, Tensor] = field(default_factory=dict)
    trainings: int = 0  # so far, forks among them
    images: int = 0  # that they have trained on

    def __post_init__(self) -> None:
        self.first = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.results = Results(self.folder)
        self.folds = range(len(self.forks.folds))
        self.groups = [fold.groups_V for fold in self.forks.folds]

    def run(self, proposed: dict[str, Policy]) -> tuple[Verdict, dict[str, AnyPolicy], list[Standing]]:
        """(the verdict, all candidates' policies by name, the operations' effects); proposed: candidates beside our own."""
        fixed = {name: fixed_policy(name, self.seed) for name in self.forks.fixed}
        scores, left = self.round("fixed policies", fixed)
        effects = self.try_operations([left[START, fold] for fold in self.folds])
        found: dict[str, AnyPolicy] = {**proposed, **proposals(effects)}
        self.scores = scores | self.round("found policies", found)[0]
        kinds = {**dict.fromkeys(fixed, "fixed"), **dict.fromkeys(found, "found")}
        return (verdict(self.scores, self.groups, kinds, self.forks.reference, self.forks.part), {**fixed, **found},
                effects)

    @property
    def cost(self) -> float:
        """Images that the trainings have seen over those of one whole training on all images of the search."""
        return self.images / (self.epochs * self.forks.whole)

    def try_operations(self, starts: Sequence[State]) -> list[Standing]:
        """The effect of each operation alone against the mean operation, the best first; starts: weights of each fold."""
        scores, _ = self.round("operations", {name: alone(name) for name in OPERATION_NAMES}, starts)
        return standings(scores, self.groups, dict.fromkeys(OPERATION_NAMES, "operation"), self.forks.reference)

    def round(self, label: str, policies: Mapping[str, AnyPolicy], starts: Sequence[State] | None = None) \
            -> tuple[dict[Key, Tensor], dict[Key, State]]:
        """Trains each policy on each fold: whole trainings from the first weights, or forks from `starts`, of each fold.

        Returns (the scores, the weights that the policy START has left).
        """
        epochs = self.epochs if starts is None else FORK_SHARE * self.epochs
        averaged = WHOLE_AVERAGED if starts is None else FORK_AVERAGED
        tasks = {f"{label}_{name}_fold{fold}".replace(" ", "_"): (name, fold) for name in policies for fold in self.folds}

        def work(task: str) -> dict[str, Any]:
            name, fold = tasks[task]
            self.network.load_state_dict(self.first if starts is None else starts[fold])
            recipe = replace(self.recipe, steps=self.forks.steps(epochs), averaged=averaged)
            batches = self.forks.batches(fold, NUMBER[starts is None], policies[name])
            train(self.network, batches, recipe, self.seed, self.low)
            left = {key: tensor.cpu().clone() for key, tensor in self.network.state_dict().items()}
            return {"scores": self.forks.judge(self.network, fold), "weights": left if name == START else {}}

        done = {tasks[task]: result for task, result in self.each(label, list(tasks), work)}
        self.trainings += len(tasks)
        self.images += len(tasks) * self.forks.steps(epochs) * self.forks.batch_size
        return ({key: result["scores"] for key, result in done.items()},
                {key: result["weights"] for key, result in done.items() if key[0] == START})

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

