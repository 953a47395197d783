"""Means with intervals, against the printed tables of Student's t."""

import math

import pytest

from dada_det.report.statistics import mean_interval, median_interval, paired_difference, student_quantile


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706),
                                                   (9, 2.2622), (10, 2.2281), (29, 2.0452), (30, 2.0423), (120, 1.9799)])
def test_the_quantiles_of_the_printed_table(freedom: int, expected: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(expected, abs=5e-5)


def test_mean_and_interval_of_five_runs() -> None:
    """Mean 3, standard deviation sqrt(2.5), t = 2.77645: 2.77645 · sqrt(2.5 / 5)."""
    mean, half = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(1.963243, abs=1e-6)
    assert mean_interval([97.25, 97.25, 97.25]) == (97.25, 0.0)


def test_one_run_has_no_interval_and_no_run_no_mean() -> None:
    mean, half = mean_interval([88.0])
    assert mean == 88 and math.isnan(half)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_pairs_take_out_what_their_seeds_share() -> None:
    """The seeds differ by tens, the pairs by 1 to 3 points."""
    reference = [10.0, 50.0, 90.0]
    mean, half = paired_difference([11.0, 52.0, 93.0], reference)
    assert mean == 2 and half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert half < mean_interval(reference)[1] / 10
    with pytest.raises(ValueError):
        paired_difference([1.0], reference)


@pytest.mark.parametrize(("n", "ends"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (12, (3, 10)), (25, (8, 18))])
def test_the_interval_of_a_median(n: int, ends: tuple[int, int]) -> None:
    """The places of the order statistics in the table of the sign test at 5 %."""
    assert median_interval(list(range(n, 0, -1))) == ends
