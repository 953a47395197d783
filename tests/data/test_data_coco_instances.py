"""What a detector learns from a COCO file: reasons to leave boxes out, the line about them, and when nothing is left."""

from pathlib import Path
from typing import Any

import pytest

from dada_det.data.coco_instances import (
    FILTER,
    CocoSummary,
    Picture,
    listed,
    reason_to_drop,
    shown,
    size_mistake,
    what_is_learned,
)
from tests.messages import assert_names, refused

FLAT, OUTSIDE, IGNORED = "without area or under 1 px wide or high", "outside their image", "marked ignore"


@pytest.mark.parametrize("change, reason", [
    ({}, None), ({"bbox": [5, 5, 1, 1]}, None), ({"bbox": [-9, -9, 10, 10]}, None), ({"bbox": [63, 47, 9, 9]}, None),
    ({"iscrowd": 1}, None), ({"ignore": 0}, None), ({"ignore": 1}, IGNORED), ({"ignore": True}, IGNORED),
    ({"bbox": [5, 5, 0, 4]}, FLAT), ({"bbox": [5, 5, 4, 0.0]}, FLAT), ({"bbox": [5, 5, 0.9, 40]}, FLAT),
    ({"bbox": [5, 5, 40, 0.9]}, FLAT), ({"bbox": [5, 5, -4, 4]}, FLAT), ({"area": 0}, FLAT), ({"area": -1}, FLAT),
    ({"bbox": [64, 5, 9, 9]}, OUTSIDE), ({"bbox": [5, 48, 9, 9]}, OUTSIDE), ({"bbox": [-9, 5, 9, 9]}, OUTSIDE),
    ({"bbox": [5, -20, 9, 9]}, OUTSIDE)])
def test_reasons(change: dict[str, Any], reason: str | None) -> None:
    entry = {"bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0, **change}
    assert reason_to_drop(entry, 64, 48) == reason


def summary(*pictures: Picture, dropped: dict[str, int] | None = None, crowds: int = 0) -> CocoSummary:
    return CocoSummary(("a",), (1,), pictures, 9, crowds, dropped or {}, (3, 4) if dropped else (), 0)


BIG, SMALL, EMPTY = Picture("big.png", 64, 48, 2, 2), Picture("small.png", 90, 31, 1, 1), Picture("empty.png", 64, 48, 0, 0)


def test_what_is_left_out_is_told_in_one_line() -> None:
    assert what_is_learned(summary(BIG), Path("t.json"), FILTER) == ""
    assert what_is_learned(summary(BIG, SMALL, EMPTY), Path("t.json"), {}) == ""  # no filter_cfg
    line = what_is_learned(summary(BIG, SMALL, EMPTY, dropped={IGNORED: 2, OUTSIDE: 1}), Path("t.json"), FILTER)
    assert_names(line, "3 of 9 boxes", "2 marked ignore", "1 outside their image", "images 3, 4", "1 of 3 images", "32 px",
                 "min_size", "small.png", "1 images without annotations")


@pytest.mark.parametrize("pictures, dropped, crowds, left_out, names", [
    ((EMPTY,), {OUTSIDE: 9}, 0, (), ("9 of 9 boxes", "9 outside their image")),
    ((SMALL, SMALL), {}, 0, (), ("2 of 2 images", "32 px", "small.png, small.png")),
    ((Picture("c.png", 64, 48, 0, 3),), {}, 3, (), ("3 boxes", "crowds")),
    ((BIG, SMALL), {}, 0, ("big.png",), ("32 px", "1 images", "big.png"))])
def test_nothing_left_to_learn_is_a_sentence(pictures: Any, dropped: Any, crowds: int, left_out: Any, names: Any) -> None:
    with refused("t.json", "[x, y, width, height]", *names):
        what_is_learned(summary(*pictures, dropped=dropped, crowds=crowds), Path("t.json"), FILTER, left_out)


def test_a_size_mistake_names_both_sizes_and_a_turn() -> None:
    said = str(size_mistake(BIG, (640, 480), Path("t.json"), Path("train")))
    assert_names(said, "big.png", "64 x 48 px in t.json", "640 x 480 px in train", "correct")
    assert "480 x 640 px" not in said and "EXIF" not in said
    said = str(size_mistake(BIG, (48, 64), Path("t.json"), Path("train")))
    assert_names(said, "48 x 64 px in train", "EXIF")


def test_what_is_shown_is_one_short_printable_line() -> None:
    assert listed([f"{number}.png" for number in range(7)]) == "0.png, 1.png, 2.png, 3.png, 4.png, .."
    for value in ("a\nb\0\ud800", ["\n" * 999] * 999, 10**400, {"é": [1, 2, 3]}):
        assert shown(value).isprintable() and len(shown(value)) < 300
    assert shown("é.png") == "é.png"
