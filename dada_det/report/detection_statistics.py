"""Confidence intervals of AP: COCO's figures of one run on resampled validation images.

Statistic: the bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile interval of
Section 13.3), paired as Koehn does it (Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004):
every run is scored on the same resamples, so that what makes an image hard for all of them cancels in a difference.

A resample draws as many images as there are, with replacement; an image drawn w times counts w times. AP is then COCO's
own (pycocotools, COCOeval.accumulate) on that multiset: detections are matched within an image, so matching is done once.

Shapes: K categories, A = 4 area ranges (all, small, medium, large), T = 10 IoU thresholds, R = 101 recall thresholds,
I images, D detections of a category in the order of their scores, N resamples, F figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dada_det.files import whole_file

SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS_R = np.linspace(0, 1, 101)  # COCOeval's recThrs
Array = np.ndarray


@dataclass(frozen=True)
class Category:
    """A category's detections: image [D] of each, hit [A,T,D] right and not ignored, miss [A,T,D] wrong and not ignored.

    truths [A,I]: objects of each image that are not ignored.
    """

    image_D: Array
    hit_ATD: Array
    miss_ATD: Array
    truths_AI: Array


@dataclass(frozen=True)
class Matches:
    """The per-image evaluation of one run.

    Args:
        names: of the K categories, in the order of `categories`.
    """

    names: tuple[str, ...]
    categories: tuple[Category, ...]

    @property
    def images(self) -> int:
        return self.categories[0].truths_AI.shape[1]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of what `figures_of` gives: COCO's six, then `class:NAME`, the AP of each category."""
        return (*SIZES, *(f"class:{name}" for name in self.names))

    def save(self, path: str | Path) -> None:
        """Writes a compressed .npz without pickled objects."""
        columns: dict[str, Any] = {
            "names": np.array(self.names), "splits": np.cumsum([len(each.image_D) for each in self.categories]),
            "image": np.concatenate([each.image_D for each in self.categories]),
            "truths": np.stack([each.truths_AI for each in self.categories])}
        for name in ("hit", "miss"):
            columns[name] = np.packbits(np.concatenate([getattr(each, f"{name}_ATD") for each in self.categories], axis=2),
                                        axis=2)
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **columns)

    @classmethod
    def load(cls, path: str | Path) -> "Matches":
        with np.load(path, allow_pickle=False) as found:
            splits, names = found["splits"], tuple(map(str, found["names"]))
            bits = [np.split(np.unpackbits(found[name], axis=2, count=len(found["image"])).astype(bool), splits[:-1], axis=2)
                    for name in ("hit", "miss")]
            parts = zip(np.split(found["image"], splits[:-1]), *bits, found["truths"], strict=True)
            return cls(names, tuple(Category(*part) for part in parts))


def matches_of(evaluation: Any, names: Sequence[str]) -> Matches:
    """What a COCOeval (after evaluate()) holds of each image.

    Args:
        names: of evaluation.params.catIds.
    """
    categories, areas, images = (len(getattr(evaluation.params, part)) for part in ("catIds", "areaRng", "imgIds"))
    grid = [[evaluation.evalImgs[(k * areas + a) * images:(k * areas + a + 1) * images] for a in range(areas)]
            for k in range(categories)]
    return Matches(tuple(names), tuple(_category(of_areas, len(evaluation.params.iouThrs)) for of_areas in grid))


def _category(of_areas: list[list[dict[str, Any] | None]], thresholds: int) -> Category:
    """of_areas: for each area range the entry of each image, None where a category has neither truth nor detection."""
    counts = [0 if entry is None else len(entry["dtScores"]) for entry in of_areas[0]]
    scores_D = np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in of_areas[0] if entry)])
    order_D = np.argsort(-scores_D, kind="mergesort")  # COCOeval's own, which leaves equal scores in the images' order
    hits, misses, truths = [], [], []
    for entries in of_areas:
        blocks = [(entry["dtMatches"] > 0, entry["dtIgnore"].astype(bool)) for entry in entries if entry]
        empty = np.zeros((thresholds, 0), bool)
        matched_TD, ignored_TD = (np.concatenate([empty, *(block[part] for block in blocks)], axis=1)[:, order_D]
                                  for part in (0, 1))
        hits.append(matched_TD & ~ignored_TD)
        misses.append(~matched_TD & ~ignored_TD)
        truths.append([0 if entry is None else int(np.count_nonzero(entry["gtIgnore"] == 0)) for entry in entries])
    return Category(np.repeat(np.arange(len(counts)), counts)[order_D].astype(np.int32), np.stack(hits), np.stack(misses),
                    np.array(truths, np.int32))


def figures_of(matches: Matches, weights_I: Array) -> Array:
    """COCO's figures [F] (`matches.figures`) in percent where image i counts weights_I[i] times; NaN without truths."""
    precision_KAT = np.stack([_precision(category, weights_I) for category in matches.categories])
    areas = [precision_KAT[:, 0], precision_KAT[:, 0, 0], precision_KAT[:, 0, 5],
             *(precision_KAT[:, area] for area in (1, 2, 3))]
    return 100 * np.array([*map(_mean, areas), *map(_mean, precision_KAT[:, 0])])


def resample(matches: Matches, weights_NI: Array) -> Array:
    """The figures [N,F] of every resample."""
    return np.stack([figures_of(matches, weights_I) for weights_I in weights_NI])


def image_weights(images: int, resamples: int, seed: int = 0) -> Array:
    """How often each image is drawn, int [N,I]: rows that sum up to the number of images; the same for equal arguments."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def percentile_interval(values_N: Array, share: float = 0.95) -> tuple[float, float]:
    """The limits between which `share` of the values lie, NaN left out; NaN where there is no number."""
    values = values_N[np.isfinite(values_N)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _mean(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _precision(category: Category, weights_I: Array) -> Array:
    """Precision [A,T] averaged over COCO's recall thresholds; NaN where the weighted images hold no truth.

    Interpolated precision changes only where a detection is right, so only those are looked at.
    """
    weights_D = weights_I[category.image_D]
    truths_A = category.truths_AI @ weights_I
    areas, thresholds, _ = category.hit_ATD.shape
    precision_AT = np.full((areas, thresholds), np.nan)
    for area in np.flatnonzero(truths_A):
        for threshold in range(thresholds):
            hits = np.flatnonzero(category.hit_ATD[area, threshold])
            right = np.cumsum(weights_D[hits])
            wrong = np.cumsum(weights_D * category.miss_ATD[area, threshold])[hits]
            precision = right / (right + wrong + np.spacing(1))
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 for recall that is never reached
            places_R = np.searchsorted(right / truths_A[area], RECALLS_R, side="left")
            precision_AT[area, threshold] = envelope[places_R].mean()
    return precision_AT
