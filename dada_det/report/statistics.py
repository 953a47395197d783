"""Means with an interval, from a handful of paired runs; plain Python."""

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of n values and half the width of its 95 % interval by Student's t; the width of one value is NaN.

    Raises ValueError where there is no value.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, student_quantile(CONFIDENCE, len(values) - 1) * error


def paired_difference(ours: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """`mean_interval` of ours[i] - reference[i], where both sides of a pair share their seed.

    Raises ValueError for sequences of different lengths.
    """
    return mean_interval([a - b for a, b in zip(ours, reference, strict=True)])


def student_quantile(share: float, freedom: int) -> float:
    """The t >= 0 for which -t .. t holds `share` (0 < share < 1) of Student's distribution; freedom: 1, 2, 3, .."""
    low, high = 0.0, 1.0
    while student_share(high, freedom) < share:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):  # until no number lies between the two
        low, high = (middle, high) if student_share(middle, freedom) < share else (low, middle)
    return high


def student_share(t: float, freedom: int) -> float:
    """The share of Student's distribution that lies in -t .. t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(odd + 1, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from the order statistics; of fewer than six values the smallest and the largest."""
    n = len(values)
    tails = [2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max([k for k, tail in enumerate(tails, 1) if tail <= 1 - CONFIDENCE], default=1)
    return sorted(values)[k - 1], sorted(values)[n - k]
