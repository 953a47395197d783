"""AP on resampled images is COCO's own on the resampled data set, and matches survive the disk."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada_det.report.detection_statistics import (
    SIZES,
    Category,
    Matches,
    figures_of,
    image_weights,
    matches_of,
    percentile_interval,
    resample,
)


def scene(seed, images=12):
    """Truth and detections of three categories of which the third has no truth; crowds, scores that are all different."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 6))):
            w, h = random.uniform(8, 150, 2)
            x, y = random.uniform(0, 300, 2)
            category = int(random.integers(1, 3))
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": category, "bbox": [x, y, w, h],
                          "area": w * h, "iscrowd": int(random.random() < 0.1)})
            found += [{"image_id": image, "category_id": category, "score": random.random(),
                       "bbox": random.normal([x, y, w, h], 5).clip(2).tolist()} for _ in range(int(random.integers(0, 4)))]
        found.append({"image_id": image, "category_id": int(random.integers(1, 4)), "bbox": [3, 3, 30, 30],
                      "score": random.random()})
    return truth, found


def evaluate(images, truth, found):
    """pycocotools on images 1 .. images."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"images": [{"id": number, "width": 500, "height": 500} for number in range(1, images + 1)],
                         "categories": [{"id": number, "name": f"c{number}"} for number in (1, 2, 3)],
                         "annotations": copy.deepcopy(truth)}
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(copy.deepcopy(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def class_figures(evaluation):
    """pycocotools' AP of each category, in percent."""
    for category in range(3):
        precision = evaluation.eval["precision"][:, :, category, 0, 2]
        yield 100 * precision[precision > -1].mean() if (precision > -1).any() else math.nan


@pytest.mark.parametrize("seed", range(3))
def test_without_resampling_the_figures_are_pycocotools(seed):
    evaluation = evaluate(12, *scene(seed))
    matches = matches_of(evaluation, ["c1", "c2", "c3"])
    assert matches.figures == (*SIZES, "class:c1", "class:c2", "class:c3")
    figures = figures_of(matches, np.ones(12, int))
    expected = [100 * value if value > -1 else math.nan for value in evaluation.stats[:6]]
    assert figures == pytest.approx([*expected, *class_figures(evaluation)], abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_resample_s_figures_are_pycocotools_on_copies_of_the_images(seed):
    """The image drawn w times stands w times in the data set, under ids of its own; the one drawn 0 times not at all."""
    truth, found = scene(seed)
    weights = image_weights(12, 3, seed)[-1]
    copies = [image for image, times in enumerate(weights, 1) for _ in range(times)]
    assert len(copies) == 12 and len(set(copies)) < 12
    repeated_truth = [{**entry, "id": 1000 * number + entry["id"], "image_id": number}
                      for number, image in enumerate(copies, 1) for entry in truth if entry["image_id"] == image]
    repeated_found = [{**entry, "image_id": number} for number, image in enumerate(copies, 1)
                      for entry in found if entry["image_id"] == image]
    expected = evaluate(12, repeated_truth, repeated_found)
    figures = figures_of(matches_of(evaluate(12, truth, found), ["c1", "c2", "c3"]), weights)
    assert figures[:6] == pytest.approx([100 * value if value > -1 else math.nan for value in expected.stats[:6]],
                                        abs=1e-10, nan_ok=True)
    assert figures[6:] == pytest.approx(list(class_figures(expected)), abs=1e-10, nan_ok=True)


def test_matches_come_back_from_the_disk(tmp_path):
    matches = matches_of(evaluate(12, *scene(0)), ["c1", "c2", "é"])
    matches.save(tmp_path / "m.npz")
    again = Matches.load(tmp_path / "m.npz")
    assert again.names == matches.names and again.images == 12
    weights = image_weights(12, 5)
    assert np.array_equal(resample(again, weights), resample(matches, weights), equal_nan=True)


def test_resamples_draw_as_many_images_as_there_are_and_the_same_ones_every_time():
    weights = image_weights(50, 400)
    assert weights.shape == (400, 50) and set(weights.sum(axis=1)) == {50}
    assert np.array_equal(weights, image_weights(50, 400)) and not np.array_equal(weights, image_weights(50, 400, 1))
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)


def test_no_detection_is_zero_and_no_truth_no_number():
    truth, found = scene(0)
    nothing = [entry for entry in found if entry["category_id"] == 3]
    figures = dict(zip(matches_of(evaluate(12, truth, nothing), "abc").figures,
                       figures_of(matches_of(evaluate(12, truth, nothing), "abc"), np.ones(12, int)), strict=True))
    assert figures["AP"] == figures["class:a"] == 0 and math.isnan(figures["class:c"])


def test_percentile_interval_leaves_out_what_is_no_number():
    values = np.append(np.arange(1001.0), [np.nan] * 50)
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert all(map(math.isnan, percentile_interval(np.full(3, np.nan))))


def test_the_interval_covers_the_expectation_about_as_often_as_it_says():
    """40 data sets of 100 images; each image holds one object, found with probability 0.6."""
    random, weights, truths_AI = np.random.default_rng(0), image_weights(100, 100), np.zeros((4, 100), int)
    truths_AI[0] = 1
    values, intervals = [], []
    for _ in range(40):
        hit_ATD = np.broadcast_to(random.random(100) < 0.6, (4, 10, 100))
        matches = Matches(("a",), (Category(random.permutation(100), hit_ATD, ~hit_ATD, truths_AI),))
        values.append(figures_of(matches, np.ones(100, int))[0])
        intervals.append(percentile_interval(resample(matches, weights)[:, 0]))
    covered = sum(low <= np.mean(values) <= high for low, high in intervals)
    assert covered >= 33
    assert np.mean([high - low for low, high in intervals]) == pytest.approx(4 * np.std(values), rel=0.25)
