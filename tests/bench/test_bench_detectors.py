"""tools/bench/detectors.py: its small data and configs, and what a row says of a detector that does not run."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dada_det.commands.common import load_config
from tests.conftest import load_bench


@pytest.fixture(scope="module")
def detectors() -> ModuleType:
    return load_bench("detectors")


def test_few_images_keep_all_categories_and_their_annotations(detectors: ModuleType, shared: Path, tmp_path: Path) -> None:
    few = detectors.write_few(shared / "data/coco-tiny", tmp_path / "few")
    for part in ("train", "val"):
        content = json.loads((few / f"annotations/instances_{part}2017.json").read_text())
        assert len(content["images"]) == detectors.IMAGES and len(content["categories"]) == 80
        ids = {image["id"] for image in content["images"]}
        assert {each["image_id"] for each in content["annotations"]} == ids
        assert all((few / f"{part}2017" / image["file_name"]).is_file() for image in content["images"])


def test_a_small_config_is_mmdetections_but_for_the_images_and_the_schedule(detectors: ModuleType, tmp_path: Path) -> None:
    path = detectors.CONFIGS["Cascade Mask R-CNN"]
    detectors.small(path, tmp_path / "small.py", 64)
    small, whole = load_config(str(tmp_path / "small.py")), load_config(f"mmdet::{path}")
    assert small.model == whole.model  # it pads to multiples of 32 px already
    assert small.train_cfg.max_epochs == 1
    assert small.train_dataloader.dataset.pipeline[1].with_mask and small.val_evaluator.metric == ["bbox", "segm"]
    assert tuple(small.test_dataloader.dataset.pipeline[2].scale) == (64, 64)


def test_rows_that_are_measured_anew_take_the_place_of_the_old(detectors: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                               shared: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(detectors, "write_backbones", lambda folder: {})
    monkeypatch.setattr(detectors, "attempt", lambda path, *_: {"outcome": "runs", "side": 64, "seconds": 1.0})
    file = tmp_path / "rows.json"
    old = [{"detector": name, "outcome": "fails"} for name in ("ATSS", "DETR", "TOOD")]
    file.write_text(json.dumps({"command": "before", "commit": "abc", "rows": old}))
    assert detectors.main(["--data", str(shared / "data/coco-tiny"), "--only", "ATSS", "TOOD", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert [(row["detector"], row["outcome"]) for row in written["rows"]] == [
        ("DETR", "fails"), ("ATSS", "runs"), ("TOOD", "runs")]
    assert written["earlier"] == [{"command": "before", "commit": "abc"}]


def test_squares_for_yolact_and_boxes_inside_the_image_for_queryinst(detectors: ModuleType, tmp_path: Path) -> None:
    detectors.small(detectors.CONFIGS["YOLACT"], tmp_path / "small.py", 64)
    assert load_config(str(tmp_path / "small.py")).train_dataloader.dataset.pipeline[2].keep_ratio is False
    detectors.small(detectors.CONFIGS["QueryInst"], tmp_path / "small.py", 64)
    assert all(head.bbox_coder.clip_border for head in load_config(str(tmp_path / "small.py")).model.roi_head.bbox_head)


def test_every_config_is_there(detectors: ModuleType) -> None:
    for path in detectors.CONFIGS.values():
        assert load_config(f"mmdet::{path}").model.backbone.type in ("ResNet", "CSPNeXt"), path


@pytest.mark.parametrize(("end", "outcome"), [
    (lambda: 0, "runs"), (lambda: print("train_det.py: error: no stand-in for carafe_forward", file=sys.stderr) or 2,
                          "train_det.py: error: no stand-in for carafe_forward"),
    (lambda: [][1], "IndexError: list index out of range")])
def test_a_row_says_why_a_detector_does_not_run(detectors: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end,
                                                outcome: str) -> None:
    monkeypatch.setattr(detectors, "small", lambda *_: None)
    monkeypatch.setattr(detectors.train_det, "main", lambda argv: end())
    row = detectors.attempt("atss/atss.py", tmp_path, {"resnet50": tmp_path / "r50.pth"}, tmp_path / "w", 64)
    assert row["outcome"] == outcome and row["side"] == 64
