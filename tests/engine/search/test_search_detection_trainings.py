"""Trainings on a detector: an image's own AP is pycocotools', policies move boxes with the pixels, and the
command's trial."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import InstanceData

from dada_det.augment.named import fixed_policy, resolve
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.commands.search import main
from dada_det.engine.search import detection_trainings
from dada_det.engine.search.detection import beside, halves
from dada_det.engine.search.detection_trainings import DetectionTrainings, image_ap
from dada_det.engine.search.detector_losses import DetectorLosses
from dada_det.engine.search.trainings import Fold
from planted_coco import write_coco
from tests.engine.search.test_search_detection import CONFIG, squares
from tests.engine.search.test_search_detector_losses import tiny

BOXES = [[10.0, 10.0, 30.0, 30.0], [40.0, 5.0, 60.0, 25.0]]


def detection(box: list[float], score: float, label: int = 0) -> dict:
    return {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "category_id": label + 1, "score": score}


@pytest.mark.parametrize(("found", "expected"), [
    ([], 0.0), ([detection(BOXES[0], 0.9), detection(BOXES[1], 0.8)], 1.0), ([detection(BOXES[0], 0.9)], 51 / 101),
    ([detection(BOXES[0], 0.9, label=1), detection(BOXES[1], 0.8, label=1)], 0.0),
    ([detection([100.0, 100.0, 120.0, 120.0], 0.99), detection(BOXES[0], 0.9), detection(BOXES[1], 0.8)], 2 / 3),
    ([detection([12.0, 10.0, 32.0, 30.0], 0.9), detection(BOXES[1], 0.8)], None)])
def test_the_ap_of_an_image(found: list[dict], expected: float | None) -> None:
    ap = image_ap(BOXES, [0, 0], found)
    if expected is None:  # IoU 0.818 counts at seven of ten thresholds
        assert 0.7 < ap < 0.9
    else:
        assert ap == pytest.approx(expected, abs=0.01)
    assert image_ap([], [], found) == 0


def test_what_is_found_of_other_categories_counts_in_the_ap_of_an_image() -> None:
    right = [detection(BOXES[0], 0.9), detection(BOXES[1], 0.8, label=1)]
    assert image_ap(BOXES, [0, 1], right) == pytest.approx(1.0)
    assert image_ap(BOXES, [1, 0], right) == 0
    wrong = [detection(BOXES[0], 0.99, label=7), detection(BOXES[1], 0.98, label=7)]  # of a category that is not there
    assert image_ap(BOXES, [0, 1], right + wrong) == pytest.approx(0.5, abs=0.01)


def trainings(folds: list[Fold]) -> DetectionTrainings:
    return DetectionTrainings(folds, whole=12, target=True, mirror=True, batch_size=4, seed=0,
                          normalise=lambda images: (images.float() - 120) / 60)


def test_boxes_move_with_the_pixels_and_all_policies_see_the_same_images() -> None:
    images = squares(12, 0)
    folds = halves(replace(images, names=[f"{row}.jpg" for row in range(12)]), "none", seed=0)
    ours = trainings(folds)
    shift = Policy("strength", (SubPolicy(1.0, (Operation("TranslateX", 1.0, 0.5),)),))
    (plain, plain_targets), (moved, moved_targets) = (ours.batches(0, policy)(0) for policy in (None, shift))
    assert plain.shape == moved.shape == (4, 3, 64, 64) and len(plain_targets) == len(moved_targets) == 4
    kept = [(ours_M4, theirs_M4) for ours_M4, theirs_M4 in zip(plain_targets.boxes_M4, moved_targets.boxes_M4, strict=True)
            if len(ours_M4) == len(theirs_M4)]
    assert kept and all(not torch.equal(ours_M4, theirs_M4) for ours_M4, theirs_M4 in kept)
    again, _ = ours.batches(0, None)(0)
    other, _ = ours.batches(0, None)(1)
    assert torch.equal(plain, again) and not torch.equal(plain, other)
    for name in DetectionTrainings.fixed:
        ours.batches(1, fixed_policy(name))(0)


def test_a_detector_is_judged_image_by_image() -> None:
    torch.manual_seed(0)
    folds = [Fold(squares(4, 0), squares(5, 1), torch.arange(5))]
    scores = trainings(folds).judge(DetectorLosses(tiny("retinanet").float()), 0)
    assert scores.shape == (2, 5) and torch.equal(scores[0], scores[1]) and ((scores >= 0) & (scores <= 1)).all()


def test_a_detector_that_diverged_has_no_score() -> None:
    network = DetectorLosses(tiny("retinanet").float())
    next(network.parameters()).data[0] = float("nan")
    assert trainings([Fold(squares(4, 0), squares(5, 1), torch.arange(5))]).judge(network, 0).isnan().all()


def test_what_a_detector_finds_is_held_against_the_right_boxes_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that finds the boxes of the padded images as they are has AP 1; one that errs in box or label has less."""
    network = DetectorLosses(tiny("retinanet"))
    val = replace(squares(5, 1), labels_M=[torch.tensor([0, 1])] * 5)

    def judged(moved: float, label: int) -> torch.Tensor:
        def predict(images: torch.Tensor, samples: list, rescale: bool) -> list:
            assert not rescale
            found = [sample.gt_instances for sample in samples]
            return [SimpleNamespace(pred_instances=InstanceData(bboxes=each.bboxes + moved, labels=each.labels + label,
                                                                scores=torch.ones(len(each.labels)))) for each in found]

        monkeypatch.setattr(network.detector, "predict", predict)
        return trainings([Fold(squares(4, 0), val, torch.arange(5))]).judge(network, 0)

    assert judged(0, 0).min() > 1 - 1e-9
    assert (judged(3, 0) < 0.9).all() and (judged(0, 1) < 0.9).all()


def test_the_target_trains_beside_the_others() -> None:
    fold = beside(squares(8, 0), replace(squares(6, 1), names=[f"{row}.jpg" for row in range(6)]), "none", 0)
    assert (len(fold.train), len(fold.val), len(fold.groups_V)) == (11, 3, 3)


@pytest.mark.slow
def test_the_command_hands_over_what_won(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco(tmp_path / "data", train=squares(12, 0), val=squares(5, 1))
    flags = ["--config", CONFIG, "--data", str(data), "--image-size", "64", "--batch-size", "3", "--epochs", "2"]
    for name, more in (("halves", ()), ("target", ("--val-data", f"{data}/annotations/instances_val.json")),
                       ("both", ("--val-data", f"{data}/annotations/instances_val.json", "--target-trains"))):
        assert main([*flags, "--work-dir", str(tmp_path / name), *more]) == 0
        verdict = json.loads((tmp_path / name / "verdict.json").read_text())
        assert {row["name"] for row in verdict["candidates"]} == \
            {*DetectionTrainings.fixed, "aligned", "tone", "geometry"}
        assert "handed over" in capsys.readouterr().out
        resolve(str(tmp_path / name / "policy.json"))


def test_images_go_to_the_searchs_device_before_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection_trainings, "search_device", lambda: torch.device("meta"))
    ours = DetectionTrainings([Fold(squares(4, 0), squares(4, 1), torch.arange(4))], whole=4, target=True, mirror=True,
                              batch_size=2, seed=0, normalise=torch.Tensor.float)
    assert ours.batches(0, None)(0)[0].device.type == "meta"


def test_a_detector_of_masks_is_judged_by_its_boxes() -> None:
    network = DetectorLosses(tiny("mask-rcnn").float())
    network.detector.roi_head.test_cfg.score_thr = 0.0  # so that something is found, whose mask is then wanted
    scores = trainings([Fold(squares(4, 0), squares(5, 1), torch.arange(5))]).judge(network, 0)
    assert scores.shape == (2, 5) and bool((scores >= 0).all() and (scores <= 1).all())
