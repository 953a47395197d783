"""The verdict: which of several policies a search hands over, from trainings that share images, batches and first weights.

A fold is a way to part the images; the candidates of a fold have trained on the same batches and are judged on the same
images. C candidates, V validation images of a fold, G groups of them (pictures of one thing).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SCORE, CORRECT = 0, 1  # rows of training.image_scores
Scores = Mapping[tuple[str, int], Tensor]  # (candidate, fold) -> training.image_scores, float64 [2,V]
# What a difference in points that was measured on part of the images becomes in a training on all of them: its factor is
# 1 on all and 0.4 on half of them, with a standard deviation of 0.25. Rough, from few trainings (docs/method.md, step 4).
FACTOR_LOST, FACTOR_ERROR = 1.2, 0.25
# The variance between trainings over that between images. It is assumed: one training a fold cannot show it.
TRAINING_NOISE = 0.5
# Standard errors by which a found policy must be better than the best fixed one to be handed over. The fixed policies were
# made for test images like the training images; where only a target's images validate they have no such head start, and
# where half of these train they have it again (docs/method.md).
MARGIN, MARGIN_ON_TARGET = 1.0, 0.0
# Ties go to no policy: what short trainings on fewer images gain from augmentation is less on all of them.
PLAIN = "none"
GUESSING = 3.0  # standard errors above a guess, which the best of nine guesses does not reach by luck


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Standing:
    """A candidate's place.

    accuracy: in percent, the mean over the folds (of a detector AP); points: accuracy less the reference's, in percent, as
    measured; expected: the same in a training of each on all images; score: minus the calibrated cross-entropy in nats (of a
    detector AP, 0..1), less the mean candidate's; shrunken: that, shrunken to the mean of its kind.
    """

    name: str
    kind: str  # such as "fixed" | "found"
    accuracy: float
    points: Estimate
    expected: Estimate
    score: Estimate
    shrunken: Estimate


class Comparison:
    """The effects of all candidates: on each image a candidate's value less the mean candidate's.

    Args:
        scores: by (candidate, fold); every candidate is in every fold.
        groups: of each fold, the group of each image [V]; images of a group are one witness.
        row: SCORE or CORRECT.
    """

    def __init__(self, scores: Scores, groups: Sequence[Tensor], row: int) -> None:
        self.names = list(dict.fromkeys(name for name, _ in scores))
        self.groups = groups
        values = [torch.stack([scores[name, fold][row].double() for name in self.names]) for fold in range(len(groups))]
        self.effects = [values_CV - values_CV.mean(0) for values_CV in values]

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """The weighted sum of candidates' effects, the mean over folds; its error is what differs from group to
        group of images, and from training to training."""
        weights_C = torch.tensor([weights.get(name, 0.0) for name in self.names], dtype=torch.float64)
        values = [weights_C @ effects_CV for effects_CV in self.effects]
        variance = sum(map(clustered_variance, values, self.groups)) / len(values) ** 2
        if len(values) > 1 and any(len(groups_V.unique()) < 2 for groups_V in self.groups):  # then pool the folds' groups
            variance = clustered_variance(torch.cat(values), torch.cat(list(self.groups)))
        return Estimate(sum(float(values_V.mean()) for values_V in values) / len(values),
                        math.sqrt((1 + TRAINING_NOISE) * variance))

    def difference(self, ours: str, reference: str) -> Estimate:
        return self.contrast({ours: 1.0, reference: -1.0} if ours != reference else {})


def clustered_variance(values_V: Tensor, groups_V: Tensor) -> float:
    """The variance of the mean of V values that are independent between groups alone (Liang and Zeger, 1986).

    One group cannot show its variance; that of one image stands for it, which is too little rather than too much.
    """
    names_G, index_V = groups_V.unique(return_inverse=True)
    if len(names_G) < 2:
        return float(values_V.var()) if len(values_V) > 1 else 0.0
    sums_G = torch.zeros(len(names_G), dtype=torch.float64).index_add_(0, index_V, (values_V - values_V.mean()).double())
    return float(sums_G.square().sum()) * len(names_G) / (len(names_G) - 1) / len(values_V) ** 2


def standings(scores: Scores, groups: Sequence[Tensor], kinds: Mapping[str, str], reference: str,
              part: float = 1.0) -> list[Standing]:
    """All candidates, the largest shrunken score first; where these are equal (nothing told apart), the largest score.

    kinds: name -> kind; part: of the images that train in a fold (Trainings.part). Shrinkage is an empirical Bayes estimate
    within a kind: true effects come from a normal, whose mean and variance are estimated (DerSimonian and Laird, 1986). It
    takes out of the best of many what luck has put in.
    """
    score, correct = Comparison(scores, groups, SCORE), Comparison(scores, groups, CORRECT)
    raw = {name: score.contrast({name: 1.0}) for name in score.names}
    priors = {kind: random_effects([raw[name] for name in score.names if kinds[name] == kind])
              for kind in set(kinds[name] for name in score.names)}
    table = []
    for name in score.names:
        right = [float(scores[name, fold][CORRECT].mean()) for fold in range(len(groups))]
        points = correct.difference(name, reference) if reference in score.names else Estimate(0.0, 0.0)
        points = Estimate(100 * points.mean, 100 * points.error)
        table.append(Standing(name, kinds[name], 100 * sum(right) / len(right), points,
                              on_all_images(points, part, len(groups)), raw[name],
                              shrunken(raw[name], *priors[kinds[name]])))
    return sorted(table, key=lambda standing: (-standing.shrunken.mean, -standing.score.mean))


def on_all_images(measured: Estimate, part: float, folds: int) -> Estimate:
    """What a difference in points, the mean of `folds` trainings on `part` (0..1) of the images, is in one training of each
    policy on all of them: more images leave less to gain. The error holds the factor's and one more training's noise."""
    factor = 1 - FACTOR_LOST * (1 - part)
    noise = folds * TRAINING_NOISE / (1 + TRAINING_NOISE)  # a single training's, as a share of the measured variance
    variance = (factor**2 + noise) * measured.error**2 + (FACTOR_ERROR * measured.mean) ** 2
    return Estimate(factor * measured.mean, math.sqrt(variance))


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
    """The candidate that is handed over, and the table behind it.

    told_apart: the best found policy is a standard error better than the best fixed one; learned: a candidate is better than
    guessing.
    """

    winner: str
    best_fixed: str
    told_apart: bool
    table: tuple[Standing, ...]
    learned: bool = True

    def of(self, name: str) -> Standing:
        return next(standing for standing in self.table if standing.name == name)


def better_than_guessing(scores: Scores, groups: Sequence[Tensor], guesses: Sequence[Tensor]) -> bool:
    """Whether a candidate's figure or its score is GUESSING standard errors above that of a guess, the mean over folds.

    A network that has learned a rare class need not be right more often than one that always says the frequent one; its
    score shows it. Where all images of a fold are of one class, no guess can be told from knowledge: True.

    Args:
        groups: of each fold, the group of each image [V]; images of a group are one guess.
        guesses: of each fold, training.image_scores of a network that knows how frequent the classes are and no more [2,V].
    """
    if any(bool((guess_2V[CORRECT] == 1).all()) for guess_2V in guesses):
        return True
    folds = range(len(guesses))

    def above(values: Sequence[Tensor], spread: Sequence[Tensor]) -> bool:
        variance = sum(map(clustered_variance, spread, groups)) / len(folds) ** 2
        return statistics.fmean(float(values_V.mean()) for values_V in values) > GUESSING * math.sqrt(variance)

    for name in dict.fromkeys(name for name, _ in scores):
        more = [scores[name, fold] - guesses[fold] for fold in folds]
        if above([more_2V[CORRECT] for more_2V in more], [guess_2V[CORRECT] for guess_2V in guesses]) or \
                above([more_2V[SCORE] for more_2V in more], [more_2V[SCORE] for more_2V in more]):
            return True
    return False


def verdict(scores: Scores, groups: Sequence[Tensor], kinds: Mapping[str, str], reference: str,
            part: float = 1.0, margin: float = MARGIN, guesses: Sequence[Tensor] = ()) -> Verdict:
    """The best found policy if it is `margin` standard errors better than the best fixed one, image by image.

    Else the best fixed one if its gain over PLAIN, shrunken as all differences of fixed policies, is above zero and `margin`
    standard errors; else PLAIN. If no candidate is better than guessing (`guesses`, of each fold), the differences are
    noise, and PLAIN wins; so it does if there is no error to compare with, as with one validation image.
    """
    if guesses and not better_than_guessing(scores, groups, guesses):
        return replace(verdict(scores, groups, kinds, reference, part, math.inf), learned=False)
    table = tuple(standings(scores, groups, kinds, reference, part))
    comparison = Comparison(scores, groups, SCORE)
    fixed = [standing for standing in table if standing.kind == "fixed"]
    best = fixed[0].name
    found = next((standing.name for standing in table if standing.kind == "found"), None)
    if found is not None:
        gain = comparison.difference(found, best)
        if gain.error > 0 and gain.mean > margin * gain.error:
            return Verdict(found, best, gain.mean > gain.error, table)
    plain = PLAIN if PLAIN in [standing.name for standing in fixed] else best
    gain = comparison.difference(best, plain)
    return Verdict(best if clearly_better(gain, fixed, margin) else plain, best, False, table)


def clearly_better(gain: Estimate, fixed: Sequence[Standing], margin: float) -> bool:
    """Whether a gain of one fixed policy over another is above zero, and `margin` of its standard errors after shrinkage.

    The best of six policies that are all alike is better than PLAIN by luck. The prior of a gain is that of a difference of
    two of the `fixed` policies; its posterior lies sqrt(share) times as many standard errors above zero as measured.
    """
    if gain.error == 0:
        return False
    variance = 2 * random_effects([standing.score for standing in fixed])[1]
    share = variance / (variance + gain.error**2)
    return gain.mean > 0 and math.sqrt(share) * gain.mean >= margin * gain.error
