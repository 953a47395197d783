"""The fifteen operations in Pillow's words: what every kernel of this room is held against.

Formulas and ranges are those of DADA (Li et al., ECCV 2020) and its released code, written out here once more, without
operations.py and pil.py, so that a mistake there is not repeated here. Tests and tools/bench/ call it; nothing else does.
"""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

AFFINE = Image.Transform.AFFINE


def pillow_reference(image: Image.Image, name: str, magnitude: float, sign: float, ranges: str,
                     center: Sequence[float]) -> Image.Image:
    """One operation on an RGB image by Pillow alone.

    magnitude: 0..1; sign: +1 or -1; ranges: "strength" or "autoaugment"; center: Cutout's (x, y) in 0..1 of the image.
    """
    return _OPERATIONS[name](image, magnitude, sign, ranges == "strength", center)


def _signed(m: float, s: float, most: float, strength: bool) -> float:
    return s * (most * m) if strength else s * (-most + 2 * most * m)


def _factor(m: float, s: float, strength: bool) -> float:
    return 1 + s * 0.9 * m if strength else 0.1 + 1.8 * m


def _cutout(image: Image.Image, m: float, center: Sequence[float]) -> Image.Image:
    side = 0.2 * m * image.width
    if side <= 0:
        return image
    x0 = int(max(0, center[0] * image.width - side / 2))
    y0 = int(max(0, center[1] * image.height - side / 2))
    image = image.copy()
    corners = (x0, y0, min(image.width, x0 + side), min(image.height, y0 + side))
    ImageDraw.Draw(image).rectangle(corners, fill=(125, 123, 114))
    return image


# Arguments: image, m(agnitude), s(ign), whether the ranges are "strength", c(entre).
_OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "ShearX": lambda i, m, s, k, c: i.transform(i.size, AFFINE, (1, _signed(m, s, 0.3, k), 0, 0, 1, 0)),
    "ShearY": lambda i, m, s, k, c: i.transform(i.size, AFFINE, (1, 0, 0, _signed(m, s, 0.3, k), 1, 0)),
    "TranslateX": lambda i, m, s, k, c: i.transform(i.size, AFFINE, (1, 0, _signed(m, s, 0.45, k) * i.width, 0, 1, 0)),
    "TranslateY": lambda i, m, s, k, c: i.transform(i.size, AFFINE, (1, 0, 0, 0, 1, _signed(m, s, 0.45, k) * i.height)),
    "Rotate": lambda i, m, s, k, c: i.rotate(_signed(m, s, 30, k)),
    "AutoContrast": lambda i, m, s, k, c: ImageOps.autocontrast(i),
    "Invert": lambda i, m, s, k, c: ImageOps.invert(i),
    "Equalize": lambda i, m, s, k, c: ImageOps.equalize(i),
    "Solarize": lambda i, m, s, k, c: ImageOps.solarize(i, 256 * (1 - m) if k else 256 * m),
    "Posterize": lambda i, m, s, k, c: ImageOps.posterize(i, int(8 - 4 * m) if k else int(4 + 4 * m)),
    "Contrast": lambda i, m, s, k, c: ImageEnhance.Contrast(i).enhance(_factor(m, s, k)),
    "Color": lambda i, m, s, k, c: ImageEnhance.Color(i).enhance(_factor(m, s, k)),
    "Brightness": lambda i, m, s, k, c: ImageEnhance.Brightness(i).enhance(_factor(m, s, k)),
    "Sharpness": lambda i, m, s, k, c: ImageEnhance.Sharpness(i).enhance(_factor(m, s, k)),
    "Cutout": lambda i, m, s, k, c: _cutout(i, m, c),
}
