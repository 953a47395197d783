"""The end of a search: every policy that may be handed over trains from the first weights, and the verdict compares them.

A policy's trainings on all folds together see as many images as one whole training.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.augment.named import AnyPolicy, fixed_policy, policy_key
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.engine.search.trainings import StoredTensors, Trainings, shared_out
from dada_det.errors import UserError
from dada_det.search.candidates import Effect, families, operation_effects, ours
from dada_det.search.ranks import world
from dada_det.search.training import TrainingRecipe, train
from dada_det.search.verdict import MARGIN, MARGIN_ON_TARGET, Verdict, verdict

GROUPS = "groups"  # the result that holds the groups of each fold's validation images


@dataclass
class Trial:
    """Runs the trainings of a search's trial.

    network: trained in place; `first` keeps its first weights. recipe: of a whole training, but for its steps, which follow
    from `epochs`. low: dtype of autocast.
    """

    data: Trainings
    network: nn.Module
    recipe: TrainingRecipe
    epochs: float
    seed: int
    folder: Path
    low: torch.dtype | None = None
    operations: Sequence[str] = OPERATION_NAMES  # that may be handed over
    scores: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    trained: int = 0  # trainings

    def __post_init__(self) -> None:
        self.first = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.results = StoredTensors(self.folder)
        self.folds = range(len(self.data.folds))
        self.groups = [fold.groups_V for fold in self.data.folds]
        if world()[0] == 0:
            self.results.put(GROUPS, self.groups)  # with the scores, all that a verdict needs

    def run(self, proposed: dict[str, Policy]) -> tuple[Verdict, dict[str, AnyPolicy], list[Effect]]:
        """(the verdict, all candidates' policies by name, the operations' effects); proposed: candidates beside our own."""
        fixed = {name: fixed_policy(name, self.seed) for name in self.data.fixed}
        found = {**proposed, **families(self.operations)}
        policies: dict[str, AnyPolicy] = {**fixed, **found}
        self.scores = self.train(policies)
        self.trained = len(self.scores)
        policies = self.without_diverged(policies)
        kinds = {name: "found" if name in found else "fixed" if made_of(policy, self.operations) else "outside"
                 for name, policy in policies.items()}  # what is outside is compared, never handed over
        margin = MARGIN_ON_TARGET if self.data.shift else MARGIN
        outcome = verdict(self.scores, self.groups, kinds, self.data.reference, self.data.part, margin,
                          [self.data.guess(fold) for fold in self.folds])
        return outcome, policies, operation_effects(ours(policies), {each.name: each.score for each in outcome.table})

    def without_diverged(self, policies: dict[str, AnyPolicy]) -> dict[str, AnyPolicy]:
        """The policies whose trainings ended with a finite score; the others' scores go, and a line names them.

        Raises:
            UserError: no fixed policy is left.
        """
        diverged = {name for (name, _), scores in self.scores.items() if not bool(scores.isfinite().all())}
        left = {name: policy for name, policy in policies.items() if name not in diverged}
        if not any(name in left and made_of(left[name], self.operations) for name in self.data.fixed):
            raise UserError("the loss of every fixed policy's training became infinite in the trial; lower "
                            "weights_optimizer.lr, or skip the trial with --no-trial")
        if diverged and world()[0] == 0:
            print(f"search  trial  left out, as their loss became infinite: {', '.join(sorted(diverged))}", flush=True)
        self.scores = {key: scores for key, scores in self.scores.items() if key[0] in left}
        return left

    @property
    def cost(self) -> float:
        """Images that the trainings have seen over those of one whole training on all images of the search."""
        return self.trained * self.data.steps(self.epochs) * self.data.batch_size / (self.epochs * self.data.whole)

    def train(self, policies: Mapping[str, AnyPolicy]) -> dict[tuple[str, int], Tensor]:
        """The scores of a training with each policy on each fold."""
        tasks = {result_name(name, fold, policy): (name, fold) for name, policy in policies.items() for fold in self.folds}
        recipe = replace(self.recipe, steps=self.data.steps(self.epochs))

        def work(task: str) -> Tensor:
            name, fold = tasks[task]
            self.network.load_state_dict(self.first)
            train(self.network, self.data.batches(fold, policies[name]), recipe, self.seed, self.low)
            return self.data.judge(self.network, fold)

        return {tasks[task]: result for task, result in self.each(list(tasks), work)}

    def each(self, tasks: Sequence[str], work: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        """shared_out, with a progress line on rank 0 every ten seconds and at the end."""
        began, said = time.monotonic(), time.monotonic()
        for done, (task, result) in enumerate(shared_out(tasks, self.results, work), 1):
            now = time.monotonic()
            if world()[0] == 0 and (now - said >= 10 or done == len(tasks)):
                said = now
                left = timedelta(seconds=round((now - began) / done * (len(tasks) - done)))
                print(f"search  trial  {done}/{len(tasks)}  ETA {left}", flush=True)
            yield task, result


def made_of(policy: AnyPolicy, operations: Sequence[str]) -> bool:
    """Whether a policy uses nothing but `operations`; torchvision's use more."""
    if policy is None or set(operations) >= set(OPERATION_NAMES):
        return True
    return isinstance(policy, Policy) and all(own.name in operations for each in policy.sub_policies
                                              for own in each.operations)


def result_name(name: str, fold: int, policy: AnyPolicy) -> str:
    """Of a training's result in the work folder, which says what the policy does: what alignment proposes can change if
    its last epochs are computed anew elsewhere."""
    return f"{name}_fold{fold}_{policy_key(policy)[:12]}"
