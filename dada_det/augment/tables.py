"""The seven lookup operations as tables of 256 levels a channel; two in a row become one table.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, K slots, L = 256 grey levels.
The arithmetic is Pillow's (C sources Blend.c and Convert.c, and ImageOps.py), level for level.
"""

from functools import lru_cache

import torch
from torch import Tensor

from dada_det.augment.operations import INDEX
from dada_det.augment.rows import update


def look_up(images_BCHW: Tensor, tables_BCL: Tensor) -> Tensor:
    """Every level replaced by what the table of its image and channel says, uint8 [B,3,H,W]."""
    return tables_BCL.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def lookup_tables(images_BCHW: Tensor, operations_BK: Tensor, values_BK: Tensor) -> Tensor:
    """uint8 [B,3,256]: what the lookup operations of one slot, or of two one after the other, make of each level.

    Args:
        operations_BK: on the images' device or on the CPU (see `update`); one that is no lookup changes no level. In the
            second slot AutoContrast and Equalize see the histogram that the first table gives, Contrast the mean grey of the
            image that it gives.
    """
    stretched_BK, spread_BK, blended_BK, inverted_BK, cut_BK, darkened_BK = (
        operations_BK == INDEX[name]
        for name in ("AutoContrast", "Equalize", "Contrast", "Solarize", "Posterize", "Brightness"))
    inverted_BK |= operations_BK == INDEX["Invert"]  # Solarize with its value, 0
    counted_BK = stretched_BK | spread_BK
    steps_BKCL = _levels(images_BCHW.device).to(torch.uint8).repeat(*operations_BK.shape, 3, 1)
    # The tables that need no look at the image, of both slots at once.
    steps, values = steps_BKCL.flatten(0, 1), values_BK.flatten()[:, None, None]
    steps = update(steps, inverted_BK.flatten(), solarize_tables, values)
    steps = update(steps, cut_BK.flatten(), posterize_tables, values)
    steps = update(steps, darkened_BK.flatten(), brightness_tables, values)
    counts_BCL = torch.zeros_like(steps_BKCL[:, 0], dtype=torch.int32)
    counts_BCL = update(counts_BCL, counted_BK.any(1), histogram, images_BCHW)
    before: list[Tensor] = []  # the table of the slot before
    for slot, step_BCL in enumerate(steps.view_as(steps_BKCL).unbind(1)):
        if before:
            counts_BCL = update(counts_BCL, counted_BK[:, slot], pushed_forward, counts_BCL, *before)
        step_BCL = update(step_BCL, stretched_BK[:, slot], autocontrast_tables, counts_BCL)
        step_BCL = update(step_BCL, spread_BK[:, slot], equalize_tables, counts_BCL)
        step_BCL = update(step_BCL, blended_BK[:, slot], contrast_tables, values_BK[:, slot], images_BCHW, *before)
        before = [step_BCL.gather(2, table_BCL.long()) for table_BCL in before] or [step_BCL]
    return before[0]


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> Tensor:
    """0..255, int32; kept on the device."""
    return torch.arange(256, dtype=torch.int32, device=device)


def histogram(images_BCHW: Tensor) -> Tensor:
    """Pixels of each level, int32 [B,3,256]."""
    pixels = images_BCHW.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int32, device=pixels.device)
    return counts.scatter_add_(2, pixels, counts.new_ones(()).expand_as(pixels))


def pushed_forward(counts_BCL: Tensor, tables_BCL: Tensor) -> Tensor:
    """The histogram of an image after its tables, from the histogram before them."""
    return torch.zeros_like(counts_BCL).scatter_add_(2, tables_BCL.long(), counts_BCL)


def autocontrast_tables(counts_BCL: Tensor) -> Tensor:
    """ImageOps.autocontrast: the darkest level becomes 0, the lightest 255; a channel of one level stays."""
    levels, there = _levels(counts_BCL.device), counts_BCL > 0
    low = torch.where(there, levels, 255).amin(2, keepdim=True)
    high = torch.where(there, levels, 0).amax(2, keepdim=True)
    scale = torch.full_like(low, 255.0, dtype=torch.float64) / (high - low).clamp(min=1)  # 255.0 / x is a reciprocal
    stretched = (levels * scale + -low * scale).clamp_(0, 255).floor_()
    return torch.where(high > low, stretched, levels)


def equalize_tables(counts_BCL: Tensor) -> Tensor:
    """ImageOps.equalize: levels spread by the channel's cumulative histogram, in whole numbers."""
    levels = _levels(counts_BCL.device)
    up_to = counts_BCL.cumsum(2, dtype=torch.int32)
    highest = torch.where(counts_BCL > 0, levels, 0).amax(2, keepdim=True)
    step = (up_to[..., -1:] - counts_BCL.gather(2, highest.long())) // 255
    spread = ((step // 2 + up_to - counts_BCL) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, spread, levels)


def solarize_tables(thresholds_B11: Tensor) -> Tensor:
    """ImageOps.solarize: levels from the threshold on are inverted; threshold 0 is ImageOps.invert."""
    levels = _levels(thresholds_B11.device)
    return torch.where(levels < thresholds_B11, levels, 255 - levels)


def posterize_tables(bits_B11: Tensor) -> Tensor:
    """ImageOps.posterize: the leading bits stay."""
    dropped_B11 = (8 - bits_B11).int()
    return _levels(bits_B11.device) >> dropped_B11 << dropped_B11


def brightness_tables(factors_B11: Tensor) -> Tensor:
    """ImageEnhance.Brightness: a blend with black."""
    levels = _levels(factors_B11.device)
    return mix(torch.zeros_like(levels), levels, factors_B11)


def contrast_tables(factors_B: Tensor, images_BCHW: Tensor, tables_BCL: Tensor | None = None) -> Tensor:
    """ImageEnhance.Contrast: a blend with the mean grey, half a level rounded up, of the image after its tables."""
    luma = grey(images_BCHW if tables_BCL is None else look_up(images_BCHW, tables_BCL)).flatten(2)
    total_B11 = luma.sum(2, dtype=torch.float64, keepdim=True).long()
    mean_B11 = (2 * total_B11 + luma.shape[2]) // (2 * luma.shape[2])  # whole numbers: a GPU divides by reciprocals
    return mix(mean_B11, _levels(factors_B.device), factors_B[:, None, None])


def grey(images_BCHW: Tensor) -> Tensor:
    """PIL's convert("L"), whole numbers in float32 [B,1,H,W]: ITU-R 601-2 luma in 16-bit fixed point, rounded.

    Every sum stays below 2^24, up to which float32 holds whole numbers exactly.
    """
    red, green, blue = images_BCHW.float().unbind(1)
    luma = red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000)
    return luma.mul_(2**-16).floor_()[:, None]


def mix(degenerate: Tensor, original: Tensor, factor: Tensor) -> Tensor:
    """Image.blend: degenerate + factor · (original - degenerate) in float32, clipped and cut to uint8.

    Args:
        degenerate, original: whole levels 0..255 of any type.
        factor: float64, used as the float32 it is in C.
    """
    # Two roundings, as Pillow's C does; a fused multiply-add would move single pixels by one level.
    product = (original.float() - degenerate) * factor.float()
    return product.add_(degenerate).clamp_(0, 255).to(torch.uint8)
