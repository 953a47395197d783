"""COCO's own fake results give COCO's own figures, and the faster evaluator gives pycocotools' on anything."""

import json
from pathlib import Path

import numpy as np
import pytest

from dada_det.engine.evaluate.figures import FIGURES, evaluate_results
from dada_det.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
PUBLISHED = {  # cocoapi's results/val2014_fake_eval_res.txt, in the order of FIGURES
    "bbox": (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
    "segm": (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381),
}


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_figures_of_the_fake_results(shared, kind, reference):
    folder = shared / "data" / "cocoapi-fixture"
    figures = evaluate_results(folder / "instances_val2014_100.json",
                               folder / f"instances_val2014_fake{kind}100_results.json", kind, reference)
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


def scene(random, folder):
    """Truth and detections with crowds, equal scores, more than 100 detections an image, and a category without truth."""
    from pycocotools import mask as masks

    def thing(number, image, x, y, w, h, **more):
        rle = masks.merge(masks.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 150, 150))
        mask = {"size": [150, 150], "counts": rle["counts"].decode()}
        return {"image_id": image, "category_id": number % 3 + 1, "bbox": [x, y, w, h], "segmentation": mask, **more}

    truth, found = [], []
    for image in range(4):
        for _ in range(int(random.integers(0, 9))):
            w, h = random.uniform(5, 110, 2)
            x, y = random.uniform(0, 150 - w), random.uniform(0, 150 - h)
            number = int(random.integers(2))
            truth.append(thing(number, image, x, y, w, h, id=len(truth) + 1, area=w * h, iscrowd=int(random.random() < 0.2)))
            found += [thing(number, image, *random.normal([x, y, w, h], 4).clip(1), score=random.integers(9) / 9)
                      for _ in range(int(random.integers(0, 40)))]
        found += [thing(2, image, 3, 3, 9, 9, score=0.5)]
    content = {"images": [{"id": image, "file_name": "", "width": 150, "height": 150} for image in range(4)],
               "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)], "annotations": truth}
    for name, value in (("truth", content), ("found", found)):
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize("seed", range(6))
def test_the_faster_evaluator_gives_pycocotools_figures(seed, tmp_path):
    pytest.importorskip("faster_coco_eval")
    scene(np.random.default_rng(seed), tmp_path)
    for kind in ("bbox", "segm"):
        figures, expected = (evaluate_results(tmp_path / "truth.json", tmp_path / "found.json", kind, reference)
                             for reference in (False, True))
        assert figures == pytest.approx(expected, abs=1e-12)


def test_training_validates_with_the_faster_evaluator_where_it_is_installed(tmp_path, monkeypatch):
    from mmengine.config import Config

    from dada_det.data.checks import CocoLayout
    from dada_det.engine.detect import config as detector_config

    for installed, kind in ((True, "NumberedFasterCocoMetric"), (False, "NumberedCocoMetric")):
        monkeypatch.setattr(detector_config, "has_faster_evaluator", lambda installed=installed: installed)
        config = Config.fromfile(CONFIGS / "retinanet_r50_dada.py", import_custom_modules=False)
        detector_config.use_data(config, CocoLayout(None, None, Path("v.json"), Path("v"), None, None), ("cell",))
        assert (config.val_evaluator.type, config.val_evaluator.ann_file) == (kind, "v.json")


def test_results_that_are_no_json(truth, tmp_path):
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(UserError, match=r"the results file .* is no JSON"):
        evaluate_results(truth, tmp_path / "bad.json", "bbox")
