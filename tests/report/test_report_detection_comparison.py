"""Rows, table and plot of a comparison of backbones, from scores whose answers are known."""

import math

import numpy as np
import pytest
from PIL import Image

from dada_det.report.detection_comparison import Score, Setting, plot, summarise, table, write_rows
from dada_det.report.statistics import student_quantile

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "class:cat", "class:dog")
BOX = Setting("retinanet", "bbox", 0.1)


def score(backbone, seed, ap, setting=BOX, shift=0.0, names=NAMES):
    """AP is `ap`, each other figure a point more than the one before; on resample n all are shifted alike, by noise_n."""
    values = ap + np.arange(len(names), dtype=float)
    noise = np.random.default_rng(3).normal(0, 5, 400)  # the images of a resample are hard or easy for every run
    return Score(setting, backbone, seed, names, values, values + noise[:, None] + shift, 101)


def test_pairs_take_out_what_images_and_seeds_share():
    rows = {(row.backbone, row.figure): row for row in summarise(
        [score("policy", 0, 31.0), score("policy", 1, 43.0), score("none", 0, 30.0), score("none", 1, 40.0)], "none")}
    ours = rows["policy", "AP"]
    assert (ours.n, ours.mean, ours.seed_deviation) == (2, 37.0, pytest.approx(math.sqrt(72)))
    assert ours.high - ours.low == pytest.approx(4 * 5, rel=0.2)  # +- 1.96 standard deviations of the images' noise
    assert ours.difference == pytest.approx(2.0)
    assert (ours.difference_low, ours.difference_high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert ours.difference_seeds == pytest.approx(student_quantile(0.95, 1) * math.sqrt(2) / math.sqrt(2))
    assert rows["policy", "class:dog"].difference == pytest.approx(2.0)
    reference = rows["none", "AP"]
    assert reference.mean == 35.0 and all(map(math.isnan, (reference.difference, reference.difference_low,
                                                           reference.difference_seeds)))


def test_the_seeds_are_averaged_before_the_images_are_resampled():
    """Noise of each run's own would cancel to 1 / sqrt(2) over two seeds; noise of the images does not."""
    own = [np.random.default_rng(seed).normal(0, 5, 4000) for seed in range(2)]
    scores = [Score(BOX, name, seed, ("AP",), np.zeros(1), (own[seed] if name == "a" else np.zeros(4000))[:, None], 9)
              for name in "ab" for seed in range(2)]
    row = summarise(scores, "b")[0]
    assert row.high - row.low == pytest.approx(2 * 1.96 * 5 / math.sqrt(2), rel=0.1)
    assert (row.difference_low, row.difference_high) == pytest.approx((row.low, row.high))


def test_table_shows_each_setting_with_sizes_and_the_classes_that_differ_most():
    mask = Setting("mask_rcnn", "segm", 1.0)
    scores = [score("policy", 0, 31.0), score("none", 0, 30.0), score("policy", 0, 20.0, mask), score("none", 0, 20.5, mask)]
    scores[0].values_F[7] += 4  # dog
    lines = table(summarise(scores, "none"), "none").splitlines()
    assert lines[0] == "retinanet, box AP, 10 % of the images"
    assert lines[1].split()[:3] == ["backbone", "n", "AP"] and "minus none" in lines[1]
    assert lines[2].split()[:3] == ["policy", "1", "31.00"] and "+1.00" in lines[2]
    assert lines[2].split()[-3:] == ["+1.00", "+1.00", "+1.00"]
    assert lines[3].strip().startswith("classes that differ most: dog +5.00 (")
    assert lines[4].split()[:3] == ["none", "1", "30.00"] and lines[4].split()[-3:] == ["-", "-", "-"]
    assert lines[6] == "mask_rcnn, mask AP, 100 % of the images" and "-0.50" in lines[8]
    assert len({len(line) for line in (lines[1], lines[2], lines[4])}) == 1


def test_one_class_is_not_named_again():
    rows = summarise([score("a", 0, 3.0, names=NAMES[:7]), score("b", 0, 2.0, names=NAMES[:7])], "b")
    assert "classes" not in table(rows, "b")


def test_figures_without_a_number_stay_out_of_table_and_plot(tmp_path):
    scores = [score("a", 0, 3.0), score("b", 0, 2.0)]
    for each in scores:
        each.values_F[5] = math.nan  # no large object
        each.resampled_NF[:, 5] = math.nan
    rows = summarise(scores, "b")
    assert table(rows, "b").splitlines()[2].split()[-1] == "-"
    plot(tmp_path / "p.png", rows, scores, "b", "title")
    write_rows(tmp_path / "c.csv", rows)
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + 2 * len(NAMES)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG" and picture.width > 600
