"""A test-dev zip holds what the server accepts, under its name, or there is no zip."""

import json
import zipfile

import pytest
from pycocotools import mask as masks
from pycocotools.coco import COCO

from dada_det.data.checks import coco_categories
from dada_det.engine.submission import check_submission, submission_stem, write_submission
from dada_det.errors import UserError

STEM = "detections_test-dev2017_mask_rcnn_results"


@pytest.fixture
def image_info(tmp_path):
    path = tmp_path / "image_info_test-dev2017.json"
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in (11, 12, 13)]
    path.write_text(json.dumps({"info": {}, "images": images, "categories": coco_categories()}))
    return path


def detection(**changes):
    rle = masks.merge(masks.frPyObjects([[5, 5, 20, 5, 20, 15, 5, 15]], 30, 40))
    return {"image_id": 11, "category_id": 90, "bbox": [5.0, 5.0, 15.0, 10.0], "score": 0.5,
            "segmentation": {"size": [30, 40], "counts": rle["counts"].decode()}, **changes}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_zip_is_named_checked_and_readable_by_pycocotools(kind, image_info, tmp_path):
    results = [detection(), detection(image_id=13, category_id=1, score=1.0), detection(bbox=[3.0, 3.0, 0.0, 4.0])]
    path = write_submission(results, image_info, tmp_path / kind, STEM, kind)
    assert path == tmp_path / kind / f"{STEM}.zip"
    coverage = check_submission(path, image_info)
    assert (coverage.results, coverage.covered, coverage.images) == (2, 2, 3)  # the box without width is left out
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{STEM}.json"]
        archive.extractall(tmp_path)
    entries = json.loads((tmp_path / f"{STEM}.json").read_text())
    assert {("bbox" in entry, "segmentation" in entry) for entry in entries} == {(kind == "bbox", kind == "segm")}
    assert len(COCO(str(image_info)).loadRes(str(tmp_path / f"{STEM}.json")).getAnnIds()) == 2


@pytest.mark.parametrize(("config", "algorithm"), [
    ("configs/debug/mask_rcnn.py", "mask_rcnn"), ("my detector (v2).1.py", "mydetectorv21"), ("…​.py", "detector")])
def test_algorithm_s_name_keeps_only_what_the_server_takes(config, algorithm):
    assert submission_stem(config) == f"detections_test-dev2017_{algorithm}_results"


NAN = float("nan")
FAULTS = [
    ("bbox", {"image_id": 99}, "its image id 99 is not in image_info"),
    ("bbox", {"category_id": 12}, "its category id 12 is none of COCO's 80"),
    ("bbox", {"category_id": 0}, "its category id 0 is none of COCO's 80"),
    ("bbox", {"score": 1.2}, "its score is 1.2, not in 0..1"),
    ("bbox", {"score": NAN}, "its score is nan, not in 0..1"),
    ("bbox", {"bbox": [NAN, 1.0, 2.0, 3.0]}, "is not four finite numbers"),
    ("bbox", {"bbox": [0.0, 1.0, float("inf"), 3.0]}, "is not four finite numbers"),
    ("segm", {"segmentation": {"size": [40, 30], "counts": "abc"}},
     r"its RLE has the size \[40, 30\], its image \[30, 40\]"),
    ("segm", {"segmentation": [[1, 2, 3, 4, 5, 6]]}, "its segmentation is no compressed RLE"),
]


@pytest.mark.parametrize(("kind", "change", "message"), FAULTS)
def test_a_fault_is_named_and_leaves_no_zip(kind, change, message, image_info, tmp_path):
    with pytest.raises(UserError, match=f"detection number 1 of the {kind} results cannot be submitted: .*{message}"):
        write_submission([detection(), detection(**change)], image_info, tmp_path / "out", STEM, kind)
    assert not (tmp_path / "out").exists()


def test_more_than_a_hundred_an_image_are_refused(image_info, tmp_path):
    write_submission([detection()] * 100, image_info, tmp_path / "out", STEM, "bbox")
    with pytest.raises(UserError, match="image 11 has 101 bbox results; the server counts at most 100"):
        write_submission([detection()] * 101, image_info, tmp_path / "more", STEM, "bbox")


def test_no_detection_at_all_is_covered_nowhere(image_info, tmp_path):
    coverage = check_submission(write_submission([], image_info, tmp_path, STEM, "segm"), image_info)
    assert (coverage.results, coverage.covered, coverage.images) == (0, 0, 3)


def test_zip_of_another_name_or_content_is_refused(image_info, tmp_path):
    good = write_submission([detection()], image_info, tmp_path, STEM, "bbox")
    other = good.rename(tmp_path / "results.zip")
    with pytest.raises(UserError, match=r"is not named detections_test-dev2017_<alg>_results.zip"):
        check_submission(other, image_info)
    renamed = other.rename(tmp_path / "detections_test-dev2017_x_results.zip")
    with pytest.raises(UserError, match=f"must hold {renamed.stem}.json and nothing else; it holds {STEM}"):
        check_submission(renamed, image_info)
    renamed.write_bytes(b"PK")
    with pytest.raises(UserError, match="is no readable zip"):
        check_submission(renamed, image_info)
