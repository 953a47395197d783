"""COCO layouts and annotation files: what is found, what is counted, and the sentence that each mistake gets."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dada_det.data.checks import check_coco, coco_categories, find_coco
from dada_det.errors import UserError
from tests.messages import refused

CONTENT: dict[str, Any] = {
    "categories": [{"id": 3, "name": "cell"}, {"id": 7, "name": "vessel"}],
    "images": [{"id": 10, "file_name": "a.jpg", "width": 64, "height": 48},
               {"id": 11, "file_name": "deep/b.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0,
         "segmentation": [[1, 2] * 4]},
        {"id": 2, "image_id": 11, "category_id": 3, "bbox": [1.5, 2, 30, 4], "area": 120, "iscrowd": 0}],
}


def write(tmp_path: Path, content: Any) -> tuple[Path, Path]:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "deep/b.jpg"):
        (images / name).touch()
    file = tmp_path / "annotations.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file, images


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """CONTENT with one entry replaced."""
    content = copy.deepcopy(CONTENT)
    inner: Any = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return content


def test_summary(tmp_path: Path) -> None:
    summary = check_coco(*write(tmp_path, CONTENT))
    assert (summary.categories, summary.category_ids) == (("cell", "vessel"), (3, 7))
    assert (summary.images, summary.annotations, summary.dropped, summary.without_mask) == (2, 2, {}, 1)
    assert summary.pictures == (("a.jpg", 64, 48, 1, 1), ("deep/b.jpg", 64, 48, 1, 1)) and summary.dropped_boxes == ""


@pytest.mark.parametrize("key, to, reason", [
    ("bbox", [5, 5, 0, 4], "without area or under 1 px wide or high"), ("bbox", [70, 5, 9, 9], "outside their image"),
    ("ignore", 1, "marked ignore")])
def test_boxes_that_training_leaves_out_are_counted_and_named(tmp_path: Path, key: str, to: Any, reason: str) -> None:
    summary = check_coco(*write(tmp_path, changed("annotations", 1, key, to=to)))
    assert summary.dropped == {reason: 1} and summary.dropped_images == (11,)
    assert summary.dropped_boxes == f"1 of 2 boxes: 1 {reason} (images 11)"
    assert [picture.boxes for picture in summary.pictures] == [1, 0]


@pytest.mark.parametrize("name", ["/etc/hostname", "../annotations.json", "deep/../../annotations.json"])
def test_images_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with refused(name, tmp_path / "annotations.json", tmp_path / "images"):
        check_coco(*write(tmp_path, changed("images", 0, "file_name", to=name)))


def test_an_image_may_be_a_link_and_may_be_named_by_a_detour(tmp_path: Path) -> None:
    file, images = write(tmp_path, changed("images", 0, "file_name", to="deep/../link.jpg"))
    (images / "link.jpg").symlink_to(file)
    assert check_coco(file, images).images == 2


@pytest.mark.parametrize("width, height", [(0, 48), (64, -1), (0, 0)])
def test_images_without_a_size_are_refused_with_that_of_the_file(tmp_path: Path, width: int, height: int) -> None:
    content = changed("images", 0, "width", to=width)
    content["images"][0]["height"] = height
    file, images = write(tmp_path, content)
    with refused("a.jpg", f"{width} x {height}", "annotations.json", "correct"):
        check_coco(file, images)
    Image.new("RGB", (90, 60)).save(images / "a.jpg")
    with refused("a.jpg", f"{width} x {height}", "annotations.json", "90 x 60"):
        check_coco(file, images)


@pytest.mark.parametrize("content, names", [
    ("{", ("annotations.json", "JSON")),
    ([1], ("annotations.json", "JSON object", "COCO")),
    ({}, ("annotations.json", "'images'", "COCO")),
    (changed("categories", to=[]), ("annotations.json", "'categories'", "COCO")),
    (changed("annotations", to=[]), ("annotations.json", "'annotations'", "COCO")),
    (changed("categories", 1, to={"id": 7}), ("annotations.json", "category number 1", "'name'", "str", "add")),
    (changed("categories", 1, "id", to=3), ("annotations.json", "category id 3", "twice")),
    (changed("images", 1, "id", to="x"), ("annotations.json", "image number 1", "'id'", "int", "add")),
    (changed("images", 1, "id", to=10), ("annotations.json", "image id 10", "twice")),
    (changed("images", 0, "height", to=None), ("annotations.json", "image number 0", "'height'", "int", "add")),
    (changed("images", 1, "file_name", to="c.jpg"), ("/images", "1 of the 2", "annotations.json", "c.jpg", "put")),
    (changed("annotations", 0, "image_id", to=99), ("annotations.json", "annotation 1", "image 99", "remove", "add")),
    (changed("annotations", 0, "image_id", to=[]), ("annotations.json", "annotation 1", "image []", "remove", "add")),
    (changed("annotations", 1, "category_id", to=1), ("annotations.json", "annotation 2", "category 1", "remove", "add")),
    (changed("annotations", 1, "id", to=None), ("annotations.json", "annotation None", "id", "whole number")),
    (changed("annotations", 1, "bbox", to=[1, 2, 3]), ("annotations.json", "annotation 2", "bbox [1, 2, 3]",
                                                       "x, y, width, height")),
    (changed("annotations", 1, "bbox", to=[1, 2, 3, float("nan")]), ("annotation 2", "nan", "finite")),
    (changed("annotations", 1, "id", to=1), ("annotations.json", "annotation id 1", "twice")),
    (changed("annotations", 1, "area", to=None), ("annotation 2", "annotations.json", "'area'", "add")),
    (changed("annotations", 1, "area", to="120"), ("annotation 2", "annotations.json", "'area'", "add")),
    (changed("annotations", 1, "area", to=float("nan")), ("annotation 2", "annotations.json", "'area'", "add")),
    (changed("annotations", 1, "iscrowd", to=None), ("annotation 2", "annotations.json", "'iscrowd'", "add")),
    (changed("images", 0, "file_name", to="x" * 300), ("1 of the 2", "annotations.json", re.compile("x{30}"), "put")),
    (changed("images", 0, "file_name", to="a\0b\n"), ("1 of the 2", "annotations.json", r"a\x00b\n", "put")),
    (changed("images", 0, "id", to=True), ("annotations.json", "image number 0", "'id'", "int", "add")),
    (changed("annotations", 0, "image_id", to=["x" * 999] * 99), ("annotation 1", re.compile(r"image \['x.{0,300}\]"),
                                                                  "remove", "add")),
    (changed("annotations", 1, "bbox", to=[1, 2, 3, 10**400]), ("annotation 2", "bbox", "finite")),
    (changed("annotations", 1, "area", to=10**400), ("annotation 2", "annotations.json", "'area'", "add")),
    (changed("annotations", 1, "iscrowd", to=2), ("annotation 2", "annotations.json", "'iscrowd'", "add")),
])
def test_messages(tmp_path: Path, content: Any, names: tuple[object, ...]) -> None:
    with refused(*names):
        check_coco(*write(tmp_path, content))


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_absent_fields(tmp_path: Path, key: str) -> None:
    content = copy.deepcopy(CONTENT)
    del content["annotations"][0][key]
    with refused("annotation 1", "annotations.json", f"'{key}'", "add"):
        check_coco(*write(tmp_path, content))


@pytest.mark.parametrize("mask", [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, "6"]], [1, 2, 3],
                                  {}, {"size": [48, 64]}, {"counts": "abc"}, {"size": [48], "counts": []}, "RLE", 0])
def test_segmentations_that_are_none(tmp_path: Path, mask: Any) -> None:
    with refused("annotation 1", "annotations.json", "segmentation", "correct"):
        check_coco(*write(tmp_path, changed("annotations", 0, "segmentation", to=mask)))


@pytest.mark.parametrize("mask", [[[1, 2, 3, 4, 5, 6.5]], {"size": [48, 64], "counts": "PP3"},
                                  {"size": [48, 64], "counts": [0, 3072]}])
def test_polygons_and_rle_are_masks(tmp_path: Path, mask: Any) -> None:
    assert check_coco(*write(tmp_path, changed("annotations", 1, "segmentation", to=mask))).without_mask == 0
    for none in (None, []):  # exports of boxes alone write one or the other
        assert check_coco(*write(tmp_path, changed("annotations", 1, "segmentation", to=none))).without_mask == 1


def test_missing_file_and_folder(tmp_path: Path) -> None:
    file, images = write(tmp_path, CONTENT)
    with refused("other.json", "No such file"):
        check_coco(tmp_path / "other.json", images)
    with refused("elsewhere", "annotations.json", "images"):
        check_coco(file, tmp_path / "elsewhere")


def test_image_info_needs_no_annotations(tmp_path: Path) -> None:
    content = {key: CONTENT[key] for key in ("images", "categories")}
    assert check_coco(*write(tmp_path, content), test=True).annotations == 0


def test_the_eighty_categories() -> None:
    categories = coco_categories()
    ids = [category["id"] for category in categories]
    assert len(ids) == 80 and ids == sorted(set(ids)) and (ids[0], ids[-1]) == (1, 90)
    assert categories[0]["name"] == "person" and categories[-1]["name"] == "toothbrush"


def lay_out(root: Path, suffix: str, stem: str, test: bool = False) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"{split}{suffix}").mkdir()
        (root / "annotations" / f"{stem}{split}{suffix}.json").write_text("{}")
    if test:
        (root / "test2017").mkdir()
        (root / "annotations" / "image_info_test-dev2017.json").write_text("{}")


@pytest.mark.parametrize("suffix, stem", [("2017", "instances_"), ("", "instances_"), ("", "")])
def test_layouts(tmp_path: Path, suffix: str, stem: str) -> None:
    lay_out(tmp_path, suffix, stem, test=suffix == "2017")
    layout = find_coco(tmp_path)
    assert layout.train_images == tmp_path / f"train{suffix}" and layout.val_images == tmp_path / f"val{suffix}"
    assert layout.val_annotations == tmp_path / "annotations" / f"{stem}val{suffix}.json"
    assert (layout.test_images is None) == (layout.test_annotations is None) == (suffix != "2017")


def test_missing_layouts(tmp_path: Path) -> None:
    with refused("nowhere", "annotations/instances_train2017.json", "train2017/", "annotations/instances_val2017.json",
                 "val2017/"):
        find_coco(tmp_path / "nowhere")
    lay_out(tmp_path / "data", "2017", "instances_")
    (tmp_path / "data" / "val2017").rmdir()
    with refused(tmp_path / "data", "val part", "annotations/instances_val2017.json", "val2017/"):
        find_coco(tmp_path / "data")


def test_only_the_parts_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    lay_out(tmp_path, "2017", "instances_")
    (tmp_path / "train2017").rmdir()
    layout = find_coco(tmp_path, parts=("val",))
    assert layout.part("val") == (tmp_path / "annotations" / "instances_val2017.json", tmp_path / "val2017")
    with pytest.raises(ValueError, match="this layout has no train part"):
        layout.part("train")
    with pytest.raises(UserError, match="has no train part: looked for"):
        find_coco(tmp_path)


@pytest.mark.parametrize("name, images, annotations, categories",
                         [("coco-tiny", 80, 705, 80), ("nuclei", 233, 6497, 1)])
def test_real_sets(shared: Path, name: str, images: int, annotations: int, categories: int) -> None:
    layout = find_coco(shared / "data" / name)
    summary = check_coco(*layout.part("train"))
    assert (summary.images, summary.annotations, len(summary.categories)) == (images, annotations, categories)
    check_coco(*layout.part("val"))
    if layout.test_annotations is not None and layout.test_images is not None:
        assert check_coco(layout.test_annotations, layout.test_images, test=True).images == 20
    assert (layout.test_images is None) == (name == "nuclei")
