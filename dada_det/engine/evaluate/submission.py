"""COCO test-dev results: checked, then zipped under the server's name.

The server takes detections_test-dev2017_<alg>_results.zip with one JSON of the same stem at its root; boxes and masks
are two entries. (Its CodaLab pages have been closed since early 2026: cocodataset/cocoapi issues 691 and 693.)
"""

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from dada_det.data.checks import coco_categories
from dada_det.data.coco_segmentation import pixels_of
from dada_det.engine.evaluate.results_stream import dump_array, parse_array
from dada_det.errors import UserError
from dada_det.files import read_json, whole_file

KINDS = ("bbox", "segm")
MOST_AN_IMAGE = 100
MOST_PIXELS = 1e9  # no coordinate is larger; `not value < MOST_PIXELS` finds NaN and infinity too
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


def write_submission(results: Iterable[Result], image_info: str | Path, folder: str | Path, stem: str,
                     kind: str) -> Path:
    """Writes <folder>/<stem>.zip of the detections' `kind` ("bbox" or "segm"), checked on the way; returns its path.

    `results` may be an iterator: one detection is in memory at a time. Box coordinates are rounded to a tenth of a pixel, as
    COCO's page on the results format advises, scores to the shortest number that gives back the same float32. A detector may
    give a box without area; those are left out.

    Raises:
        UserError: any other detection breaks a rule of the server; then no zip is left.
    """
    path = Path(folder) / f"{stem}.zip"
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive, \
            archive.open(f"{stem}.json", "w", force_zip64=True) as member, \
            io.TextIOWrapper(member, encoding="utf-8") as text:
        dump_array(text, Checked(_rounded(results, kind), image_info, kind))
    return path


def surest(results: Iterable[Result]) -> Iterator[Result]:
    """`results`, which come image by image, without those of an image beyond its 100 surest: the server counts no more."""
    for _, group in groupby(results, lambda result: result["image_id"]):
        found = list(group)
        if len(found) > MOST_AN_IMAGE:
            found = sorted(found, key=lambda result: -result["score"])[:MOST_AN_IMAGE]
        yield from found


def _rounded(results: Iterable[Result], kind: str) -> Iterator[dict[str, Any]]:
    for result in results:
        # With a box beside the mask the server's pycocotools would take the box's area for the mask's.
        entry = {"image_id": result["image_id"], "category_id": result["category_id"],
                 "score": float(str(np.float32(result["score"])))}
        box = [round(float(value), 1) for value in result["bbox"]] if kind == "bbox" else result["bbox"]
        entry |= {"bbox": box} if kind == "bbox" else {"segmentation": result["segmentation"]}
        if not min(box[2:]) <= 0:  # so that NaN is kept and named
            yield entry


def check_submission(path: str | Path, image_info: str | Path) -> Coverage:
    """Checks a submission zip against the server's image_info file.

    Raises:
        UserError: the sentence names the first fault.
    """
    return _check_zip(Path(path), Path(path).name, image_info)


class Checked:
    """Detections in COCO's results format, each checked as it passes through; `coverage` of those that have passed.

    Each needs an image id of `image_info`, one of COCO's 80 category ids, a score in 0..1 and a finite box with w, h > 0 or
    an RLE that fills its image; an image has at most 100.

    Raises:
        UserError: a detection breaks a rule; the sentence names the first.

    Memory grows with the images of image_info (some 300 bytes each), not with the detections.
    """

    def __init__(self, results: Iterable[Any], image_info: str | Path, kind: str) -> None:
        self.results, self.kind = results, kind
        images = read_json(image_info, "image_info file")["images"]
        self.sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        self.categories = {category["id"] for category in coco_categories()}
        self.counts: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Any]:
        for place, result in enumerate(self.results):
            if fault := _fault(result, self.sizes, self.categories, self.kind):
                raise UserError(f"detection number {place} of the {self.kind} results cannot be submitted: {fault}")
            image = result["image_id"]
            self.counts[image] += 1
            if self.counts[image] > MOST_AN_IMAGE:
                raise UserError(f"image {image} has {self.counts[image]} {self.kind} results with detection number {place}; "
                                f"the server counts at most {MOST_AN_IMAGE} an image")
            yield result

    @property
    def coverage(self) -> Coverage:
        return Coverage(self.counts.total(), len(self.counts), len(self.sizes))


def _fault(result: Any, sizes: Mapping[int, tuple[int, int]], categories: set[int], kind: str) -> str | None:
    if not isinstance(result, dict) or not _is_number(result.get("score")) or not 0 <= result["score"] <= 1:
        return f"its score is {result.get('score') if isinstance(result, dict) else None}, not in 0..1"
    if not isinstance(result.get("image_id"), int) or result["image_id"] not in sizes:
        return f"its image id {result.get('image_id')} is not in image_info"
    if not isinstance(result.get("category_id"), int) or result["category_id"] not in categories:
        return f"its category id {result.get('category_id')} is none of COCO's 80"
    return _box_fault(result.get("bbox")) if kind == "bbox" else _mask_fault(result.get("segmentation"),
                                                                            sizes[result["image_id"]])


def _box_fault(box: Any) -> str | None:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) > 0):
        return f"its bbox {box} is not four finite numbers x, y, w > 0, h > 0"
    return None


def _mask_fault(mask: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str) or not mask["counts"]:
        return "its segmentation is no compressed RLE"
    if mask.get("size") != list(size):
        return f"its RLE has the size {mask.get('size')}, its image {list(size)} (height, width)"
    if (pixels := pixels_of(mask["counts"])) != size[0] * size[1]:
        return f"its RLE is broken: its runs cover {pixels} of its image's {size[0] * size[1]} pixels"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_PIXELS


def _check_zip(path: Path, name: str, image_info: str | Path) -> Coverage:
    stem = name.removesuffix(".zip")
    if not re.fullmatch(r"detections_test-dev2017_[A-Za-z0-9_-]+_results", stem) or stem == name:
        raise UserError(f"{name} is not named detections_test-dev2017_<alg>_results.zip, as the server wants")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [f"{stem}.json"]:
                raise UserError(f"{name} must hold {stem}.json and nothing else; it holds "
                                f"{', '.join(archive.namelist())}")
            with archive.open(f"{stem}.json") as member:
                results = parse_array(member, f"{stem}.json in {name}")
                first = next(results, None)
                kind = "segm" if isinstance(first, dict) and "segmentation" in first else "bbox"
                checked = Checked(results if first is None else chain([first], results), image_info, kind)
                for _ in checked:
                    pass
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is no readable zip of a JSON file ({error}); write it again") from error
    return checked.coverage
