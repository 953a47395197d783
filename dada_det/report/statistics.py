"""Means with an interval, from a handful of paired runs."""

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of n values and half the width of its 95 % interval by Student's t; the width of one value is NaN.

    Raises:
        ValueError: there is no value.
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

    Raises:
        ValueError: the sequences have different lengths.
    """
    return mean_interval([a - b for a, b in zip(ours, reference, strict=True)])


def student_quantile(share: float, freedom: int) -> float:
    """Returns the t >= 0 for which -t .. t holds `share` (0 < share < 1) of Student's distribution.

    Args:
        freedom: 1, 2, 3, ..
    """
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, without the second that scipy.stats takes to import

    return float(stdtrit(freedom, (1 + share) / 2))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from the order statistics; of fewer than six values the smallest and the largest."""
    n = len(values)
    tails = [2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max([k for k, tail in enumerate(tails, 1) if tail <= 1 - CONFIDENCE], default=1)
    return sorted(values)[k - 1], sorted(values)[n - k]
