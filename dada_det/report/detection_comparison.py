"""Backbones side by side under detectors: AP, its interval over images, its spread over seeds, and paired differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dada_det.files import whole_file
from dada_det.report.comparison import write_csv
from dada_det.report.detection_statistics import SIZES, Array, percentile_interval
from dada_det.report.statistics import paired_difference

SHOWN = ("APs", "APm", "APl")
MOST_CLASSES = 3  # of the classes, those whose difference is largest are printed


@dataclass(frozen=True)
class Setting:
    """What the runs of one group share: detector, kind ("bbox" or "segm") and the fraction of the training images."""

    detector: str
    kind: str
    fraction: float

    def __str__(self) -> str:
        return f"{self.detector}, {'box' if self.kind == 'bbox' else 'mask'} AP, {100 * self.fraction:g} % of the images"


@dataclass(frozen=True)
class Score:
    """One run's figures in percent: values [F], and [N,F] on resamples of the `images` (the same ones in every run)."""

    setting: Setting
    backbone: str
    seed: int
    names: tuple[str, ...]
    values_F: Array
    resampled_NF: Array
    images: int


@dataclass(frozen=True)
class Row:
    """One figure of one backbone over n seeds, in percentage points; NaN where there is no number.

    Args:
        low, high: 95 % interval over images of the mean over seeds.
        seed_deviation: standard deviation over seeds.
        difference: to the reference, paired by seed, with its interval over images (difference_low, difference_high) and
            half the width of Student's 95 % interval over seeds (difference_seeds); NaN for the reference itself.
    """

    detector: str
    kind: str
    fraction: float
    backbone: str
    figure: str
    n: int
    mean: float
    low: float
    high: float
    seed_deviation: float
    difference: float
    difference_low: float
    difference_high: float
    difference_seeds: float


def summarise(scores: Sequence[Score], reference: str) -> list[Row]:
    """A row for each setting, backbone and figure, in the order of `scores`; all runs of a setting have the same seeds."""
    groups: dict[tuple[Setting, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.setting, score.backbone), []).append(score)
    rows = []
    for (setting, backbone), runs in groups.items():
        others = groups[setting, reference]
        values_SF, others_SF = (np.stack([run.values_F for run in group]) for group in (runs, others))
        resampled_NF, others_NF = (np.mean([run.resampled_NF for run in group], axis=0) for group in (runs, others))
        for index, figure in enumerate(runs[0].names):
            values = values_SF[:, index].tolist()
            low, high = percentile_interval(resampled_NF[:, index])
            difference = (math.nan,) * 4
            if backbone != reference and math.isfinite(values[0]):  # the annotations decide whether there is a number
                mean, half = paired_difference(values, others_SF[:, index].tolist())
                difference = (mean, *percentile_interval(resampled_NF[:, index] - others_NF[:, index]), half)
            rows.append(Row(**asdict(setting), backbone=backbone, figure=figure, n=len(runs),
                            mean=statistics.fmean(values), low=low, high=high,
                            seed_deviation=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                            difference=difference[0], difference_low=difference[1], difference_high=difference[2],
                            difference_seeds=difference[3]))
    return rows


def table(rows: Sequence[Row], reference: str) -> str:
    """Lines of text: for each setting a line a backbone with AP and its differences, and the classes that differ most."""
    width, minus = max(8, *(len(row.backbone) for row in rows)), f"minus {reference}"
    lines = []
    for setting in dict.fromkeys((row.detector, row.kind, row.fraction) for row in rows):
        of_setting = [row for row in rows if (row.detector, row.kind, row.fraction) == setting]
        lines += ["", str(Setting(*setting)),
                  f"{'backbone':{width}}   n     AP  95 % over images  sd of seeds  {minus}  95 % over images  "
                  "95 % over seeds       s       m       l"]
        for backbone in dict.fromkeys(row.backbone for row in of_setting):
            found = {row.figure: row for row in of_setting if row.backbone == backbone}
            ap = found["AP"]
            sizes = "  ".join(f"{_number(found[name].difference, '+.2f'):>6}" for name in SHOWN)
            lines.append(
                f"{backbone:{width}}  {ap.n:2d}  {ap.mean:5.2f}  {_span(ap.low, ap.high, '.2f'):>16}  "
                f"{_number(ap.seed_deviation, '.2f'):>11}  {_number(ap.difference, '+.2f'):>{len(minus)}}  "
                f"{_span(ap.difference_low, ap.difference_high, '+.2f'):>16}  "
                f"{_number(ap.difference_seeds, '.2f', '± '):>15}  {sizes}")
            classes = [row for name, row in found.items() if name not in SIZES and math.isfinite(row.difference)]
            if len(classes) > 1:
                largest = sorted(classes, key=lambda row: -abs(row.difference))[:MOST_CLASSES]
                lines.append(f"{'':{width}}      classes that differ most: " + ", ".join(
                    f"{row.figure.removeprefix('class:')} {row.difference:+.2f} "
                    f"({_span(row.difference_low, row.difference_high, '+.2f')})" for row in largest))
    return "\n".join(lines[1:])


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    write_csv(path, [asdict(row) for row in rows])


def plot(path: str | Path, rows: Sequence[Row], scores: Sequence[Score], reference: str, title: str) -> None:
    """A PNG: for each setting and backbone the difference in AP, all sizes and by size, with the interval over images."""
    from matplotlib.figure import Figure  # a second to import, and only the last line of a comparison needs it

    shown = [row for row in rows if row.backbone != reference and row.figure in ("AP", *SHOWN)]
    figure = Figure(figsize=(8, 1.4 + 0.28 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    by_run = {(score.setting, score.backbone, score.seed): score for score in scores}
    for place, row in enumerate(shown):
        setting = Setting(row.detector, row.kind, row.fraction)
        color = "tab:blue" if row.figure == "AP" else "0.5"
        pairs = [(score, by_run[setting, reference, seed]) for (where, backbone, seed), score in by_run.items()
                 if (where, backbone) == (setting, row.backbone)]
        index = pairs[0][0].names.index(row.figure)
        axes.plot([ours.values_F[index] - theirs.values_F[index] for ours, theirs in pairs], [place] * len(pairs), "o",
                  color=color, alpha=0.4, markersize=4)
        axes.plot([row.difference_low, row.difference_high], [place, place], color=color)
        axes.plot(row.difference, place, "s", color=color)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [
        f"{row.backbone}: {row.detector} {row.kind} {100 * row.fraction:g} % {row.figure}" for row in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"AP minus {reference}'s, points; square and line: mean of the seeds and 95 % over images; dots: seeds",
                    fontsize=8)
    axes.set_title(title, fontsize=9)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _number(value: float, form: str, before: str = "") -> str:
    return "-" if math.isnan(value) else before + format(value, form)


def _span(low: float, high: float, form: str) -> str:
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"
