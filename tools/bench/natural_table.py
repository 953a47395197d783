"""The tables of natural.py from its rows: means, paired differences, noise, the truth and a search's correlation with it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dada_det.report.measurements import Rows
from dada_det.report.statistics import mean_interval, paired_difference, student_quantile

WITH_TARGET, LEARNED = "+t", "learned"  # the ending of an arm in whose training the target is; the search's own arm
FIXED = ("none", "random", "uniform", "one-op", "trivial", "rand")
REFERENCE = "trivial"
DETECTION = ("nuclei-stain",)  # in AP, which is averaged with no top-1
NORMAL_95 = 1.96  # standard errors to either side
Scores = dict[int, float]  # of an arm, by seed


def by_arm(rows: Rows, problem: str) -> dict[str, Scores]:
    """The scores of each arm of a problem."""
    found: dict[str, Scores] = {}
    for row in rows:
        if row["problem"] == problem:
            found.setdefault(row["arm"], {})[row["seed"]] = row["score"]
    return found


def table(rows: Rows, truth: Rows) -> list[str]:
    """A line an arm of each problem, and what the learned ones are worth over all classification problems."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        arms = by_arm(rows, problem)
        for ending in ("", WITH_TARGET):
            column = {arm: scores for arm, scores in arms.items() if arm.endswith(WITH_TARGET) == bool(ending)}
            if not column:
                continue
            best = best_fixed(column)
            for arm, scores in column.items():
                differences = [f"minus {other} {difference}" for other in dict.fromkeys((f"{REFERENCE}{ending}", best))
                               if other and other != arm and (difference := paired(scores, column.get(other, {})))]
                lines.append(f"{problem:14}  {arm:10}  {with_interval(list(scores.values())):12}  (n = {len(scores)})  "
                             + "  ".join(differences))
        lines += [line for row in rows if row["problem"] == problem and "search" in row
                  for line in lines_of_search(row, arms, effects_of(truth, problem))]
    return [*lines, *overall(rows), *honesty(rows)]


def lines_of_search(row: dict[str, Any], arms: Mapping[str, Scores], truth: Mapping[str, float]) -> list[str]:
    """What a search found beside the truth, and its verdict beside whole trainings."""
    label = f"{row['problem']:14}  {row['arm']}, seed {row['seed']}"
    lines = [f"{label}: rank correlation of {name} with the truth {rank_correlation(row[entry], truth):+.2f}"
             for entry, name in (("use", "the alignment"), ("effects", "the trial")) if truth and entry in row]
    if verdict := row.get("verdict"):
        whole, winner = difference_of(row, arms), winner_of(verdict)
        lines.append(f"{label}: {verdict['winner']}, {winner['expected']:+.1f} ± {winner['expected_error']:.1f} to "
                     f"{verdict['reference']}" + ("" if whole is None else f", in whole trainings {whole:+.1f}")
                     + f"; the trial costs {verdict['cost']:.1f} trainings")
    return lines


def winner_of(verdict: dict[str, Any]) -> dict[str, Any]:
    """The verdict's row of what was handed over."""
    return next(row for row in verdict["candidates"] if row["name"] == verdict["winner"])


def difference_of(row: dict[str, Any], arms: Mapping[str, Scores], candidate: str | None = None) -> float | None:
    """The score of what a search handed over, or of another candidate, minus that of its verdict's reference, in whole
    trainings of the same seed; None where there is none."""
    ending = WITH_TARGET if row["arm"].endswith(WITH_TARGET) else ""
    reference, seed = arms.get(f"{row['verdict']['reference']}{ending}", {}), row["seed"]
    ours = {seed: row["score"]} if candidate is None else arms.get(f"{candidate}{ending}", {})
    return ours[seed] - reference[seed] if seed in reference and seed in ours else None


def honesty(rows: Rows) -> list[str]:
    """How often the verdict's 95 % interval holds the difference of whole trainings: of what was handed over, and of all
    other candidates that have whole trainings."""
    handed: list[bool] = []
    others: list[bool] = []
    for row in rows:
        if "verdict" not in row:
            continue
        arms, verdict = by_arm(rows, row["problem"]), row["verdict"]
        for each in verdict["candidates"]:
            won = each["name"] == verdict["winner"]
            whole = difference_of(row, arms, None if won else each["name"])
            if whole is not None and (won or each["name"] != verdict["reference"]):
                (handed if won else others).append(abs(whole - each["expected"]) <= NORMAL_95 * each["expected_error"])
    return [f"the verdict's interval holds the difference of whole trainings of what was handed over in {sum(handed)} of "
            f"{len(handed)} rows" + (f", of other candidates in {sum(others)} of {len(others)}" if others else "")] \
        if handed else []


def overall(rows: Rows) -> list[str]:
    """`learned` minus the single fixed policy that is best in the mean of all classification problems."""
    lines = []
    for ending in ("", WITH_TARGET):
        problems = {name: by_arm(rows, name) for name in dict.fromkeys(row["problem"] for row in rows)
                    if name not in DETECTION}
        problems = {name: arms for name, arms in problems.items() if LEARNED + ending in arms}
        arms = [name + ending for name in FIXED if all(name + ending in found for found in problems.values())]
        if len(problems) < 2 or not arms:
            continue
        best = max(arms, key=lambda arm: statistics.fmean(statistics.fmean(found[arm].values())
                                                          for found in problems.values()))
        pairs = [(found[LEARNED + ending][seed], found[best][seed]) for found in problems.values()
                 for seed in found[LEARNED + ending] if seed in found[best]]
        mean, half = paired_difference(*zip(*pairs, strict=True))
        lines.append(f"all {len(problems)} classification problems: {LEARNED}{ending} minus {best}, the best single fixed "
                     f"policy, {interval(mean, half, '+')} (n = {len(pairs)} pairs)")
    return lines


def best_fixed(column: Mapping[str, Scores]) -> str | None:
    """The fixed arm with the highest mean over the seeds that all of them have; of all seeds where they share none."""
    fixed = {arm: scores for arm, scores in column.items() if arm.removesuffix(WITH_TARGET) in FIXED}
    shared = set.intersection(*map(set, fixed.values())) if fixed else set()
    return max(fixed, default=None, key=lambda arm: statistics.fmean(
        score for seed, score in fixed[arm].items() if seed in shared or not shared))


def paired(ours: Scores, reference: Scores) -> str:
    """The mean difference over the seeds that both have, with its interval; nothing where they share none."""
    seeds = [seed for seed in ours if seed in reference]
    if not seeds:
        return ""
    return interval(*paired_difference([ours[seed] for seed in seeds], [reference[seed] for seed in seeds]), "+")


def with_interval(values: Sequence[float]) -> str:
    return interval(*mean_interval(values))


def interval(mean: float, half: float, sign: str = "") -> str:
    """A mean and its interval, which one run does not have."""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def noise_lines(rows: Rows) -> list[str]:
    """The standard deviation over training seeds of each arm, and the difference that five pairs can tell from zero."""
    lines = []
    for problem, arm in dict.fromkeys((row["problem"], row["arm"]) for row in rows):
        scores = [row["score"] for row in rows if (row["problem"], row["arm"]) == (problem, arm)]
        if len(scores) < 2:
            continue
        deviation = statistics.stdev(scores)
        told = student_quantile(0.95, 4) * deviation * math.sqrt(2 / 5)
        lines.append(f"{problem:14}  {arm:10}  {statistics.fmean(scores):5.1f}, standard deviation {deviation:.2f} over "
                     f"{len(scores)} trainings; five pairs of such trainings tell {told:.1f}")
    return lines


def truth_lines(rows: Rows) -> list[str]:
    """Each operation alone minus none, the mean of its strengths, the best first."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        arms = by_arm(rows, problem)
        effects = effects_of(rows, problem)
        lines.append(f"{problem:14}  none {with_interval(list(arms['none'].values()))} (n = {len(arms['none'])})")
        for name in sorted(effects, key=lambda name: -effects[name]):
            strengths = [f"{arm.partition('@')[2]}: {paired(scores, arms['none'])}" for arm, scores in arms.items()
                         if arm.startswith(f"{name}@")]
            lines.append(f"{problem:14}  {name:12}  {effects[name]:+5.1f}   {'   '.join(strengths)}")
    return lines


def effects_of(truth: Rows, problem: str) -> dict[str, float]:
    """What each operation alone is worth: its mean over seeds and strengths minus that of none."""
    arms = by_arm(truth, problem)
    found: dict[str, list[float]] = {}
    for arm, scores in arms.items():
        if "@" in arm:
            found.setdefault(arm.partition("@")[0], []).extend(scores[seed] - arms["none"][seed] for seed in scores
                                                               if seed in arms["none"])
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def rank_correlation(ours: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Spearman's rank correlation over the names that both have; ties share their mean rank. NaN where all are equal."""
    names = [name for name in truth if name in ours]
    ranks = [mean_ranks([values[name] for name in names]) for values in (ours, truth)]
    return statistics.correlation(*ranks) if all(len(set(one)) > 1 for one in ranks) else math.nan


def mean_ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order, 1 for the smallest; equal ones share the mean of their places."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
