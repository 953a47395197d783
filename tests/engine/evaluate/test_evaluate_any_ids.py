"""The 24 figures of random COCO files under any ids are pycocotools' of the same files with ids 1, 2, 3, .., everywhere."""

import contextlib
import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada_det.data.coco_numbers import numbered
from dada_det.engine.evaluate.figures import FIGURES, evaluate_results
from tests.data.coco_strategies import Case, cases, examples
from tests.messages import refused

KINDS = ("bbox", "segm")


def expected_figures(case: Case, kind: str) -> list[float]:
    """pycocotools' twelve figures of the file whose ids are 1, 2, 3, ..; called as its authors call it."""
    if not case.results:
        return []
    other = "segmentation" if kind == "bbox" else "bbox"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(case.content))
        truth.createIndex()
        found = [{name: value for name, value in entry.items() if name != other} for entry in case.results]
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * value if value > -1 else -1 for value in evaluation.stats]


@contextlib.contextmanager
def on_disk(case: Case):
    """(annotation file, results file) under the other ids."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "truth.json"), Path(folder, "found.json")
        for path, value in zip(paths, (case.other_content, case.other_results), strict=True):
            path.write_text(json.dumps(value))
        yield paths


@examples
@pytest.mark.parametrize("reference", [True, False])
def test_evaluate_results(examples, reference):
    @examples
    @given(cases())
    def every_file(case: Case) -> None:
        with on_disk(case) as (truth, found):
            for kind in KINDS:
                figures = evaluate_results(truth, found, kind, reference)
                assert tuple(figures) == FIGURES
                if case.results:
                    assert list(figures.values()) == pytest.approx(expected_figures(case, kind), abs=1e-9)
                else:
                    assert set(figures.values()) <= {0, -1}
    every_file()


@examples
def test_the_matches_of_the_bootstrap(examples):
    from dada_det.engine.compare.backbone_trials import match
    from dada_det.report.detection_statistics import figures_of

    @examples
    @given(cases())
    def every_file(case: Case) -> None:
        with on_disk(case) as (truth, found):
            for kind in KINDS:
                matches = match(truth, found, kind)
                figures = figures_of(matches, np.ones(len(case.content["images"]), int))
                assert matches.names == tuple(f"c{number + 1}" for number in range(len(case.content["categories"])))
                if case.results:
                    expected = [math.nan if value == -1 else value for value in expected_figures(case, kind)[:6]]
                    assert figures[:6] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    every_file()


def predicted(case: Case) -> list[dict]:
    """What a detector's validation gives the metric: for each image its boxes' corners, scores, labels and masks."""
    labels = {category["id"]: label for label, category in enumerate(case.other_content["categories"])}
    samples = []
    for image in case.other_content["images"]:
        own = [entry for entry in case.other_results if entry["image_id"] == image["id"]]
        boxes_N4 = torch.tensor([entry["bbox"] for entry in own], dtype=torch.float64).reshape(-1, 4)
        boxes_N4[:, 2:] += boxes_N4[:, :2]
        samples.append({"img_id": image["id"], "ori_shape": (image["height"], image["width"]), "pred_instances": {
            "bboxes": boxes_N4, "scores": torch.tensor([entry["score"] for entry in own], dtype=torch.float64),
            "labels": torch.tensor([labels[entry["category_id"]] for entry in own], dtype=torch.long),
            "masks": [dict(entry["segmentation"]) for entry in own]}})
    return samples


@examples
@pytest.mark.parametrize("kind", ["NumberedCocoMetric", "NumberedFasterCocoMetric"])
def test_validation_during_training(examples, kind):
    """MMDetection gives three digits; x + w - x rounds, so that the last one may differ."""
    from dada_det.engine.evaluate import numbered_metric

    @examples
    @given(cases())
    def every_file(case: Case) -> None:
        if not case.results:
            return
        with on_disk(case) as (truth, _), contextlib.redirect_stdout(io.StringIO()):
            metric = getattr(numbered_metric, kind)(str(truth), metric=list(KINDS))
            metric.dataset_meta = {"classes": tuple(entry["name"] for entry in case.other_content["categories"])}
            metric.process({}, predicted(case))
            figures = metric.evaluate(len(case.other_content["images"]))
        for of_kind in KINDS:
            names = [f"coco/{of_kind}_mAP{suffix}" for suffix in ("", "_50", "_75", "_s", "_m", "_l")]
            expected = [value / 100 if value > -1 else -1 for value in expected_figures(case, of_kind)[:6]]
            assert [figures[name] for name in names] == pytest.approx(expected, abs=1.01e-3)
    every_file()


def test_detections_of_other_images_and_categories_are_a_user_s_mistake():
    truth = numbered({"images": [{"id": 0}], "categories": [{"id": 5, "name": "a"}], "annotations": []})
    for entry in ({"image_id": 1, "category_id": 5}, {"image_id": 0, "category_id": 1}):
        with refused(f"image {entry['image_id']}", f"category {entry['category_id']}", "annotations"):
            list(truth.results([entry]))


def test_a_comparison_s_part_of_the_images_keeps_ids_of_any_size(tmp_path):
    from dada_det.data.checks import CocoLayout
    from dada_det.engine.compare.backbone_trials import part_of

    path = tmp_path / "train.json"
    names = [-1, 0, 7, 2**53, 2**53 + 1, 2**64]
    path.write_text(json.dumps({"images": [{"id": name} for name in names], "categories": [],
                                "annotations": [{"id": name, "image_id": name} for name in names]}))
    part = part_of(CocoLayout(path, tmp_path, None, None, None, None), 0.5, 0, tmp_path)
    content = json.loads(part.part("train")[0].read_text())
    assert len(content["images"]) == 3 and {image["id"] for image in content["images"]} <= set(names)
    assert [entry["id"] for entry in content["annotations"]] == [image["id"] for image in content["images"]]
