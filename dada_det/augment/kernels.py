"""The operations on a batch in which every image has its own: one kernel a kind, and no loop over images.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, K slots. Images are uint8.
The arithmetic is Pillow's (C sources Geometry.c, Blend.c and Filter.c), level for level; lookups are in tables.py.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dada_det.augment.operations import CUTOUT_COLOR, OPERATIONS, box_of, matrix_of
from dada_det.augment.rows import update
from dada_det.augment.tables import grey, look_up, lookup_tables, mix
from dada_det.devices import move_all


def apply_operations(images_BCHW: Tensor, operations_BK: Tensor, values_BK: Tensor, centers_BK2: Tensor) -> Tensor:
    """Applies K operations to each image, one after the other.

    An image has one operation a slot. The lookups of two slots are one table, which is applied between the other kernels of
    the first slot and those of the second.

    Args:
        images_BCHW: uint8 [B,3,H,W].
        operations_BK: long, -1 for none, on the images' device or on the CPU, like the next two. From the CPU each kernel
            computes only the images that have its operation; on a GPU all, as counting them would wait for the device.
        values_BK: float64 from `value_of`.
        centers_BK2: float64 in 0..1, Cutout's (x, y).

    Returns:
        A new contiguous uint8 [B,3,H,W].
    """
    device, (height, width) = images_BCHW.device, images_BCHW.shape[2:]
    images_BCHW = images_BCHW.clone(memory_format=torch.contiguous_format)
    kinds_BK = _kinds(operations_BK.device)[operations_BK]
    numbers_BK, values_BK, centers_BK2 = move_all((operations_BK, values_BK, centers_BK2), device)
    lines = sampling_lines(numbers_BK, values_BK, width, height)
    corners_BK4 = torch.stack(box_of(values_BK, centers_BK2[..., 0], centers_BK2[..., 1], width, height), 2)
    for slot in range(operations_BK.shape[1]):
        kinds_B, factors_B = kinds_BK[:, slot], values_BK[:, slot]
        images_BCHW = update(images_BCHW, kinds_B == KINDS.index("affine"), affine, images_BCHW,
                             *(line[:, slot] for line in lines))
        images_BCHW = update(images_BCHW, kinds_B == KINDS.index("color"), color, images_BCHW, factors_B)
        images_BCHW = update(images_BCHW, kinds_B == KINDS.index("sharpness"), sharpness, images_BCHW, factors_B)
        images_BCHW = update(images_BCHW, kinds_B == KINDS.index("box"), box, images_BCHW, corners_BK4[:, slot])
        if slot % 2 == 0:
            pair = slice(slot, slot + 2)
            tables_BCL = lookup_tables(images_BCHW, operations_BK[:, pair], values_BK[:, pair])
            has_lookup_B = (kinds_BK[:, pair] == KINDS.index("lookup")).any(1)
            images_BCHW = update(images_BCHW, has_lookup_B, look_up, images_BCHW, tables_BCL)
    return images_BCHW


KINDS = ("affine", "color", "sharpness", "box", "lookup")


@lru_cache(maxsize=8)
def _kinds(device: torch.device) -> Tensor:
    """The kind of every operation as its place in KINDS, long [16]; the last one, which -1 reads, is "none"."""
    return torch.tensor([KINDS.index(spec.kind) for spec in OPERATIONS.values()] + [-1], device=device)


def smooth(images_BCHW: Tensor) -> Tensor:
    """ImageFilter.SMOOTH, uint8 [B,3,H,W]: (sum of the 3x3 + 4 · centre) / 13, rounded; the border is left as it is."""
    smoothed = images_BCHW.clone()
    if min(images_BCHW.shape[2:]) >= 3:
        total = avg_pool2d(images_BCHW.float(), 3, stride=1, divisor_override=1).add_(images_BCHW[:, :, 1:-1, 1:-1], alpha=4)
        # (total + 6) // 13 for whole numbers; the half more keeps the reciprocal's error away from the next one.
        smoothed[:, :, 1:-1, 1:-1] = total.add_(6.5).mul_(1 / 13)
    return smoothed


def color(images_BCHW: Tensor, factors_B: Tensor) -> Tensor:
    """Color: a blend with the image's grey."""
    return mix(grey(images_BCHW), images_BCHW, factors_B[:, None, None, None])


def sharpness(images_BCHW: Tensor, factors_B: Tensor) -> Tensor:
    """Sharpness: a blend with the image's 3x3 smooth."""
    return mix(smooth(images_BCHW), images_BCHW, factors_B[:, None, None, None])


def affine(images_BCHW: Tensor, x_BW: Tensor, x_BH: Tensor, y_BH: Tensor, y_BW: Tensor) -> Tensor:
    """ShearX/Y, TranslateX/Y, Rotate: PIL's nearest sampling at the points of `sampling_lines`, black outside."""
    height, width = images_BCHW.shape[2:]
    x_BHW = (x_BW[:, None, :] + x_BH[:, :, None]).bitwise_right_shift_(16).clamp_(-1, width)
    y_BHW = (y_BH[:, :, None] + y_BW[:, None, :]).bitwise_right_shift_(16).clamp_(-1, height)
    # A black frame of one pixel takes every point outside: its rows are width + 2 long, its corner is point (-1, -1).
    framed_BCN = pad(images_BCHW, (1, 1, 1, 1)).flatten(2)
    source_BHW = x_BHW.add_(y_BHW, alpha=width + 2).add_(width + 3)
    source_BCN = source_BHW.long().flatten(1)[:, None].expand(-1, 3, -1)  # one index for the three channels
    return framed_BCN.gather(2, source_BCN).view_as(images_BCHW)


def sampling_lines(operations_BK: Tensor, values_BK: Tensor, width: int, height: int) -> tuple[Tensor, ...]:
    """The points that the output pixels read.

    Returns:
        Four int32 tensors in 16.16 fixed point, [B,K,W], [B,K,H], [B,K,H], [B,K,W]. Output pixel (x, y) reads column
        first[x] + second[y] and row third[y] + fourth[x] (Geometry.c, affine_fixed). This fits into 32 bits for images of
        up to 20,000 pixels a side. Under an operation that is no geometry each pixel reads itself.
    """
    a, b, c, d, e, f = (number[..., None] for number in
                        matrix_of(operations_BK, values_BK, width, height, torch.cos, torch.sin))
    columns, rows = (torch.arange(side, device=values_BK.device) for side in (width, height))
    first, third = _fix(a) * columns + _fix(c + a * 0.5 + b * 0.5), _fix(e) * rows + _fix(f + d * 0.5 + e * 0.5)
    # Without shear PIL calls another function (ImagingScaleAffine), which adds 1.0 from column to column in float64.
    straight = (b == 0) & (d == 0)
    first = torch.where(straight, _walk(c + 0.5, width), first)
    third = torch.where(straight, _walk(f + 0.5, height), third)
    return first.int(), (_fix(b) * rows).int(), third.int(), (_fix(d) * columns).int()


def _fix(number: Tensor) -> Tensor:
    return (number * 65536.0 + 0.5).floor().long()


def _walk(start: Tensor, steps: int) -> Tensor:
    ones = torch.ones_like(start).expand(*start.shape[:-1], steps - 1)
    return torch.cat([start, ones], -1).cumsum(-1).floor().long() << 16


def box(images_BCHW: Tensor, corners_B4: Tensor) -> Tensor:
    """Cutout: a filled square between the corners of `box_of`."""
    height, width = images_BCHW.shape[2:]
    x0, y0, x1, y1 = corners_B4[..., None].unbind(1)
    columns, rows = (torch.arange(side, device=images_BCHW.device) for side in (width, height))
    inside_BHW = ((rows >= y0) & (rows <= y1))[:, :, None] & ((columns >= x0) & (columns <= x1))[:, None, :]
    return torch.where(inside_BHW[:, None], _cutout_color(images_BCHW.device), images_BCHW)


@lru_cache(maxsize=8)
def _cutout_color(device: torch.device) -> Tensor:
    """uint8 [3,1,1], kept on the device."""
    return torch.tensor(CUTOUT_COLOR, dtype=torch.uint8, device=device)[:, None, None]
