"""Segmentations that pycocotools decodes to their image's size are fine; each way to be wrong has its words."""

import math
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from dada_det.data.coco_segmentation import FARTHEST, LONGEST, fault_of
from tests.data.coco_strategies import MASKS, examples, segmentation

SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]


@examples
def test_legal_segmentations_pass_and_decode(examples: Any) -> None:
    @examples
    @given(st.sampled_from(MASKS), st.integers(1, 60), st.integers(1, 60), st.tuples(*[st.floats(0, 1)] * 4))
    def every_one(kind: str, height: int, width: int, box: tuple[float, ...]) -> None:
        x, y = box[0] * width, box[1] * height
        value = segmentation(kind, x, y, box[2] * (width - x), box[3] * (height - y), height, width)
        assert fault_of(value, width, height) is None
        if isinstance(value, dict):
            assert "cover" in str(fault_of({**value, "counts": [height * width + 1]}, width, height))
            assert fault_of({"size": [height, width + 1], "counts": value["counts"]}, width, height)
    every_one()


@pytest.mark.parametrize("value", [[SQUARE], [[-FARTHEST, 0, 9, 9, 0, 9]], [[0, 0, 64 + FARTHEST, 0, 9, 48 + FARTHEST]],
                                   [[1, 1, 5, 5, 9, 9]], {"size": [48, 64], "counts": [0, 3072]},
                                   {"size": [48, 64], "counts": [3000, 0, 72]}, {"size": [48, 64], "counts": "0PP3"}])
def test_what_is_fine(value: Any) -> None:
    assert fault_of(value, 64, 48) is None


@pytest.mark.parametrize("value, words", [
    ([[1, 1, 9, math.nan, 9, 9]], "no number within 10,000 px of its image of 64 x 48"),
    ([[math.nan, 1, 9, 1, 9, 9]], "no number within"), ([[1, 1, math.inf, 1, 9, 9]], "no number within"),
    ([SQUARE, [1, 1, 9, -math.inf, 9, 9]], "no number within"), ([[1, 1, 9, 10**400, 9, 9]], "no number within"),
    ([[1, 1, 64.5 + FARTHEST, 1, 9, 9]], "no number within"), ([[1, 1, 1, 48.5 + FARTHEST, 9, 9]], "no number within"),
    ([[1, -0.5 - FARTHEST, 9, 1, 9, 9]], "no number within"), ([[1e300, 1e300] * 3], "no number within"),
    ([[0, 0, 64, 48] * 50_000], "6,400,000 px of outline.* 4,000,000"),
    ([[0, 0, 10_000, 0] * 101] * 2, "polygons with 4,040,000 px of outline"),
    ({"size": [64, 48], "counts": [3072]}, r"size \[64, 48\] .* image of \[48, 64\]"),
    ({"size": [10**6, 10**6], "counts": [10**12]}, "an RLE of the size"),
    ({"size": [48, 64], "counts": [3071]}, "counts cover 3071 .* 3072"),
    ({"size": [48, 64], "counts": [10**400]}, "counts cover 1000000000000000000 .* 3072"),
    ({"size": [48, 64], "counts": []}, "counts cover 0"), ({"size": [48, 64], "counts": [3073, -1]}, "do not decode"),
    ({"size": [48, 64], "counts": [3072.0]}, "do not decode"), ({"size": [48, 64], "counts": [True]}, "do not decode"),
    ({"size": [48, 64], "counts": [[3072]]}, "do not decode"), ({"size": [48, 64], "counts": ""}, "do not decode"),
    ({"size": [48, 64], "counts": "PP"}, "do not decode"), ({"size": [48, 64], "counts": "é"}, "do not decode"),
    ({"size": [48, 64], "counts": "0PP30"}, None), ({"size": [48, 64], "counts": "PP4"}, "counts cover 4096"),
    ({"size": [True, True], "counts": "1"}, "neither a list of polygons"), ([[1, 1, True, 1, 9, 9]], "neither a list"),
    ([1, 2, 3], "neither a list of polygons"), ("RLE", "neither a list of polygons"), (0, "neither a list of polygons")])
def test_every_fault_has_its_words(value: Any, words: str | None) -> None:
    fault = fault_of(value, 64, 48)
    if words is None:
        assert fault is None
    else:
        assert re.search(words, fault or "")


def test_checks_take_little_memory_and_what_passes_takes_little_in_pycocotools() -> None:
    """The worst polygon that passes; pycocotools lays its five points along each of its pixels."""
    worst = [[0, 0, 10_000, 0] * (LONGEST // 20_000)]
    tracemalloc.start()
    assert fault_of(worst, 64, 48) is None
    assert fault_of({"size": [48, 64], "counts": "1" * 10**7}, 64, 48) == "an RLE whose counts do not decode"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    (rle,) = coco_mask.frPyObjects(worst, 48, 64)
    assert coco_mask.area(rle) <= 48 * 64
