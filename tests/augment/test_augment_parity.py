"""Every operation against Pillow, called here with DESIGN's formulas written out once more."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from dada_det.augment import OPERATION_NAMES, RANGES, Draws, apply_draws_pil, apply_operation

SIZES = [(32, 32), (33, 17), (1, 40), (40, 1), (1, 1), (2, 2), (3, 3), (50, 64)]
MAGNITUDES = [0.0, 1.0, 0.5, 0.25, 0.75, 0.1, 0.3, 0.62]
AFFINE = Image.Transform.AFFINE


def enhance(kind, image, m, s, strength):
    return kind(image).enhance(1 + s * 0.9 * m if strength else 0.1 + 1.8 * m)


def signed(m, s, most, strength):
    return s * (most * m) if strength else s * (-most + 2 * most * m)


def cutout(image, m, center):
    side = 0.2 * m * image.width
    if side <= 0:
        return image
    x0 = int(max(0, center[0] * image.width - side / 2))
    y0 = int(max(0, center[1] * image.height - side / 2))
    image = image.copy()
    corners = (x0, y0, min(image.width, x0 + side), min(image.height, y0 + side))
    ImageDraw.Draw(image).rectangle(corners, fill=(125, 123, 114))
    return image


def reference(image, name, m, s, ranges, center):
    """What DESIGN's table says, in Pillow's words."""
    strength = ranges == "strength"
    shear, shift = signed(m, s, 0.3, strength), signed(m, s, 0.45, strength)
    operations = {
        "ShearX": lambda: image.transform(image.size, AFFINE, (1, shear, 0, 0, 1, 0)),
        "ShearY": lambda: image.transform(image.size, AFFINE, (1, 0, 0, shear, 1, 0)),
        "TranslateX": lambda: image.transform(image.size, AFFINE, (1, 0, shift * image.width, 0, 1, 0)),
        "TranslateY": lambda: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, shift * image.height)),
        "Rotate": lambda: image.rotate(signed(m, s, 30, strength)),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Invert": lambda: ImageOps.invert(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Solarize": lambda: ImageOps.solarize(image, 256 * (1 - m) if strength else 256 * m),
        "Posterize": lambda: ImageOps.posterize(image, int(8 - 4 * m) if strength else int(4 + 4 * m)),
        "Contrast": lambda: enhance(ImageEnhance.Contrast, image, m, s, strength),
        "Color": lambda: enhance(ImageEnhance.Color, image, m, s, strength),
        "Brightness": lambda: enhance(ImageEnhance.Brightness, image, m, s, strength),
        "Sharpness": lambda: enhance(ImageEnhance.Sharpness, image, m, s, strength),
        "Cutout": lambda: cutout(image, m, center),
    }
    return operations[name]()


def to_pil(image_CHW):
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pictures(height, width, count, generator):
    """Random, smooth, constant, gradient and few-level images, uint8 [count,3,H,W], one kind after the other."""
    noise = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    coarse = torch.rand(count, 3, 3, 3, generator=generator)
    natural = (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 255).byte()
    constant = noise[:, :, :1, :1].expand(-1, -1, height, width)
    gradient = (torch.arange(width) * 255 // max(1, width - 1)).byte().expand(count, 3, height, width)
    return torch.stack([noise, natural, constant, gradient, noise // 64 * 64], 1).flatten(0, 1)[:count].contiguous()


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_batch_and_pil_equal_pillow(name, ranges):
    generator = torch.Generator().manual_seed(1)
    for height, width in SIZES:
        magnitudes = torch.tensor(MAGNITUDES + torch.rand(7, generator=generator).tolist()).repeat(2)
        signs = torch.tensor([1.0, -1.0]).repeat_interleave(len(magnitudes) // 2)
        images = pictures(height, width, len(magnitudes), generator)
        centers = torch.rand(len(magnitudes), 2, generator=generator)
        batch = apply_operation(images, name, magnitudes, signs, ranges, centers)
        for index, image in enumerate(images):
            m, s, center = magnitudes[index].item(), signs[index].item(), centers[index].tolist()
            expected = to_tensor(reference(to_pil(image), name, m, s, ranges, center))
            place = f"{name} {height}x{width} magnitude {m} sign {s} image {index}"
            assert torch.equal(batch[index], expected), f"batch: {place}"
            draws = Draws(torch.tensor([[OPERATION_NAMES.index(name)]]), torch.ones(1, 1, dtype=torch.bool),
                          magnitudes[None, None, index], signs[None, None, index], centers[None, None, index])
            assert torch.equal(to_tensor(apply_draws_pil(to_pil(image), draws, ranges)), expected), f"PIL: {place}"


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Equalize", "Sharpness"])
def test_at_the_size_of_imagenet(name):
    generator = torch.Generator().manual_seed(2)
    images = pictures(224, 224, 10, generator)
    magnitudes = torch.rand(10, generator=generator)
    batch = apply_operation(images, name, magnitudes)
    for index, image in enumerate(images):
        expected = reference(to_pil(image), name, magnitudes[index].item(), 1.0, "autoaugment", (0, 0))
        assert torch.equal(batch[index], to_tensor(expected))


@pytest.mark.parametrize("width", [10, 25, 30, 50, 90, 100, 250])
def test_translations_that_end_between_two_pixels(width):
    """Round magnitudes give shifts of k + 1/2, where PIL's own running sum decides (0.45 · 10 and the like)."""
    image = torch.arange(width, dtype=torch.uint8).expand(3, 1, width)
    magnitudes = torch.arange(101, dtype=torch.float64) / 100
    for ranges in RANGES:
        for sign in (1.0, -1.0):
            batch = apply_operation(image.expand(101, 3, 1, width), "TranslateX", magnitudes,
                                    torch.full((101,), sign), ranges)
            for m, moved in zip(magnitudes.tolist(), batch, strict=True):
                assert torch.equal(moved, to_tensor(reference(to_pil(image), "TranslateX", m, sign, ranges, (0, 0))))


def test_on_real_photographs(shared):
    paths = sorted((shared / "data" / "imagenette-mini" / "val").rglob("*.JPEG"))[::40]
    assert paths
    for path in paths:
        image = Image.open(path).convert("RGB")
        for name in OPERATION_NAMES:
            got = apply_operation(to_tensor(image)[None], name, torch.tensor([0.8]), torch.tensor([-1.0]), "strength",
                                  torch.tensor([[0.5, 0.25]]))
            m = torch.tensor(0.8).item()
            assert torch.equal(got[0], to_tensor(reference(image, name, m, -1.0, "strength", (0.5, 0.25)))), name


def test_strength_zero_is_the_identity_where_there_is_one():
    images = pictures(20, 30, 5, torch.Generator().manual_seed(3))
    for name in OPERATION_NAMES:
        same = torch.equal(apply_operation(images, name, torch.zeros(5), None, "strength"), images)
        assert same == (name not in ("AutoContrast", "Invert", "Equalize")), name
