"""The table: names, order, and what a magnitude means."""

import pytest
import torch

from dada_det.augment import OPERATION_NAMES, OPERATIONS, RANGES
from dada_det.augment.operations import box_of, describe, operation_index, value_of
from tests.messages import refused

# (operation, magnitude, sign): value under "strength", value under "autoaugment", from the table of the design.
TABLE = {
    ("ShearX", 0.25, -1): (-0.075, 0.15), ("ShearY", 1.0, 1): (0.3, 0.3), ("TranslateX", 0.5, 1): (0.225, 0.0),
    ("TranslateY", 0.0, -1): (0.0, 0.45), ("Rotate", 0.75, -1): (-22.5, -15.0), ("Solarize", 0.25, 1): (192.0, 64.0),
    ("Posterize", 0.3, -1): (6.0, 5.0), ("Posterize", 1.0, 1): (4.0, 8.0), ("Contrast", 0.5, -1): (0.55, 1.0),
    ("Color", 1.0, 1): (1.9, 1.9), ("Brightness", 1.0, -1): (0.1, 1.9), ("Sharpness", 0.0, 1): (1.0, 0.1),
    ("Cutout", 0.5, -1): (0.1, 0.1),
}


def test_the_order_is_the_order_of_design():
    assert OPERATION_NAMES == ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "AutoContrast", "Invert",
                               "Equalize", "Solarize", "Posterize", "Contrast", "Color", "Brightness", "Sharpness",
                               "Cutout")
    assert {spec.kind for spec in OPERATIONS.values()} == {"lookup", "affine", "color", "sharpness", "box"}


@pytest.mark.parametrize(("name", "magnitude", "sign"), TABLE)
def test_value_of_numbers_and_of_tensors(name, magnitude, sign):
    index = operation_index(name)
    for ranges, expected in zip(RANGES, TABLE[name, magnitude, sign], strict=True):
        assert value_of(index, magnitude, sign, ranges) == pytest.approx(expected, abs=1e-12)
        row = value_of(torch.tensor([index]), torch.tensor([magnitude]).double(), torch.tensor([sign]).double(), ranges)
        assert row.dtype == torch.float64
        assert row.item() == pytest.approx(expected, abs=1e-7)


def test_numbers_and_tensors_share_one_arithmetic():
    generator = torch.Generator().manual_seed(0)
    operations = torch.randint(0, 15, (200,), generator=generator)
    magnitudes = torch.rand(200, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (200,), generator=generator).double() * 2 - 1
    for ranges in RANGES:
        rows = value_of(operations, magnitudes, signs, ranges).tolist()
        triples = zip(operations.tolist(), magnitudes.tolist(), signs.tolist(), strict=True)
        assert rows == [value_of(*triple, ranges) for triple in triples]


def test_box_corners():
    assert box_of(0.2, 0.5, 0.5, 20, 10) == (8, 3, 12, 7)
    assert box_of(0.2, 0.0, 0.99, 20, 10)[:2] == (0, 7)
    x0, y0, x1, y1 = box_of(0.0, 0.5, 0.5, 20, 10)
    assert x1 < x0 and y1 < y0


def test_describe_speaks_real_units():
    assert describe("Rotate", 0.4, "strength") == "Rotate ±12°"
    assert describe("Posterize", 0.3, "autoaugment") == "Posterize 5 bits"
    assert describe("Solarize", 0.25, "strength") == "Solarize ≥192"
    assert describe("Contrast", 0.5, "strength") == "Contrast ×0.55 or 1.45"
    assert describe("Contrast", 0.5, "autoaugment") == "Contrast ×1.00"
    assert describe("TranslateX", 0.25, "autoaugment") == "TranslateX ±22 %"
    assert describe("ShearY", 1.0, "strength") == "ShearY ±0.30"
    assert describe("Invert", 0.5, "strength") == "Invert"
    assert describe("Cutout", 1.0, "strength") == "Cutout 20 %"


def test_unknown_operation_is_one_sentence():
    with refused("'Shear'", "ShearX, ShearY"):
        operation_index("Shear")
