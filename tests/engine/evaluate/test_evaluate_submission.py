"""A test-dev zip holds what the server accepts, under its name, or there is no zip; memory does not grow with it."""

import json
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from pycocotools import mask as masks
from pycocotools.coco import COCO

from dada_det.data.checks import coco_categories
from dada_det.engine.evaluate.submission import check_submission, pixels_of, submission_stem, surest, write_submission
from dada_det.errors import UserError
from tests.messages import refused

STEM = "detections_test-dev2017_mask_rcnn_results"
HELD = f"{STEM}.json in {STEM}.zip"


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
    ("segm", {"segmentation": {"size": [30, 40], "counts": "T3"}}, "its runs cover 100 of its image's 1200"),
    ("bbox", {"image_id": [11]}, r"its image id \[11\] is not in image_info"),
]


@pytest.mark.parametrize(("kind", "change", "message"), FAULTS)
def test_a_fault_is_named_and_leaves_no_zip(kind, change, message, image_info, tmp_path):
    with refused("detection number 1", f"{kind} results", re.compile(message)):
        write_submission([detection(), detection(**change)], image_info, tmp_path / "out", STEM, kind)
    assert not list((tmp_path / "out").iterdir())


def test_more_than_a_hundred_an_image_are_refused(image_info, tmp_path):
    write_submission([detection()] * 100, image_info, tmp_path / "out", STEM, "bbox")
    with refused("image 11", "101 bbox results", "detection number 100"):
        write_submission([detection()] * 101, image_info, tmp_path / "more", STEM, "bbox")


def test_the_hundred_surest_of_an_image_are_submitted(image_info, tmp_path):
    scores = [(7 * number % 300) / 300 for number in range(300)]
    results = [*(detection(score=score) for score in scores), *(detection(image_id=12, score=score) for score in (0.1, 0.2))]
    kept = list(surest(results))
    assert [result["score"] for result in kept] == [*sorted(scores, reverse=True)[:100], 0.1, 0.2]
    assert check_submission(write_submission(kept, image_info, tmp_path, STEM, "bbox"), image_info).results == 102


def test_no_detection_at_all_is_covered_nowhere(image_info, tmp_path):
    coverage = check_submission(write_submission([], image_info, tmp_path, STEM, "segm"), image_info)
    assert (coverage.results, coverage.covered, coverage.images) == (0, 0, 3)


def test_coordinates_are_tenths_and_scores_float32_without_loss(image_info, tmp_path):
    score = float(np.float32(0.7237651))  # prints as 0.7237651348114014
    results = [detection(bbox=[5.04, 5.06, 15.26, 10.0], score=score), detection(bbox=[5.0, 5.0, 0.04, 9.0])]
    path = write_submission(results, image_info, tmp_path, STEM, "bbox")
    text = zipfile.ZipFile(path).read(f"{STEM}.json").decode()
    (entry,) = json.loads(text)  # the second box is 0.0 wide
    assert entry["bbox"] == [5.0, 5.1, 15.3, 10.0] and "0.7237651," in text + ","
    assert np.float32(entry["score"]) == np.float32(score)


def broken(path, change):
    """The zip again with its JSON's text changed."""
    text = zipfile.ZipFile(path).read(f"{STEM}.json").decode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{STEM}.json", change(text))


@pytest.mark.parametrize(("change", "names"), [
    (lambda text: text[:text.index("0.25") + 3], (HELD, "detection number 2")),
    (lambda text: text[:text.rindex("]")], (HELD, "detection number 2", "end")),
    (lambda text: text.replace("0.25", "0.2.5"), (HELD, "detection number 2")),
    (lambda text: text.replace("},", "}", 1), (HELD, "detection number 0", re.compile(r"\(\{"))),
    (lambda text: text + "[]", (HELD, "'['", "3 detections")),
    (lambda text: "", (HELD, "list of detections")),
    (lambda text: '{"image_id": 11}', (HELD, "list of detections")),
    (lambda text: text.replace("0.25", "NaN"), ("number 2", "bbox results", "score is nan")),
    (lambda text: text.replace("0.25", "1" + "0" * 400), ("number 2", "bbox results", "score")),
    (lambda text: text.replace("12", "99"), ("detection number 1", "bbox results", "image id 99"))])
def test_a_cut_or_broken_file_is_refused_with_its_first_offender(change, names, image_info, tmp_path):
    results = [detection(), detection(image_id=12), detection(image_id=13, score=0.25)]
    path = write_submission(results, image_info, tmp_path, STEM, "bbox")
    broken(path, change)
    with refused(*names):
        check_submission(path, image_info)


def test_a_zip_damaged_on_the_way_is_refused(image_info, tmp_path):
    path = write_submission([detection(score=number / 900) for number in range(90)], image_info, tmp_path, STEM, "segm")
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], whole[:200] + bytes(8) + whole[208:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is no readable zip|is cut off or broken"):
            check_submission(path, image_info)


@pytest.mark.parametrize("seed", range(4))
def test_an_rle_s_pixels_are_those_of_pycocotools(seed):
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 300, 2))
    mask = np.asfortranarray(random.random((height, width)) < random.choice([0, 0.01, 0.5, 1]), dtype=np.uint8)
    counts = masks.encode(mask)["counts"].decode()
    assert pixels_of(counts) == height * width
    assert pixels_of(counts[:-1]) != height * width
    assert pixels_of("é") == pixels_of("!") == pixels_of("o" * 9) == -1


def peak(work):
    """The most bytes that `work` held at a time, beyond what there was before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "images", "each"), [("bbox", 300, 40), ("segm", 60, 30)])
def test_memory_does_not_grow_with_the_detections(kind, images, each, image_info, tmp_path):
    """The same images with one detection each, or with many: the memory for a megabyte more of results is not taken."""
    content = json.loads(image_info.read_text())
    content["images"] = [{"id": number, "width": 40, "height": 30} for number in range(images)]
    image_info.write_text(json.dumps(content))
    noise = np.asfortranarray(np.random.default_rng(0).random((30, 40)) < 0.5, dtype=np.uint8)
    one = detection(segmentation={"size": [30, 40], "counts": masks.encode(noise)["counts"].decode()})
    peaks, sizes = [], []
    for count in (1, each):
        path = tmp_path / f"{count}" / f"{STEM}.zip"
        results = ({**one, "image_id": number} for number in range(images) for _ in range(count))
        written = peak(lambda folder=path.parent, results=results: write_submission(results, image_info, folder, STEM, kind))
        peaks.append((written, peak(lambda path=path: check_submission(path, image_info))))
        sizes.append(zipfile.ZipFile(path).getinfo(f"{STEM}.json").file_size)
    assert sizes[1] - sizes[0] > 900_000
    assert all(more < few + 300_000 for few, more in zip(*peaks, strict=True)), (peaks, sizes)


def test_zip_of_another_name_or_content_is_refused(image_info, tmp_path):
    good = write_submission([detection()], image_info, tmp_path, STEM, "bbox")
    other = good.rename(tmp_path / "results.zip")
    with refused(other.name, "detections_test-dev2017_<alg>_results.zip"):
        check_submission(other, image_info)
    renamed = other.rename(tmp_path / "detections_test-dev2017_x_results.zip")
    with refused(renamed.name, f"{renamed.stem}.json", f"{STEM}.json"):
        check_submission(renamed, image_info)
    renamed.write_bytes(b"PK")
    with pytest.raises(UserError, match="is no readable zip"):
        check_submission(renamed, image_info)
