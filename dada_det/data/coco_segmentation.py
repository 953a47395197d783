"""Checks whether the segmentations of a COCO file fit their image, in little memory.

pycocotools checks nothing: it puts five points on each pixel of an outline, however far that goes, and believes the image
size that an RLE names. Suffixes: C characters of an RLE's text, R its runs.
"""

import math
from typing import Any

import numpy as np

FARTHEST = 10_000  # px that a polygon may reach beyond its image
LONGEST = 4_000_000  # px of outline that an instance may have: pycocotools takes 50 bytes for each


def fault_of(segmentation: Any, width: int, height: int) -> str | None:
    """What is wrong with a segmentation in an image of width x height px, as in "has ..."; None where nothing is."""
    if isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation)):
        return _polygons_fault(segmentation, width, height)
    if isinstance(segmentation, dict) and _is_size(segmentation.get("size")) and isinstance(segmentation.get("counts"),
                                                                                           str | list):
        return _runs_fault(segmentation["size"], segmentation["counts"], width, height)
    return ("a segmentation that is neither a list of polygons (each x, y, x, y, .. of three points or more) nor an RLE "
            "with size and counts")


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and set(map(type, value)) <= {int, float}


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and list(map(type, value)) == [int, int]


def _polygons_fault(polygons: list[list[float]], width: int, height: int) -> str | None:
    across, down = width + FARTHEST, height + FARTHEST
    length = 0.0
    for polygon in polygons:
        for values, most in ((polygon[::2], across), (polygon[1::2], down)):
            low, high = min(values), max(values)  # min and max may miss a NaN, the sum does not
            if not (low >= -FARTHEST and high <= most and math.isfinite(sum(values))):
                return (f"a polygon with a coordinate that is no number within {FARTHEST:,} px of its image of {width} x "
                        f"{height} px")
        # No edge is longer than the polygon is wide or high; only an outline that could be too long is measured.
        length += len(polygon) / 2 * (max(polygon) - min(polygon))
    if length > LONGEST:
        length = sum(map(_outline, polygons))
    return f"polygons with {length:,.0f} px of outline, where {LONGEST:,} are the most" if length > LONGEST else None


def _outline(polygon: list[float]) -> float:
    points_N2 = np.array(polygon, float).reshape(-1, 2)
    return float(np.abs(points_N2 - np.roll(points_N2, 1, axis=0)).max(axis=1).sum())


def _runs_fault(size: list[int], counts: str | list[Any], width: int, height: int) -> str | None:
    if size != [height, width]:
        return f"an RLE of the size {size} (height, width) in an image of {[height, width]}"
    if isinstance(counts, str):
        covered = pixels_of(counts) if len(counts) <= 7 * (width * height + 1) else -1
    else:
        covered = sum(counts) if set(map(type, counts)) <= {int} and min(counts, default=0) >= 0 else -1
    if covered == -1:
        return "an RLE whose counts do not decode"
    if covered != width * height:
        return f"an RLE whose counts cover {min(covered, 10**18)} of its image's {width * height} pixels"
    return None


def pixels_of(counts: str) -> int:
    """The pixels that the runs of a compressed RLE cover in all; -1 where the text is no such RLE.

    A run is written in groups of five bits from the lowest, a character each: 48 + the bits + 32 where more follow; the
    last group's highest bit is the sign. From the fourth run on, it is the difference to the run two before (pycocotools'
    maskApi.c, rleFrString).
    """
    try:
        codes_C = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return -1
    last_C = (codes_C & 32) == 0
    if not len(codes_C) or codes_C.min() < 0 or codes_C.max() > 63 or not last_C[-1]:
        return -1
    starts_R = np.flatnonzero(np.concatenate([[True], last_C[:-1]]))
    places_C = np.arange(len(codes_C)) - np.repeat(starts_R, np.diff(np.append(starts_R, len(codes_C))))
    if places_C.max() > 6:  # 35 bits: more than any image has pixels
        return -1
    runs_R = np.add.reduceat((codes_C & 31) << (5 * places_C), starts_R)
    ends_R = np.flatnonzero(last_C)
    runs_R -= np.where(codes_C[ends_R] & 16, np.int64(1) << (5 * (places_C[ends_R] + 1)), 0)
    for first in (1, 2):
        runs_R[first::2] = np.cumsum(runs_R[first::2])
    return int(runs_R.sum()) if runs_R.min() >= 0 else -1
