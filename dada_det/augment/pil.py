"""The same operations on one PIL image, with Pillow's own functions, for loader workers."""

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from dada_det.augment.operations import CUTOUT_COLOR, OPERATION_NAMES, OPERATIONS, box_of, matrix_of


def apply_operation_pil(image: Image.Image, operation: int, value: float, center: tuple[float, float]) -> Image.Image:
    """One operation on one RGB image; `value` comes from `value_of`, `center` is Cutout's (x, y) in 0..1."""
    name = OPERATION_NAMES[operation]
    if OPERATIONS[name].kind == "affine":
        return image.transform(image.size, Image.Transform.AFFINE, matrix_of(operation, value, *image.size),
                               Image.Resampling.NEAREST)
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(value)
    if name in _WITHOUT_MAGNITUDE:
        return _WITHOUT_MAGNITUDE[name](image)
    if name == "Solarize":
        # Pillow compares levels with the threshold as it is; only its annotation asks for a whole number.
        return ImageOps.solarize(image, value)  # type: ignore[arg-type]
    if name == "Posterize":
        return ImageOps.posterize(image, int(value))
    return _cutout(image, value, center)


def _cutout(image: Image.Image, value: float, center: tuple[float, float]) -> Image.Image:
    x0, y0, x1, y1 = box_of(value, *center, *image.size)
    image = image.copy()
    if x1 >= x0:
        ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), CUTOUT_COLOR)
    return image


_ENHANCERS = {"Contrast": ImageEnhance.Contrast, "Color": ImageEnhance.Color, "Brightness": ImageEnhance.Brightness,
              "Sharpness": ImageEnhance.Sharpness}
_WITHOUT_MAGNITUDE = {"AutoContrast": ImageOps.autocontrast, "Invert": ImageOps.invert, "Equalize": ImageOps.equalize}
