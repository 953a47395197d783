"""What a COCO file holds, and which of its images and boxes a detector learns from.

The rules are MMDetection's (CocoDataset.parse_data_info and filter_data), so training and the search on a detector leave out
the same images and boxes.
"""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dada_det.errors import UserError

FILTER = {"filter_empty_gt": True, "min_size": 32}  # filter_cfg of MMDetection's configs; the search's
NAMED = 5  # of the images that a line is about


class Picture(NamedTuple):
    """An image of an annotation file: sides in pixels, how many `boxes` can be learned, how many `annotations` of any
    kind."""

    file_name: str
    width: int
    height: int
    boxes: int
    annotations: int


@dataclass(frozen=True)
class CocoSummary:
    """What an annotation file holds: category names in the file's order and their ids, its images, and counts."""

    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    annotations: int
    crowds: int
    dropped: Mapping[str, int]  # boxes that training leaves out, by reason (`reason_to_drop`)
    dropped_images: tuple[int, ...]  # the ids of their images
    without_mask: int  # annotations that have no segmentation

    @property
    def images(self) -> int:
        return len(self.pictures)

    @property
    def dropped_boxes(self) -> str:
        """How many boxes training leaves out and why, in words; "" where there are none."""
        if not self.dropped:
            return ""
        named = ", ".join(map(str, self.dropped_images[:NAMED])) + (", .." if len(self.dropped_images) > NAMED else "")
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return f"{sum(self.dropped.values())} of {self.annotations} boxes: {reasons} (images {named})"


def reason_to_drop(entry: Mapping[str, Any], width: int, height: int) -> str | None:
    """Why MMDetection leaves an annotation of an image of `width` x `height` px out of training; None: it trains on it."""
    if entry.get("ignore"):
        return "marked ignore"
    x, y, w, h = entry["bbox"]
    if w < 1 or h < 1 or entry["area"] <= 0:
        return "without area or under 1 px wide or high"
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return "outside their image"
    return None


def what_is_learned(summary: CocoSummary, annotations: Path, rules: Mapping[str, Any],
                    left_out: Collection[str] = ()) -> str:
    """One line about what training leaves out, "" where that is nothing; UserError where no box is left to learn from.

    Args:
        rules: the data set's filter_cfg (min_size in px, filter_empty_gt).
        left_out: file names that do not decode.
    """
    least, kept = rules.get("min_size", 0), [each for each in summary.pictures if each.file_name not in left_out]
    small = [each.file_name for each in kept if min(each.width, each.height) < least]
    empty = sum(not each.annotations for each in kept) if rules.get("filter_empty_gt") else 0
    parts = [f"dropped {summary.dropped_boxes}"] if summary.dropped else []
    if small:
        parts.append(f"left out {len(small)} of {summary.images} images that are under {least} px wide or high (min_size in "
                     f"filter_cfg): {listed(small)}")
    if empty:
        parts.append(f"left out {empty} images without annotations")
    if not any(each.boxes for each in kept if min(each.width, each.height) >= least):
        parts += [f"{summary.crowds} boxes are crowds"] if summary.crowds else []
        parts += [f"{len(left_out)} images do not decode: {listed(sorted(left_out))}"] if left_out else []
        raise UserError(f"{annotations} has no box to train on: {'; '.join(parts)}; give larger images, or boxes in pixels "
                        "as [x, y, width, height] inside their images")
    return "; ".join(parts)


def size_mistake(picture: Picture, size: tuple[int, int], annotations: Path, folder: Path) -> UserError:
    """The error for an image whose `size` (width, height), decoded and upright, is not the annotation file's."""
    turned = " once it is turned upright as its EXIF orientation says" if size == (picture.height, picture.width) else ""
    return UserError(f"the image {shown(picture.file_name)} is {picture.width} x {picture.height} px in {annotations} and "
                     f"{size[0]} x {size[1]} px in {folder}{turned}, so its boxes would lie elsewhere; correct width, "
                     "height and boxes, or put the images there that were annotated")


def listed(names: Collection[str]) -> str:
    """The first few file names."""
    return ", ".join(shown(name) for name in list(names)[:NAMED]) + (", .." if len(names) > NAMED else "")


def shown(value: Any) -> str:
    """A value of somebody's file as a part of one printable line: strings as they are, all else cut to a few entries."""
    return repr(value)[1:-1] if isinstance(value, str) else reprlib.repr(value)
