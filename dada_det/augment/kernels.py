"""The operations on a batch in which every image has its own: one kernel a kind, and no loop over images.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, 256 grey levels. Images are uint8.
Operation -1 means "none": every kernel leaves such an image, and those of the other kinds, as they are.
The arithmetic is Pillow's (C sources Geometry.c, Blend.c, Filter.c, Convert.c and ImageOps.py), level for level.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from dada_det.augment.operations import CUTOUT_COLOR, INDEX, OPERATIONS, box_of, matrix_of


def apply_operations(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """One operation for each image: uint8 [B,3,H,W] in and out; the input is left unchanged.

    operations_B: long, -1 for none; values_B: float64 from `value_of`; centers_B2: float64 in 0..1, Cutout's (x, y).
    A GPU runs every kernel on the whole batch, which needs no word from the device about who takes part.
    """
    result_BCHW = images_BCHW.clone()
    kinds_B = _kinds(operations_B.device)[operations_B]
    for kind, kernel in enumerate(KERNELS.values()):
        rows = members(kinds_B == kind)
        if isinstance(rows, slice):
            result_BCHW = kernel(result_BCHW, operations_B, values_B, centers_B2)
        elif len(rows):
            result_BCHW[rows] = kernel(images_BCHW[rows], operations_B[rows], values_B[rows], centers_B2[rows])
    return result_BCHW


def members(mask_B: Tensor) -> Tensor | slice:
    """The rows worth computing: on the CPU those in the mask, on a device all of them (counting would wait for it)."""
    return mask_B.nonzero()[:, 0] if mask_B.device.type == "cpu" else slice(None)


@lru_cache(maxsize=8)
def _kinds(device: torch.device) -> Tensor:
    """The kind of every operation as its place in KERNELS, long [16]; the last one, which -1 reads, is "none"."""
    order = list(KERNELS)
    return torch.tensor([order.index(spec.kind) for spec in OPERATIONS.values()] + [-1], device=device)


def lookup(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """AutoContrast, Invert, Equalize, Solarize, Posterize, Contrast, Brightness: one table [256] a channel."""
    tables = lookup_tables(images_BCHW, operations_B, values_B)
    return tables.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def lookup_tables(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor) -> Tensor:
    """uint8 [B,3,256]: the new level of each level; the identity where the operation is no lookup."""
    levels = torch.arange(256, device=images_BCHW.device)
    tables = levels.to(torch.uint8).expand(len(images_BCHW), 3, 256).contiguous()
    makers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "AutoContrast": autocontrast_tables,
        "Invert": lambda images, values: 255 - levels,
        "Equalize": equalize_tables,
        "Solarize": lambda images, values: torch.where(levels < values, levels, 255 - levels),
        "Posterize": lambda images, values: levels & (256 - 2 ** (8 - values).long()),
        "Contrast": lambda images, values: mix(_grey_mean(images), levels, values),
        "Brightness": lambda images, values: mix(torch.zeros_like(levels), levels, values),
    }
    for name, maker in makers.items():
        mask_B = operations_B == INDEX[name]
        rows = members(mask_B)
        if isinstance(rows, slice) or len(rows):
            made = maker(images_BCHW[rows], values_B[rows, None, None]).to(torch.uint8)
            tables[rows] = torch.where(mask_B[rows, None, None], made, tables[rows])
    return tables


def autocontrast_tables(images_BCHW: Tensor, values_B11: Tensor) -> Tensor:
    """ImageOps.autocontrast: the darkest level becomes 0, the lightest 255; a channel of one level stays."""
    levels = torch.arange(256, device=images_BCHW.device, dtype=torch.float64)
    low = images_BCHW.amin((2, 3)).double()[..., None]
    high = images_BCHW.amax((2, 3)).double()[..., None]
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)  # 255.0 / tensor would multiply by a reciprocal
    stretched = (levels * scale + -low * scale).clamp(0, 255).floor()
    return torch.where(high > low, stretched, levels)


def equalize_tables(images_BCHW: Tensor, values_B11: Tensor) -> Tensor:
    """ImageOps.equalize: levels spread by the channel's cumulative histogram, in whole numbers."""
    counts = histogram(images_BCHW)
    levels = torch.arange(256, device=counts.device)
    highest = images_BCHW.amax((2, 3)).long()[..., None]
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, levels)


def histogram(images_BCHW: Tensor) -> Tensor:
    """Pixels of each level, long [B,3,256]."""
    pixels = images_BCHW.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=pixels.device)
    return counts.scatter_add_(2, pixels, torch.ones_like(pixels))


def grey(images_BCHW: Tensor) -> Tensor:
    """PIL's convert("L"), int32 [B,1,H,W]: ITU-R 601-2 luma in 16-bit fixed point, rounded."""
    red, green, blue = images_BCHW.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _grey_mean(images_BCHW: Tensor) -> Tensor:
    """ImageEnhance.Contrast's one grey level of each image, long [B,1,1]: the mean, half a level rounded up."""
    luma = grey(images_BCHW).flatten(2)
    return (2 * luma.sum(2, keepdim=True) + luma.shape[2]) // (2 * luma.shape[2])


def smooth(images_BCHW: Tensor) -> Tensor:
    """ImageFilter.SMOOTH, int32 [B,3,H,W]: (sum of the 3x3 + 4 · centre) / 13, rounded; the border is left as it is."""
    pixels = images_BCHW.int()
    if min(images_BCHW.shape[2:]) >= 3:
        columns = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
        total = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
        # (total + 6) // 13 for every total up to 13 · 255, without the slow integer division.
        pixels[:, :, 1:-1, 1:-1] = ((total + 6) * 5042) >> 16
    return pixels


def color(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """Color: a blend with the image's grey."""
    factors_B = torch.where(operations_B == INDEX["Color"], values_B, 1.0)  # 1 is the image itself, to the level
    return mix(grey(images_BCHW), images_BCHW, factors_B[:, None, None, None])


def sharpness(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """Sharpness: a blend with the image's 3x3 smooth."""
    factors_B = torch.where(operations_B == INDEX["Sharpness"], values_B, 1.0)
    return mix(smooth(images_BCHW), images_BCHW, factors_B[:, None, None, None])


def mix(degenerate: Tensor, original: Tensor, factor: Tensor) -> Tensor:
    """Image.blend: degenerate + factor · (original - degenerate) in float32, clipped and cut to uint8.

    degenerate: int32 or long, original: whole levels, both 0..255; factor: float64, used as the float32 it is in C.
    """
    # Two roundings, as Pillow's C does; a fused multiply-add would move single pixels by one level.
    product = (original - degenerate) * factor.float()
    return product.add_(degenerate).clamp_(0, 255).to(torch.uint8)


def affine(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """ShearX/Y, TranslateX/Y, Rotate: PIL's nearest sampling in 16.16 fixed point, black outside."""
    height, width = images_BCHW.shape[2:]
    x_BHW, y_BHW = sample_points(operations_B, values_B, width, height)
    outside_BHW = (x_BHW < 0) | (x_BHW >= width) | (y_BHW < 0) | (y_BHW >= height)
    source_BHW = y_BHW.mul_(width).add_(x_BHW).masked_fill_(outside_BHW, height * width)
    with_black_BCN = torch.nn.functional.pad(images_BCHW.flatten(2), (0, 1))  # one black pixel behind the last one
    source_BCN = source_BHW.long().flatten(1)[:, None].expand(-1, 3, -1)
    return with_black_BCN.gather(2, source_BCN).view_as(images_BCHW)


def sample_points(operations_B: Tensor, values_B: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The pixel that each output pixel reads, x and y, int32 [B,H,W], outside the image too (Geometry.c, affine_fixed).

    PIL's fixed point fits into 32 bits for images of up to 20,000 pixels a side.
    """
    matrix = torch.stack(matrix_of(operations_B, values_B, width, height, torch.cos, torch.sin))[..., None]
    a, b, c, d, e, f = matrix
    columns, rows = (torch.arange(side, device=values_B.device) for side in (width, height))
    x_BW = _fix(a) * columns + _fix(c + a * 0.5 + b * 0.5)
    y_BH = _fix(e) * rows + _fix(f + d * 0.5 + e * 0.5)
    # Without shear PIL takes another road (ImagingScaleAffine), which adds 1.0 from column to column in float64.
    straight_B1 = (b == 0) & (d == 0)
    x_BW = torch.where(straight_B1, _walk(c + 0.5, width), x_BW).int()
    y_BH = torch.where(straight_B1, _walk(f + 0.5, height), y_BH).int()
    x_BHW = x_BW[:, None, :] + (_fix(b) * rows).int()[:, :, None]
    y_BHW = y_BH[:, :, None] + (_fix(d) * columns).int()[:, None, :]
    return x_BHW.bitwise_right_shift_(16), y_BHW.bitwise_right_shift_(16)


def _fix(number: Tensor) -> Tensor:
    return (number * 65536.0 + 0.5).floor().long()


def _walk(start_B1: Tensor, steps: int) -> Tensor:
    ones = torch.ones_like(start_B1).expand(-1, steps - 1)
    return torch.cat([start_B1, ones], 1).cumsum(1).floor().long() << 16


def box(images_BCHW: Tensor, operations_B: Tensor, values_B: Tensor, centers_B2: Tensor) -> Tensor:
    """Cutout: a filled square, see `box_of`."""
    height, width = images_BCHW.shape[2:]
    side_B = (operations_B == INDEX["Cutout"]) * values_B
    corners = box_of(side_B, centers_B2[:, 0], centers_B2[:, 1], width, height)
    x0, y0, x1, y1 = (corner[:, None] for corner in corners)
    columns, rows = (torch.arange(side, device=images_BCHW.device) for side in (width, height))
    inside_BHW = ((rows >= y0) & (rows <= y1))[:, :, None] & ((columns >= x0) & (columns <= x1))[:, None, :]
    return torch.stack([images_BCHW[:, channel].masked_fill(inside_BHW, level)
                        for channel, level in enumerate(CUTOUT_COLOR)], 1)


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
KERNELS: dict[str, Kernel] = {"lookup": lookup, "affine": affine, "color": color,
                             "sharpness": sharpness, "box": box}
