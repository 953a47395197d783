"""What commands check before anything heavy is imported: image folders, and COCO's files and layouts."""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dada_det.data.coco_instances import CocoSummary, Picture, reason_to_drop, shown
from dada_det.data.coco_segmentation import fault_of
from dada_det.data.decode import load_sized
from dada_det.errors import UserError
from dada_det.files import read_json

SPLIT_SUFFIXES = ("2017", "")  # COCO's own layout, then the plain one
MOST = 1e12  # no coordinate or area is larger; NaN and infinity are not smaller
TEST_ANNOTATIONS = "image_info_test-dev2017.json"


@dataclass(frozen=True)
class CocoLayout:
    """Where a COCO data set keeps its parts. None: the part was not asked for; of test-dev: it is absent."""

    train_annotations: Path | None
    train_images: Path | None
    val_annotations: Path | None
    val_images: Path | None
    test_annotations: Path | None
    test_images: Path | None

    def part(self, name: str) -> tuple[Path, Path]:
        """Annotations and images of "train", "val" or "test".

        Raises:
            ValueError: the layout is without that part.
        """
        annotations, images = getattr(self, f"{name}_annotations"), getattr(self, f"{name}_images")
        if annotations is None or images is None:
            raise ValueError(f"this layout has no {name} part")
        return annotations, images


def coco_categories() -> list[dict[str, Any]]:
    """COCO's 80 categories, each {"id" (of 1..90), "name", "supercategory"}, by id."""
    return json.loads(Path(__file__).with_name("coco80.json").read_text(encoding="utf-8"))


def find_coco(root: str | Path, parts: Sequence[str] = ("train", "val")) -> CocoLayout:
    """Finds annotations/instances_{train,val}2017.json with {train,val}2017/, or the same without 2017.

    annotations/{train,val}.json is found too.

    Args:
        parts: those of train and val that must be there; the others are not looked for.

    Raises:
        UserError: one is missing; the sentence says what was looked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; it should hold annotations/instances_train2017.json, "
                        "train2017/, annotations/instances_val2017.json and val2017/")
    train_annotations, train_images = _find_split(root, "train") if "train" in parts else (None, None)
    val_annotations, val_images = _find_split(root, "val") if "val" in parts else (None, None)
    test_annotations, test_images = root / "annotations" / TEST_ANNOTATIONS, root / "test2017"
    if not (test_annotations.is_file() and test_images.is_dir()):
        return CocoLayout(train_annotations, train_images, val_annotations, val_images, None, None)
    return CocoLayout(train_annotations, train_images, val_annotations, val_images, test_annotations, test_images)


def _find_split(root: Path, split: str) -> tuple[Path, Path]:
    for suffix in SPLIT_SUFFIXES:
        images = root / f"{split}{suffix}"
        for stem in (f"instances_{split}{suffix}", f"{split}{suffix}"):
            annotations = root / "annotations" / f"{stem}.json"
            if annotations.is_file() and images.is_dir():
                return annotations, images
    raise UserError(f"{root} has no {split} part: looked for annotations/instances_{split}2017.json with {split}2017/, "
                    f"annotations/instances_{split}.json or annotations/{split}.json with {split}/; put them there")


def find_annotations(place: str | Path) -> tuple[Path, Path]:
    """The annotation file and the folder of its images for --val-data.

    `place` is a folder in COCO's layout, of which the validation part counts or else the training part, or an annotation
    FILE. The images of FILE are in the folder <stem without instances_> beside `annotations`, as in COCO, or beside FILE.

    Raises:
        UserError: there is no such thing.
    """
    place = Path(place)
    if place.is_dir():
        try:
            return find_coco(place, ("val",)).part("val")
        except UserError:
            return find_coco(place, ("train",)).part("train")
    if not place.is_file():
        raise UserError(f"--val-data {place} does not exist; give a COCO file of the target domain, or a folder in COCO's "
                        "layout")
    images = place.parent.parent / place.stem.removeprefix("instances_")
    return place, images if images.is_dir() else place.parent


def check_coco(annotations: str | Path, images: str | Path, test: bool = False) -> CocoSummary:
    """Checks a COCO annotation file against the folder of its images, which are not opened.

    Args:
        test: an image_info file, which needs no annotations.

    Raises:
        UserError: no JSON, no images, no or repeated categories, repeated ids, images without a size, files that the folder
            lacks or that lie outside it, annotations of images or categories that the file lacks, boxes that are no four
            finite numbers, no area or iscrowd, a segmentation that does not fit its image. The sentence names the file and
            the first offender. What training leaves out is only counted.
    """
    annotations, folder = Path(annotations), Path(images)
    content = read_json(annotations, "annotation file")
    if not isinstance(content, dict):
        raise UserError(f"the annotation file {annotations} is no JSON object; give a file in COCO's format")
    needed = ("images", "categories") if test else ("images", "categories", "annotations")
    for key in needed:
        if not _is_list_of_objects(content.get(key)):
            raise UserError(f"the annotation file {annotations} has no {key}; COCO's format needs a non-empty list "
                            f"of objects under {key!r}")
    category_ids = _check_ids(content["categories"], "category", annotations, {"name": str})
    _check_ids(content["images"], "image", annotations, {"file_name": str, "width": int, "height": int})
    _check_files(content["images"], annotations, folder)
    _check_sizes(content["images"], annotations, folder)
    entries = [] if test else content["annotations"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    _check_annotations(entries, sizes, set(category_ids), annotations)
    reasons = [reason_to_drop(entry, *sizes[entry["image_id"]]) for entry in entries]
    learned = Counter(entry["image_id"] for entry, reason in zip(entries, reasons, strict=True)
                      if reason is None and not entry["iscrowd"])
    annotated = Counter(entry["image_id"] for entry in entries)
    dropped = [(reason, entry["image_id"]) for entry, reason in zip(entries, reasons, strict=True) if reason is not None]
    return CocoSummary(
        categories=tuple(category["name"] for category in content["categories"]), category_ids=tuple(category_ids),
        pictures=tuple(Picture(image["file_name"], image["width"], image["height"], learned[image["id"]],
                               annotated[image["id"]]) for image in content["images"]),
        annotations=len(entries), crowds=sum(bool(entry["iscrowd"]) for entry in entries),
        dropped=Counter(reason for reason, _ in dropped), dropped_images=tuple(sorted({image for _, image in dropped})),
        without_mask=sum(not entry.get("segmentation") for entry in entries))


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(entry, dict) for entry in value)


def _check_ids(entries: list[dict[str, Any]], what: str, file: Path, fields: dict[str, type]) -> list[int]:
    """The entries' ids, which must be different whole numbers; every entry must have `fields` of these types."""
    ids: list[int] = []
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        for key, kind in {"id": int, **fields}.items():
            if type(entry.get(key)) is not kind:
                raise UserError(f"{what} number {place} in {file} has no {key!r} of type {kind.__name__}; "
                                "add it as COCO's format wants")
        if entry["id"] in seen:
            raise UserError(f"{file} gives the {what} id {shown(entry['id'])} twice; every {what} needs an id of its own")
        seen.add(entry["id"])
        ids.append(entry["id"])
    return ids


def _check_files(entries: list[dict[str, Any]], file: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} of {file} does not exist; put the images there")
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise UserError(f"cannot read the image folder {folder}: {error.strerror}; check its permissions") from error
    root = os.path.abspath(folder)
    names = [entry["file_name"] for entry in entries]
    for name in names:
        inside = os.path.normpath(os.path.join(root, name))
        if name not in present and os.path.commonpath([root, inside]) != root:
            raise UserError(f"the image {shown(name)} in {file} lies outside the image folder {folder}; give names of files "
                            "in it")
    missing = [name for name in names if name not in present and not os.path.isfile(folder / name)]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(entries)} images that {file} names, such as "
                        f"{shown(missing[0])}; put them there")


def _check_sizes(entries: list[dict[str, Any]], file: Path, folder: Path) -> None:
    for entry in entries:
        width, height = entry["width"], entry["height"]
        if min(width, height) < 1:
            try:
                real = "{} x {} px".format(*load_sized(folder / entry["file_name"], at_least=1)[1])
            except OSError:
                real = "no image that decodes"
            raise UserError(f"the image {shown(entry['file_name'])} has the width and height {shown(width)} x "
                            f"{shown(height)} in {file}, and its file is {real}; correct the annotation file")


def _check_annotations(entries: list[dict[str, Any]], sizes: dict[int, tuple[int, int]], category_ids: set[int],
                       file: Path) -> None:
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        where = f"annotation {reprlib.repr(entry['id']) if 'id' in entry else f'number {place}'} in {file}"
        if type(entry.get("id")) is not int:
            raise UserError(f"{where} has no whole number as its id; every annotation needs one of its own")
        if entry["id"] in seen:
            raise UserError(f"{file} gives the annotation id {shown(entry['id'])} twice; every annotation needs an id of "
                            "its own")
        seen.add(entry["id"])
        if not _is_among(entry.get("image_id"), sizes):
            raise UserError(f"{where} belongs to image {reprlib.repr(entry.get('image_id'))}, which the file's images lack; "
                            "remove the annotation or add the image")
        if not _is_among(entry.get("category_id"), category_ids):
            raise UserError(f"{where} has category {reprlib.repr(entry.get('category_id'))}, which the file's categories "
                            "lack; remove the annotation or add the category")
        box = entry.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(f"{where} has the bbox {reprlib.repr(box)}; it must be four finite numbers: x, y, width, height")
        _check_mask_fields(entry, where, *sizes[entry["image_id"]])


def _check_mask_fields(entry: dict[str, Any], where: str, width: int, height: int) -> None:
    """UserError unless area, iscrowd and, where there is one, segmentation are what pycocotools and mmdet read."""
    if not _is_number(entry.get("area")):
        raise UserError(f"{where} has no number as its area; add 'area', the object's size in square pixels (without a "
                        "mask: width times height)")
    if entry.get("iscrowd") not in (0, 1):
        raise UserError(f"{where} has no iscrowd of 0 or 1; add 'iscrowd', which is 0 for a single object")
    segmentation = entry.get("segmentation")
    if segmentation not in (None, []) and (fault := fault_of(segmentation, width, height)):
        raise UserError(f"{where} has {fault}; correct it or leave it out")


def _is_among(value: Any, ids: Collection[int]) -> bool:
    return type(value) is int and value in ids


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST  # as NaN is not
