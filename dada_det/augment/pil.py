"""The same operations on one PIL image, for loader workers: Pillow's own functions, or a faster road to their pixels.

Shear, Rotate and Cutout are Pillow's own, for which nothing faster was found.
Shape legend: H x W pixels of 4 bytes, as Pillow stores RGB; the fourth is padding.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance

from dada_det.augment.operations import CUTOUT_COLOR, OPERATION_NAMES, OPERATIONS, box_of, matrix_of

ROUNDING = 1e-4  # a bound on what cv2's or Pillow's blend may be off by: four float32 roundings below 512 are 6e-5
CUT = ROUNDING - 0.5  # rounding what lies this much lower is cutting to whole levels


def apply_operation_pil(image: Image.Image, operation: int, value: float, center: tuple[float, float]) -> Image.Image:
    """Applies one operation to one RGB image.

    Args:
        image: stays as it is.
        operation: index into OPERATION_NAMES.
        value: from `value_of`.
        center: Cutout's (x, y) in 0..1.

    Returns:
        The new image, or `image` itself where nothing changes.
    """
    name = OPERATION_NAMES[operation]
    if OPERATIONS[name].kind == "affine":
        return _affine(image, matrix_of(operation, value, *image.size))
    return _cutout(image, value, center) if name == "Cutout" else _OTHERS[name](image, value)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Image.transform, nearest and black outside; a shift alone is a crop that reaches beyond the image."""
    a, b, shift_x, d, e, shift_y = matrix
    if (a, b, d, e) == (1, 0, 0, 1):
        # Pillow adds 1.0 from pixel to pixel: beside a whole number its sum decides which pixel is read.
        left, top = shift_x + 0.5, shift_y + 0.5
        if all(1e-6 < start % 1 < 1 - 1e-6 for start in (left, top)):
            left, top = math.floor(left), math.floor(top)
            return image.crop((left, top, left + image.width, top + image.height))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H,W,4], read-only; a copy in Pillow's own layout takes half the time of np.asarray's [H,W,3]."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, image.width, 4)


def _image(pixels_HW4: np.ndarray) -> Image.Image:
    height, width = pixels_HW4.shape[:2]
    return Image.frombytes("RGB", (width, height), pixels_HW4, "raw", "RGBX")


def _autocontrast(image: Image.Image, value: float) -> Image.Image:
    """ImageOps.autocontrast: the darkest level becomes 0, the lightest 255; a channel of one level stays.

    Most photographs reach from 0 to 255 in every channel, and stay as they are.
    """
    rows = _pixels(image).reshape(image.height, -1)  # numpy is fast along the first axis of long rows
    low_3 = rows.min(0).reshape(-1, 4).min(0)[:3].tolist()
    high_3 = rows.max(0).reshape(-1, 4).max(0)[:3].tolist()
    if low_3 == [0, 0, 0] and high_3 == [255, 255, 255]:
        return image
    table: list[int] = []
    for low, high in zip(low_3, high_3, strict=True):
        scale = 255.0 / (high - low) if high > low else 1.0
        table += (_LEVELS * scale + (-low * scale if high > low else 0.0)).clip(0, 255).astype(np.uint8).tolist()
    return image.point(table)


def _equalize(image: Image.Image, value: float) -> Image.Image:
    """ImageOps.equalize: levels spread by the channel's cumulative histogram, in whole numbers."""
    histogram = image.histogram()
    table: list[int] = []
    for start in (0, 256, 512):
        counts = histogram[start:start + 256]
        step = (sum(counts) - next(filter(None, reversed(counts)), 0)) // 255
        spread = accumulate(counts[:-1], initial=step // 2)
        table += [below // step for below in spread] if step else range(256)
    return image.point(table)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    """ImageOps.solarize: levels of at least the threshold (0..256) become 255 - level, which flips all their bits."""
    import cv2

    pixels_HW4 = _pixels(image)
    above_HW4 = cv2.threshold(pixels_HW4, math.ceil(threshold) - 1, 255, cv2.THRESH_BINARY)[1]
    return _image(cv2.bitwise_xor(above_HW4, pixels_HW4, dst=above_HW4))


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """ImageOps.posterize: the upper bits (4..8) of each level."""
    return _image(_pixels(image) & np.uint8(256 - 2 ** (8 - int(bits))))


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    """ImageEnhance.Contrast: a blend with the mean of the image's grey, half a level rounded up."""
    import cv2

    grey_HW = np.asarray(image.convert("L"))
    return _blend_with_level(int(cv2.sumElems(grey_HW)[0] / grey_HW.size + 0.5), image, factor)


def _blend_with_level(level: int, image: Image.Image, factor: float) -> Image.Image:
    import cv2

    if factor <= 1 or not cuts_alike(factor):  # up to 1 Pillow's blend is twice as fast as beyond
        return Image.blend(Image.new("RGB", image.size, (level, level, level)), image, factor)
    pixels_HW4 = _pixels(image)
    return _image(cv2.addWeighted(pixels_HW4, factor, pixels_HW4, 0.0, (1.0 - factor) * level + CUT))


def _color(image: Image.Image, factor: float) -> Image.Image:
    """ImageEnhance.Color: a blend with the image's grey."""
    import cv2

    if factor <= 1 or not cuts_alike(factor):
        return ImageEnhance.Color(image).enhance(factor)
    grey_HW4 = cv2.cvtColor(np.asarray(image.convert("L")), cv2.COLOR_GRAY2RGBA)
    return _image(cv2.addWeighted(_pixels(image), factor, grey_HW4, 1.0 - factor, CUT))


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    """ImageEnhance.Sharpness: a blend with ImageFilter.SMOOTH, which leaves the border as it is.

    cv2's sum and Pillow's round alike: thirteenths lie at least 1/26 away from half a level.
    """
    import cv2

    pixels_HW4 = _pixels(image)
    smooth_HW4 = cv2.filter2D(pixels_HW4, -1, _SMOOTH)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth_HW4[edge] = pixels_HW4[edge]
    if not cuts_alike(factor):
        return Image.blend(_image(smooth_HW4), image, factor)
    return _image(cv2.addWeighted(pixels_HW4, factor, smooth_HW4, 1.0 - factor, CUT))


@lru_cache(maxsize=1024)  # a policy without spread has a few dozen factors
def cuts_alike(factor: float) -> bool:
    """Whether cv2.addWeighted gives the pixels of Image.blend for this factor.

    Pillow cuts to whole levels; cv2 rounds, so it is given half a level less. A blend is a whole level plus factor · d with
    d in -255..255. If none of these 511 numbers lies closely below a whole level, float32's rounding cannot make the two
    differ. Round factors such as 1.3, which float32 does not hold exactly, do lie there; of random ones one in twenty.
    """
    parts = float(np.float32(factor)) * np.arange(-255, 256)
    return bool((parts - np.floor(parts)).max() <= 1 - 2 * ROUNDING)


def _cutout(image: Image.Image, value: float, center: tuple[float, float]) -> Image.Image:
    x0, y0, x1, y1 = box_of(value, *center, *image.size)
    image = image.copy()
    if x1 >= x0:
        ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), CUTOUT_COLOR)
    return image


_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_OTHERS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": _autocontrast,
    "Invert": lambda image, value: ImageChops.invert(image),
    "Equalize": _equalize,
    "Solarize": _solarize,
    "Posterize": _posterize,
    "Contrast": _contrast,
    "Color": _color,
    "Brightness": lambda image, factor: _blend_with_level(0, image, factor),
    "Sharpness": _sharpness,
}
