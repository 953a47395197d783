"""From the bytes of an image file to upright RGB pixels, with Pillow; of a JPEG no more pixels than are needed.

Pillow, because it reads every format, and up to a crop as a PIL image that a policy can take torchvision and OpenCV are no
faster, and simplejpeg by 5 to 8 % (tools/bench/pretrain.py --decode). libjpeg-turbo decodes at 1/2, 1/4 and 1/8 of the size
by taking fewer coefficients of each block.
"""

import io
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
LYING = (5, 6, 7, 8)  # values of EXIF's orientation with which width and height change places

# Several photographs of ImageNet carry damaged EXIF data; their pixels are fine.
warnings.filterwarnings("ignore", message="(?i).*corrupt EXIF", category=UserWarning)


def load_image(source: Source, at_least: int | None = None) -> Image.Image:
    """The image as RGB, upright by its EXIF rotation; grey, CMYK, palette and 16-bit images are converted.

    With `at_least`, a JPEG may come back smaller, both sides >= `at_least` pixels: it decodes several times faster.
    Raises OSError where the file does not decode or is truncated.
    """
    with _damage_is_oserror(source):
        image = _opened(source)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return _upright_rgb(image)


def load_part(source: Source, size: int, window: Callable[[int, int], Box], interpolation: str = "bilinear") -> Image.Image:
    """The part window(width, height) of the upright image as `size` x `size` pixels, in RGB (antialiased).

    window: asked once, with the size of the whole image. A JPEG is decoded at the smallest of its scales at which the part
    still has `size` pixels a side. Raises OSError as load_image does, and what `window` raises.
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
    """The part `box` of the image as `size` x `size` pixels (antialiased; interpolation: a name of Pillow's)."""
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
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("P", "LA", "PA"):  # a palette's transparency needs the detour
        image = image.convert("RGBA")
    return image.convert("RGB")


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
