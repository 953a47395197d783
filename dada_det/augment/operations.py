"""The fifteen operations: name -> kind, ranges, and what a magnitude means in degrees, pixels, bits or factors.

Every function here takes Python numbers (one PIL image) and tensors (a batch) alike, so that both paths share one
arithmetic. Names and order are DADA's (Li et al., ECCV 2020); the order fixes the 105 sub-policies.
Shape legend: B images, 15 operations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dada_det.errors import UserError

RANGES = ("strength", "autoaugment")
CUTOUT_COLOR = (125, 123, 114)


class Range(NamedTuple):
    """value = constant + sign · (base + slope · magnitude); unmirrored ranges ignore the sign."""

    constant: float
    base: float
    slope: float
    mirrored: float  # 1.0 or 0.0, a number so that it can be gathered for a batch


@dataclass(frozen=True)
class OperationSpec:
    """One row of the table: the kind of kernel, the unit of its value, and its range under each of RANGES."""

    kind: str  # the kernel that does it: "lookup", "affine", "color", "sharpness" or "box"
    unit: str  # how `describe` writes the value
    strength: Range
    autoaugment: Range

    def range(self, ranges: str) -> Range:
        return self.strength if ranges == "strength" else self.autoaugment


def _geometry(unit: str, most: float) -> OperationSpec:
    return OperationSpec("affine", unit, Range(0.0, 0.0, most, 1.0), Range(0.0, -most, 2 * most, 1.0))


def _factor(kind: str) -> OperationSpec:
    return OperationSpec(kind, "factor", Range(1.0, 0.0, 0.9, 1.0), Range(0.0, 0.1, 1.8, 0.0))


def _plain(kind: str, unit: str, strength: tuple[float, float], autoaugment: tuple[float, float]) -> OperationSpec:
    return OperationSpec(kind, unit, Range(0.0, *strength, 0.0), Range(0.0, *autoaugment, 0.0))


OPERATIONS: dict[str, OperationSpec] = {
    "ShearX": _geometry("shear", 0.3),
    "ShearY": _geometry("shear", 0.3),
    "TranslateX": _geometry("share", 0.45),
    "TranslateY": _geometry("share", 0.45),
    "Rotate": _geometry("degrees", 30.0),
    "AutoContrast": _plain("lookup", "", (0.0, 0.0), (0.0, 0.0)),
    "Invert": _plain("lookup", "", (0.0, 0.0), (0.0, 0.0)),
    "Equalize": _plain("lookup", "", (0.0, 0.0), (0.0, 0.0)),
    "Solarize": _plain("lookup", "threshold", (256.0, -256.0), (0.0, 256.0)),
    "Posterize": _plain("lookup", "bits", (8.0, -4.0), (4.0, 4.0)),
    "Contrast": _factor("lookup"),
    "Color": _factor("color"),
    "Brightness": _factor("lookup"),
    "Sharpness": _factor("sharpness"),
    "Cutout": _plain("box", "share", (0.0, 0.2), (0.0, 0.2)),
}
OPERATION_NAMES: tuple[str, ...] = tuple(OPERATIONS)
INDEX: dict[str, int] = {name: index for index, name in enumerate(OPERATION_NAMES)}
_RANGES_OF = {ranges: [spec.range(ranges) for spec in OPERATIONS.values()] for ranges in RANGES}


def operation_index(name: str) -> int:
    """The row of `name` in the table.

    Raises:
        UserError: there is no such operation; the sentence lists the names.
    """
    if not isinstance(name, str) or name not in INDEX:
        raise UserError(f"{name!r} is no operation; choose among {', '.join(OPERATION_NAMES)}")
    return INDEX[name]


def check_ranges(ranges: str) -> str:
    if ranges not in RANGES:
        raise UserError(f"{ranges!r} is no table of ranges; choose {' or '.join(RANGES)}")
    return ranges


@lru_cache(maxsize=16)
def _range_table(ranges: str, device: torch.device) -> Tensor:
    """Range of every operation, [4, 15] float64; kept on the device so that a batch needs no copy to it."""
    return torch.tensor(_RANGES_OF[ranges], dtype=torch.float64).T.to(device)


def value_of(operation: Any, magnitude: Any, sign: Any, ranges: str) -> Any:
    """What a magnitude means: the one place where it becomes a value in the operation's own unit.

    Args:
        operation: index into OPERATION_NAMES, int or long [B].
        magnitude: 0..1, float or float64 [B].
        sign: +1 or -1, float or float64 [B].
        ranges: "strength" or "autoaugment".

    Returns:
        A float or float64 [B]: shear per pixel, share of width or height (Translate, Cutout), degrees (Rotate), threshold
        0..256 (Solarize), whole bits 4..8 (Posterize), blend factor (Contrast, Color, Brightness, Sharpness); 0 where
        there is nothing to choose.
    """
    if isinstance(operation, Tensor):
        constant, base, slope, mirrored = _range_table(ranges, operation.device)[:, operation].unbind()
    else:
        constant, base, slope, mirrored = _RANGES_OF[ranges][operation]
    value = constant + (1 + mirrored * (sign - 1)) * (base + slope * magnitude)
    return value - (operation == INDEX["Posterize"]) * (value % 1)


def matrix_of(operation: Any, value: Any, width: int, height: int, cos: Callable = math.cos,
              sin: Callable = math.sin) -> tuple[Any, ...]:
    """The matrix of a geometric operation, as PIL's affine transform takes it.

    Args:
        operation, value: as in and from `value_of`, numbers or [B].
        width, height: of the image, in pixels.
        cos, sin: of the kind that `value` needs (math's or torch's).

    Returns:
        (a, b, c, d, e, f), numbers or [B]: output pixel (x, y) reads input (ax + by + c, dx + ey + f). The identity for an
        operation that is no geometry. Rotate turns about the centre, as Image.rotate does (PIL rounds sine and cosine
        to 15 digits, far below its 16.16 fixed point).
    """
    def only(name: str) -> Any:
        return (operation == INDEX[name]) * value

    angle = -only("Rotate") * (math.pi / 180)
    cosine, sine = cos(angle), sin(angle)
    shift_x = cosine * (-width / 2) + sine * (-height / 2) + width / 2
    shift_y = -sine * (-width / 2) + cosine * (-height / 2) + height / 2
    return (cosine, only("ShearX") + sine, only("TranslateX") * width + shift_x,
            only("ShearY") - sine, cosine, only("TranslateY") * height + shift_y)


def box_of(value: Any, center_x: Any, center_y: Any, width: int, height: int) -> tuple[Any, ...]:
    """The square that Cutout fills.

    The upper left corner is clipped to the image before the side is added, as in DADA's released code. What reaches past
    the right or lower edge is not drawn.

    Args:
        value: the side as a share of the width, number or [B].
        center_x, center_y: 0..1 of width and height, numbers or [B].
        width, height: of the image, in pixels.

    Returns:
        (x0, y0, x1, y1) in whole pixels, all four edges included, as ImageDraw.rectangle fills them. Side 0 gives an
        empty box, x1 < x0.
    """
    side = value * width
    x0, y0 = center_x * width - side / 2, center_y * height - side / 2
    x0, y0 = (x0 > 0) * x0 // 1, (y0 > 0) * y0 // 1
    empty = side <= 0
    return x0, y0, (x0 + side) // 1 - 1 * empty, (y0 + side) // 1 - 1 * empty


def describe(name: str, magnitude: float, ranges: str) -> str:
    """The operation with its value in real units, such as "Rotate ±12°" or "Posterize 5 bits"."""
    spec = OPERATIONS[name]
    plus, minus = (value_of(INDEX[name], magnitude, sign, ranges) for sign in (1.0, -1.0))
    mirror = "±" if spec.range(ranges).mirrored else ""
    text = {
        "": "",
        "shear": f" {mirror}{abs(plus):.2f}",
        "share": f" {mirror}{100 * abs(plus):.0f} %",
        "degrees": f" {mirror}{abs(plus):.0f}°",
        "threshold": f" ≥{plus:.0f}",
        "bits": f" {plus:.0f} bits",
        "factor": f" ×{minus:.2f} or {plus:.2f}" if mirror else f" ×{plus:.2f}",
    }[spec.unit]
    return name + text
