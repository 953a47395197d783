"""Policies under one recipe: mean accuracy, its interval, and the paired difference to a reference; table, CSV, plot."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from dada_det.files import whole_file
from dada_det.report.statistics import mean_interval, paired_difference

REFERENCE = "random"
HEAD = ("policy", "n", "top1_mean", "top1_interval", "difference_mean", "difference_interval")


@dataclass(frozen=True)
class Summary:
    """One policy over n seeds, in percentage points; `interval` is half the width of a 95 % interval (NaN for n = 1).

    Args:
        difference: of each seed's accuracy to the reference's of the same seed (NaN for the reference itself).
    """

    policy: str
    n: int
    mean: float
    interval: float
    difference: float
    difference_interval: float


def summarise(accuracies: Mapping[str, Sequence[float]]) -> list[Summary]:
    """A Summary of each policy.

    Args:
        accuracies: for each policy, REFERENCE among them, top-1 in percent, one a seed, in the same order of seeds.
    """
    reference = accuracies[REFERENCE]
    return [Summary(policy, len(values), *mean_interval(values),
                    *((math.nan, math.nan) if policy == REFERENCE else paired_difference(values, reference)))
            for policy, values in accuracies.items()]


def table(summaries: Sequence[Summary]) -> str:
    """Lines of text, one a policy; "-" where there is no number."""
    def number(value: float, before: str = "± ", form: str = ".2f") -> str:
        return "-" if math.isnan(value) else before + format(value, form)

    width = max(6, *(len(row.policy) for row in summaries))
    lines = [f"{'policy':{width}}    n   top-1 %  95 % interval  minus {REFERENCE}  95 % interval"]
    for row in summaries:
        lines.append(f"{row.policy:{width}}  {row.n:3d}  {row.mean:8.2f}  {number(row.interval):>13}  "
                     f"{number(row.difference, '', '+.2f'):>12}  {number(row.difference_interval):>13}")
    return "\n".join(lines)


def write_summary(path: str | Path, summaries: Sequence[Summary]) -> None:
    write_csv(path, [dict(zip(HEAD, astuple(row), strict=True)) for row in summaries])


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row under the names of the first row's entries."""
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot(path: str | Path, accuracies: Mapping[str, Sequence[float]], summaries: Sequence[Summary], title: str) -> None:
    """A PNG: a dot for each seed, joined to the same seed's under the next policy, and mean and interval beside them."""
    from matplotlib.figure import Figure  # a second to import, and only the last line of a comparison needs it

    figure = Figure(figsize=(max(6, 1.6 + 1.1 * len(summaries)), 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = range(len(summaries))
    for of_seed in zip(*accuracies.values(), strict=True):
        axes.plot(places, of_seed, "o-", color="0.7", markersize=4, linewidth=0.5, zorder=1)
    means, intervals = [row.mean for row in summaries], [row.interval for row in summaries]
    axes.errorbar([place + 0.15 for place in places], means, yerr=[0 if math.isnan(half) else half for half in intervals],
                  fmt="s", color="tab:blue", capsize=4, zorder=2)
    axes.axhline(next(row.mean for row in summaries if row.policy == REFERENCE), color="tab:blue", linewidth=0.5)
    axes.set_xticks(list(places), [row.policy for row in summaries], rotation=20)
    axes.set_xlabel(f"dots: one seed each, joined; squares: mean and 95 % interval; line: mean of {REFERENCE}", fontsize=8)
    axes.set_ylabel("top-1 in %")
    axes.set_title(title, fontsize=9)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
