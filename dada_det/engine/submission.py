"""COCO test-dev results: checked, then zipped under the server's name.

The server takes detections_test-dev2017_<alg>_results.zip with one JSON of the same stem at its root; boxes and masks
are two entries. (Its CodaLab pages have been closed since early 2026: cocodataset/cocoapi issues 691 and 693.)
"""

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dada_det.data.checks import coco_categories
from dada_det.errors import UserError
from dada_det.files import read_json, whole_file

KINDS = ("bbox", "segm")
MOST_AN_IMAGE = 100
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Coverage:
    """What a checked results file holds: detections, images with at least one, and images of image_info in all."""

    results: int
    covered: int
    images: int


def submission_stem(config: str | Path) -> str:
    """detections_test-dev2017_<alg>_results, <alg> the config's stem without anything but A-Z a-z 0-9 _ and -."""
    return f"detections_test-dev2017_{re.sub('[^A-Za-z0-9_-]', '', Path(config).stem) or 'detector'}_results"


def write_submission(results: Sequence[Result], image_info: str | Path, folder: str | Path, stem: str,
                     kind: str) -> Path:
    """Writes <folder>/<stem>.zip of the detections' `kind` ("bbox" or "segm") and checks it; returns its path.

    A detector may give a box without area; those are left out. UserError where the rest breaks a rule of the server:
    then no zip is left.
    """
    field = "bbox" if kind == "bbox" else "segmentation"
    # With a box beside the mask the server's pycocotools would take the box's area for the mask's.
    entries = [{name: result[name] for name in ("image_id", "category_id", field, "score")}
               for result in results if min(result["bbox"][2:]) > 0]
    check_results(entries, image_info, kind)
    path = Path(folder) / f"{stem}.zip"
    with whole_file(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{stem}.json", json.dumps(entries, allow_nan=False))
        _check_zip(temporary, path.name, image_info)
    return path


def check_submission(path: str | Path, image_info: str | Path) -> Coverage:
    """Checks a submission zip against the server's image_info file; UserError names the first fault."""
    return _check_zip(Path(path), Path(path).name, image_info)


def check_results(results: Any, image_info: str | Path, kind: str) -> Coverage:
    """Checks detections in COCO's results format; `kind` is "bbox" or "segm".

    Each needs an image id of `image_info`, one of COCO's 80 category ids, a score in 0..1 and a finite box with
    w, h > 0 or an RLE of its image's size; an image has at most 100. UserError names the first that breaks a rule.
    """
    if not isinstance(results, list):
        raise UserError("COCO results are a list of detections; this file holds something else")
    images = read_json(image_info, "image_info file")["images"]
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    categories = {category["id"] for category in coco_categories()}
    for place, result in enumerate(results):
        if fault := _fault(result, sizes, categories, kind):
            raise UserError(f"detection number {place} of the {kind} results cannot be submitted: {fault}")
    counts = Counter(result["image_id"] for result in results)
    fullest, most = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    if most > MOST_AN_IMAGE:
        raise UserError(f"image {fullest} has {most} {kind} results; the server counts at most {MOST_AN_IMAGE} an "
                        "image")
    return Coverage(len(results), len(counts), len(sizes))


def _fault(result: Any, sizes: Mapping[int, list[int]], categories: set[int], kind: str) -> str | None:
    if not isinstance(result, dict) or not _is_number(result.get("score")) or not 0 <= result["score"] <= 1:
        return f"its score is {result.get('score') if isinstance(result, dict) else None}, not in 0..1"
    if result.get("image_id") not in sizes:
        return f"its image id {result.get('image_id')} is not in image_info"
    if result.get("category_id") not in categories:
        return f"its category id {result.get('category_id')} is none of COCO's 80"
    return _box_fault(result.get("bbox")) if kind == "bbox" else _mask_fault(result.get("segmentation"),
                                                                            sizes[result["image_id"]])


def _box_fault(box: Any) -> str | None:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) > 0):
        return f"its bbox {box} is not four finite numbers x, y, w > 0, h > 0"
    return None


def _mask_fault(mask: Any, size: list[int]) -> str | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str) or not mask["counts"]:
        return "its segmentation is no compressed RLE"
    if list(mask.get("size", [])) != size:
        return f"its RLE has the size {mask.get('size')}, its image {size} (height, width)"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_zip(path: Path, name: str, image_info: str | Path) -> Coverage:
    stem = name.removesuffix(".zip")
    if not re.fullmatch(r"detections_test-dev2017_[A-Za-z0-9_-]+_results", stem) or stem == name:
        raise UserError(f"{name} is not named detections_test-dev2017_<alg>_results.zip, as the server wants")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [f"{stem}.json"]:
                raise UserError(f"{name} must hold {stem}.json and nothing else; it holds "
                                f"{', '.join(archive.namelist())}")
            results = json.loads(archive.read(f"{stem}.json"))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path} is no readable zip of a JSON file ({error}); write it again") from error
    is_segm = isinstance(results, list) and bool(results) and "segmentation" in results[0]
    return check_results(results, image_info, "segm" if is_segm else "bbox")
