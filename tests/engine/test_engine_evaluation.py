"""COCO's own fake results give COCO's own figures."""

import json

import pytest

from dada_det.engine.evaluation import FIGURES, evaluate_results
from dada_det.errors import UserError

PUBLISHED = {  # cocoapi's results/val2014_fake_eval_res.txt, in the order of FIGURES
    "bbox": (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
    "segm": (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_figures_of_the_fake_results(shared, kind):
    folder = shared / "data" / "cocoapi-fixture"
    figures = evaluate_results(folder / "instances_val2014_100.json",
                               folder / f"instances_val2014_fake{kind}100_results.json", kind)
    assert tuple(figures) == FIGURES
    assert [round(value / 100, 3) for value in figures.values()] == list(PUBLISHED[kind])


TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
    "categories": [{"id": 7, "name": "square"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0,
                     "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]]}],
}


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(TRUTH))
    return path


def test_no_detection_is_zero_and_sizes_without_truth_are_minus_one(truth, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    figures = evaluate_results(truth, tmp_path / "none.json", "bbox")
    assert (figures["AP"], figures["APm"], figures["APs"], figures["APl"]) == (0, 0, -1, -1)


def test_right_box_is_a_hundred_percent(truth, tmp_path):
    box = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "score": 1}
    (tmp_path / "one.json").write_text(json.dumps([box]))
    assert evaluate_results(truth, tmp_path / "one.json", "bbox")["AP"] == pytest.approx(100)


def test_area_of_a_mask_is_the_mask_s_even_with_a_box_beside_it(truth, tmp_path):
    """The box is large and matches nothing; counted by its area the result would leave the medium range."""
    from pycocotools import mask as masks

    rle = masks.merge(masks.frPyObjects(TRUTH["annotations"][0]["segmentation"], 100, 100))
    result = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 100, 100], "score": 1,
              "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
    (tmp_path / "mask.json").write_text(json.dumps([result]))
    figures = evaluate_results(truth, tmp_path / "mask.json", "segm")
    assert figures["APm"] == pytest.approx(100)


def test_results_that_are_no_json(truth, tmp_path):
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(UserError, match=r"the results file .* is no JSON"):
        evaluate_results(truth, tmp_path / "bad.json", "bbox")
