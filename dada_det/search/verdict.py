"""The verdict: which of several policies a search hands over, from forks that share images, batches and seeds.

A block is a fold with a seed; the candidates of a block have trained on the same batches and are judged on the same images.
C candidates, V validation images of a fold, G groups of them (pictures of one thing), R forks of a fold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCORE, CORRECT = 0, 1  # rows of forks.image_scores
Scores = Mapping[tuple[str, int, int], Tensor]  # (candidate, fold, seed) -> forks.image_scores, float64 [2,V]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Standing:
    """A candidate's place.

    accuracy: in percent, the mean over its forks; points: accuracy less the reference's, in percent; score: minus the
    calibrated cross-entropy, less the mean candidate's, in nats; shrunken: that, shrunken to the mean of its kind.
    """

    name: str
    kind: str  # such as "fixed" | "found"
    forks: int
    accuracy: float
    points: Estimate
    score: Estimate
    shrunken: Estimate


class Comparison:
    """All candidates on one scale, whichever blocks each has been in.

    On each image the score of a fork is its block's plus its candidate's plus noise; least squares give the candidates',
    less their mean. Every fold has a fork of every candidate.

    Args:
        scores: by (candidate, fold, seed).
        groups: of each fold, the group of each image [V]; images of a group are one witness.
        row: SCORE or CORRECT.
    """

    def __init__(self, scores: Scores, groups: Sequence[Tensor], row: int) -> None:
        self.names = list(dict.fromkeys(name for name, _, _ in scores))
        self.groups = groups
        self.folds = [self._fold(scores, fold, row) for fold in range(len(groups))]

    def _fold(self, scores: Scores, fold: int, row: int) -> tuple[Tensor, Tensor, float]:
        """(effects of the candidates on each image [C,V], their weights of the forks [C,R], variance between forks)."""
        keys = [key for key in scores if key[1] == fold]
        seeds = sorted({seed for _, _, seed in keys})
        y_RV = torch.stack([scores[key][row].double() for key in keys])
        design_RP = torch.zeros(len(keys), len(self.names) + len(seeds), dtype=torch.float64)
        for place, (name, _, seed) in enumerate(keys):
            design_RP[place, self.names.index(name)] = 1
            design_RP[place, len(self.names) + seeds.index(seed)] = 1
        solution_PR = torch.linalg.pinv(design_RP)
        weights_CR = solution_PR[:len(self.names)]
        weights_CR = weights_CR - weights_CR.mean(0)
        freedom = len(keys) - int(torch.linalg.matrix_rank(design_RP))
        rest_R = (y_RV - design_RP @ (solution_PR @ y_RV)).mean(1)
        return weights_CR @ y_RV, weights_CR, float(rest_R.square().sum()) / freedom if freedom else 0.0

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """The weighted sum of candidates' effects, the mean over folds.

        To what differs from group to group of images the error adds what differs from fork to fork, where seeds repeat.
        """
        weights_C = torch.tensor([weights.get(name, 0.0) for name in self.names], dtype=torch.float64)
        mean, variance = 0.0, 0.0
        for (effects_CV, weights_CR, between), groups_V in zip(self.folds, self.groups, strict=True):
            values_V = weights_C @ effects_CV
            mean += float(values_V.mean())
            variance += clustered_variance(values_V, groups_V) + between * float((weights_C @ weights_CR).square().sum())
        return Estimate(mean / len(self.folds), math.sqrt(variance) / len(self.folds))

    def difference(self, ours: str, reference: str) -> Estimate:
        return self.contrast({ours: 1.0, reference: -1.0} if ours != reference else {})


def clustered_variance(values_V: Tensor, groups_V: Tensor) -> float:
    """The variance of the mean of V values that are independent between groups alone (Liang and Zeger, 1986)."""
    names_G, index_V = groups_V.unique(return_inverse=True)
    if len(names_G) < 2:
        return 0.0
    sums_G = torch.zeros(len(names_G), dtype=torch.float64).index_add_(0, index_V, (values_V - values_V.mean()).double())
    return float(sums_G.square().sum()) * len(names_G) / (len(names_G) - 1) / len(values_V) ** 2


def standings(scores: Scores, groups: Sequence[Tensor], kinds: Mapping[str, str], reference: str) -> list[Standing]:
    """All candidates, the largest shrunken score first; kinds: name -> kind.

    Shrinkage is an empirical Bayes estimate within a kind: true effects come from a normal, whose mean and variance are
    estimated (DerSimonian and Laird, 1986). It takes out of the best of many what luck has put in.
    """
    score, correct = Comparison(scores, groups, SCORE), Comparison(scores, groups, CORRECT)
    raw = {name: score.contrast({name: 1.0}) for name in score.names}
    priors = {kind: random_effects([raw[name] for name in score.names if kinds[name] == kind])
              for kind in set(kinds[name] for name in score.names)}
    table = []
    for name in score.names:
        forks = [found for key, found in scores.items() if key[0] == name]
        points = correct.difference(name, reference) if reference in score.names else Estimate(0.0, 0.0)
        table.append(Standing(name, kinds[name], len(forks), 100 * float(torch.cat(forks, 1)[CORRECT].mean()),
                              Estimate(100 * points.mean, 100 * points.error), raw[name],
                              shrunken(raw[name], *priors[kinds[name]])))
    return sorted(table, key=lambda standing: -standing.shrunken.mean)


def shrunken(raw: Estimate, centre: Estimate, variance: float) -> Estimate:
    """The posterior of a true effect under a normal prior, whose mean is known to its own error."""
    share = variance / (variance + raw.error**2) if raw.error > 0 else 1.0
    return Estimate(centre.mean + share * (raw.mean - centre.mean),
                    math.hypot(math.sqrt(share) * raw.error, (1 - share) * centre.error))


def random_effects(estimates: Sequence[Estimate]) -> tuple[Estimate, float]:
    """(mean, variance) of the normal that true effects come from, by the method of moments."""
    weights = [1 / max(each.error, 1e-9) ** 2 for each in estimates]
    centre = weighted_mean(estimates, weights)
    excess = sum(w * (each.mean - centre) ** 2 for w, each in zip(weights, estimates, strict=True)) - (len(estimates) - 1)
    scale = sum(weights) - sum(w * w for w in weights) / sum(weights)
    variance = max(0.0, excess / scale) if len(estimates) > 1 else 0.0
    weights = [1 / (variance + max(each.error, 1e-9) ** 2) for each in estimates]
    return Estimate(weighted_mean(estimates, weights), 1 / math.sqrt(sum(weights))), variance


def weighted_mean(estimates: Sequence[Estimate], weights: Sequence[float]) -> float:
    return sum(w * each.mean for w, each in zip(weights, estimates, strict=True)) / sum(weights)


@dataclass(frozen=True)
class Verdict:
    """The candidate that is handed over, whether it is told from the best fixed policy, and the table behind it."""

    winner: str
    best_fixed: str
    told_apart: bool
    table: tuple[Standing, ...]

    def of(self, name: str) -> Standing:
        return next(standing for standing in self.table if standing.name == name)


def verdict(scores: Scores, groups: Sequence[Tensor], kinds: Mapping[str, str], reference: str) -> Verdict:
    """The best found policy if it is a standard error better than the best fixed one, shrunken both, else the latter."""
    table = tuple(standings(scores, groups, kinds, reference))
    best_fixed = next(standing for standing in table if standing.kind == "fixed")
    found = next((standing for standing in table if standing.kind == "found"), None)
    if found is not None:
        gain = found.shrunken.mean - best_fixed.shrunken.mean
        if gain > 0 and gain >= math.hypot(found.shrunken.error, best_fixed.shrunken.error):
            return Verdict(found.name, best_fixed.name, True, table)
    return Verdict(best_fixed.name, best_fixed.name, False, table)
