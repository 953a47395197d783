"""Decodes image files to upright RGB pixels, with Pillow; a JPEG only as large as it is needed.

Why Pillow: it reads every format. Torchvision and OpenCV are no faster up to a PIL crop, simplejpeg by 5 to 8 %
(tools/bench/pretrain.py --decode). libjpeg-turbo decodes at 1/2, 1/4 and 1/8 of the size by using fewer coefficients of each
block.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

Source = bytes | str | Path  # an image file: its bytes, or where it is
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
SCALES = (8, 4, 2)  # at which libjpeg decodes a part of the pixels
BITS = (8, 10, 12, 14, 16)  # that cameras and scanners store in 16
LYING = (5, 6, 7, 8)  # values of EXIF's orientation with which width and height change places

# Several photographs of ImageNet carry damaged EXIF data; their pixels are fine.
warnings.filterwarnings("ignore", message="(?i).*corrupt EXIF", category=UserWarning)


def load_image(source: Source, at_least: int | None = None) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation.

    Grey, CMYK and palette images, and those of other than 8 bits, are converted.

    Args:
        source: the bytes of a file, or its path.
        at_least: a JPEG may come back smaller, with both sides >= `at_least` pixels; it decodes several times faster.

    Raises:
        OSError: the file does not decode or is truncated.
    """
    return load_sized(source, at_least)[0]


def load_sized(source: Source, at_least: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The image as load_image gives it, and the width and height in pixels of the whole of it, upright."""
    with _damage_is_oserror(source):
        image = _opened(source)
        width, height = image.size
        lying = isinstance(image, JpegImageFile) and image.getexif().get(ExifTags.Base.Orientation) in LYING
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        upright = _upright_rgb(image)
        if not isinstance(image, JpegImageFile):  # which alone may have been decoded smaller
            return upright, upright.size
        return upright, (height, width) if lying else (width, height)


def load_part(source: Source, size: int, window: Callable[[int, int], Box], interpolation: str = "bilinear") -> Image.Image:
    """The part window(width, height) of the upright image as `size` x `size` pixels, in RGB (antialiased).

    Args:
        window: called once with the size of the whole image. A JPEG is decoded at the smallest of its scales at which the
            part still has `size` pixels a side.

    Raises:
        OSError: the file does not decode; and what `window` raises.
    """
    with _damage_is_oserror(source):
        image = _opened(source)
        if not isinstance(image, JpegImageFile):  # which has one scale only
            image = _upright_rgb(image)
        lying = image.getexif().get(ExifTags.Base.Orientation) in LYING
    width, height = image.size[::-1] if lying else image.size
    left, top, right, bottom = window(width, height)
    scale = next((scale for scale in SCALES if min(right - left, bottom - top) >= scale * size), 1)
    with _damage_is_oserror(source):
        image.draft(None, (image.width // scale, image.height // scale))  # does nothing to what is decoded
        image = _upright_rgb(image)
    across, down = image.width / width, image.height / height
    return resized(image, size, (left * across, top * down, right * across, bottom * down), interpolation)


def resized(image: Image.Image, size: int, box: Box, interpolation: str = "bilinear") -> Image.Image:
    """The part `box` of the image as `size` x `size` pixels, antialiased.

    Args:
        interpolation: a name of Pillow's.
    """
    return image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)


def _opened(source: Source) -> Image.Image:
    """The image, its header read and its pixels not; read from memory, so nothing has to be closed."""
    return Image.open(io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes()))


def _upright_rgb(image: Image.Image) -> Image.Image:
    """The image decoded, turned and converted, in place where that will do."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):  # Pillow would clip the values at 255 instead of scaling them
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode in ("P", "LA", "PA"):  # a palette's transparency needs the detour
        image = image.convert("RGBA")
    return image.convert("RGB")


def _eight_bits(values_HW: np.ndarray) -> np.ndarray:
    """Whole or real numbers of any range as uint8.

    The range is the first of 0..1 (real numbers only), 8, 10, 12, 14 and 16 bits that holds all values. It is the image's
    own if a value is negative, or beyond 16 bits, or if all fill less than an eighth of the range. OSError: a value is not
    finite.
    """
    low, high = float(values_HW.min()), float(values_HW.max())
    if not math.isfinite(high - low):
        raise OSError("the image holds values that are not finite")
    whole = bool(np.issubdtype(values_HW.dtype, np.integer) or ((values_HW == np.floor(values_HW)).all() and high > 1))
    if whole and low >= 0:
        bits = next((bits for bits in BITS if high < 2 ** bits), None)
        if bits is not None and high >= 2 ** bits / 8:
            return (values_HW.astype(np.int64) >> bits - 8).astype(np.uint8)
    top = 1.0 if low >= 0 and 1 / 8 <= high <= 1 and not whole else high
    bottom = min(low, 0.0)
    return ((values_HW.astype(np.float64) - bottom) * (255 / ((top - bottom) or 1))).round().astype(np.uint8)


@contextmanager
def _damage_is_oserror(source: Source) -> Iterator[None]:
    """Pillow's readers raise SyntaxError, struct.error, ValueError, .. on damaged files; all become OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        name = "an image" if isinstance(source, bytes) else source
        raise OSError(f"cannot decode {name}: {error}") from error
