"""The faster roads of the PIL path where Pillow's own function has corners: equal to it, and the input stays as it is."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dada_det.augment import OPERATION_NAMES, pil
from dada_det.augment.operations import INDEX
from dada_det.augment.pil import apply_operation_pil

SIZES = [(224, 224), (97, 131), (500, 333), (1, 300), (300, 1), (1, 1), (2, 5), (3, 3)]  # width, height
RANDOM_FACTORS = np.random.default_rng(0).uniform(0.1, 1.9, 300).astype(np.float32).tolist()


def noise(size, seed=0, low=0, high=256):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


def apply(image, name, value):
    return apply_operation_pil(image, INDEX[name], value, (0.5, 0.5))


def assert_same(found, expected):
    assert found.mode == expected.mode == "RGB" and found.size == expected.size
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_the_input_stays_as_it_is(name):
    image = noise((40, 30))
    before = image.tobytes()
    apply(image, name, 5.0)
    assert image.tobytes() == before


def test_solarize_at_every_threshold():
    image = noise((64, 64))
    for threshold in np.arange(0, 256.25, 0.25).tolist():
        assert_same(apply(image, "Solarize", threshold), ImageOps.solarize(image, threshold))


@pytest.mark.parametrize("size", SIZES)
def test_lookups_on_images_of_every_size(size):
    image = noise(size)
    assert_same(apply(image, "Invert", 0.0), ImageOps.invert(image))
    assert_same(apply(image, "Equalize", 0.0), ImageOps.equalize(image))
    for bits in (4, 5, 6, 7, 8):
        assert_same(apply(image, "Posterize", float(bits)), ImageOps.posterize(image, bits))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["Contrast", "Color", "Brightness", "Sharpness"])
def test_blends_at_round_and_random_factors(name, size):
    """Round factors are not whole in float32, so that products end just below or above a whole level."""
    for seed, factor in enumerate([0.1, 0.2, 0.3, 0.5, 0.64, 0.7, 1.0, 1.1, 1.3, 1.5, 1.7, 1.9, *RANDOM_FACTORS[:12]]):
        image = noise(size, seed)
        assert_same(apply(image, name, factor), getattr(ImageEnhance, name)(image).enhance(factor))


def test_where_cutting_is_rounding_half_a_level_lower_it_is_so_for_every_pair_of_levels():
    levels = np.arange(256, dtype=np.uint8)
    grey, colour = (np.repeat(plane.reshape(256, 256, 1), 3, 2) for plane in np.meshgrid(levels, levels))
    for factor in RANDOM_FACTORS:
        blended = np.asarray(Image.blend(Image.fromarray(grey), Image.fromarray(colour), factor))
        rounded = cv2.addWeighted(colour, factor, grey, 1 - factor, pil.CUT)
        assert pil.cuts_alike(factor) <= np.array_equal(rounded, blended), factor
    alike = [pil.cuts_alike(factor) for factor in RANDOM_FACTORS]
    assert 0.85 < np.mean(alike) < 1 and not pil.cuts_alike(1.3)  # both roads are taken


def test_shifts_that_end_beside_half_a_pixel():
    """Pillow's running sum decides there; elsewhere a crop does."""
    image = noise((90, 41))
    for pixels in (0.0, 0.5, 3.5, 10.5, 39.5, -0.5, -7.5, -40.5, 2.25, -13.75):
        for beside in (0.0, 1e-15, -1e-15, 1e-13, -1e-13, 1e-9, -1e-9, 1e-5, -1e-5):
            shift = pixels + beside
            for name, length, matrix in (("TranslateX", 90, (1, 0, shift / 90 * 90, 0, 1, 0)),
                                         ("TranslateY", 41, (1, 0, 0, 0, 1, shift / 41 * 41))):
                assert_same(apply(image, name, shift / length), image.transform(image.size, Image.Transform.AFFINE, matrix))


def test_contrast_where_the_mean_lies_between_two_levels():
    """The grey mean of two halves is k + 1/2, or one pixel's share away from it."""
    for level in range(0, 255, 5):
        for darker in (49, 50, 51):
            pixels = np.full((1, 100, 3), level + 1, np.uint8)
            pixels[:, :darker] = level
            image = Image.fromarray(pixels)
            assert_same(apply(image, "Contrast", 0.1), ImageEnhance.Contrast(image).enhance(0.1))


def test_autocontrast_of_every_range_of_levels():
    """Each channel with a range of its own; only 0..255 in all three channels leaves an image alone."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        low = generator.integers(0, 256, 3) * (generator.random(3) < 0.7)
        high = np.where(generator.random(3) < 0.7, generator.integers(low, 256), 255)
        pixels = generator.integers(low, high + 1, (7, 9, 3)).astype(np.uint8)
        pixels[0, 0], pixels[-1, -1] = low, high
        whole = pixels.copy()
        whole[0, 0], whole[-1, -1] = 0, 255
        for image in map(Image.fromarray, (pixels, whole)):
            assert_same(apply(image, "AutoContrast", 0.0), ImageOps.autocontrast(image))
