"""The text of the exported code: one template of drawing, and for each target a frame and a line an operation.

Names with a $ are filled in by `dada_det.augment.export`. Lines of the operations see `image`, `value` (in the operation's
own unit) and `center` (Cutout's (x, y) in 0..1).
"""

from string import Template

DRAWING = Template('''
# What a magnitude m in 0..1 means: value = constant + (sign if mirrored else 1) * (base + slope * m).
RANGES = {  # operation: (constant, base, slope, mirrored)
$ranges
}
SUB_POLICIES = [  # (weight, [(operation, probability, magnitude, spread), ...])
$sub_policies
]
CUMULATIVE = list(itertools.accumulate(weight for weight, _ in SUB_POLICIES))


def draw():
    """What one image gets: [(operation, value in its own unit, Cutout's centre (x, y) in 0..1), ...].

    All chance comes from torch's global generator, so torch.manual_seed repeats it.
    """
    uniform = torch.rand(9)
    _, operations = SUB_POLICIES[bisect.bisect_right(CUMULATIVE, uniform[0].item() * CUMULATIVE[-1])]
    $magnitudes
    drawn = []
    for slot, (name, probability, _, _) in enumerate(operations):
        if uniform[1 + slot] < probability:
            constant, base, slope, mirrored = RANGES[name]
            sign = -1.0 if mirrored and uniform[3 + slot] < 0.5 else 1.0
            value = constant + sign * (base + slope * magnitudes[slot].item())
            drawn.append((name, value, uniform[5 + 2 * slot : 7 + 2 * slot].tolist()))
    return drawn


def cutout_box(side, center, width, height):
    """Left, top, right and lower edge of the square in pixels, the last two included (ImageDraw.rectangle)."""
    left, top = (int(max(0.0, place)) for place in (center[0] * width - side / 2, center[1] * height - side / 2))
    return left, top, int(left + side), int(top + side)

''')
MAGNITUDES = {
    "fixed": "magnitudes = torch.tensor([operation[2] for operation in operations])",
    "uniform": "magnitudes = torch.rand(2)  # every strength is equally likely, whatever the sub-policy says",
    "spread": """means, spreads = (torch.tensor([operation[column] for operation in operations]) for column in (2, 3))
    around = torch.sigmoid(torch.logit(means) + spreads * torch.randn(2)[: len(operations)])
    magnitudes = torch.where(spreads > 0, around, means)""",
}

TORCHVISION = Template('''$head
# transform = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), AugmentationPolicy(), v2.ToImage(),
#                         v2.ToDtype(torch.float32, scale=True)])

import bisect
import itertools
import math

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
$drawing
def affine(image, shear=(0.0, 0.0), shift=(0.0, 0.0)):
    """Output (x, y) reads (x + shear[0] * y + shift[0] * width, y + shear[1] * x + shift[1] * height); black outside."""
    height, width = F.get_size(image)
    pixels = [shift[0] * width, shift[1] * height]
    if not isinstance(image, Image.Image):  # v2's kernel and Pillow part where a shift ends between two pixels
        pixels = [math.floor(pixel + 0.5) for pixel in pixels]
    return F.affine(image, angle=0.0, translate=[-pixel for pixel in pixels], scale=1.0,
                    shear=[math.degrees(math.atan(slope)) for slope in shear], center=[0.0, 0.0])


def cutout(image, value, center):
    height, width = F.get_size(image)
    left, top, right, lower = cutout_box(value * width, center, width, height)
    color = torch.tensor($color, dtype=torch.uint8)[:, None, None]
    return F.erase(image, i=top, j=left, h=lower - top + 1, w=right - left + 1, v=color) if value > 0 else image


OPERATIONS = {
$operations
}
GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


class AugmentationPolicy(v2.Transform):
    """One draw a call. Takes PIL images and uint8 tensors [..., 3, H, W], so it stands before v2.ToDtype.

    Boxes and masks in the sample follow the geometry; v2.SanitizeBoundingBoxes drops boxes that left the image.
    """

    def make_params(self, flat_inputs):
        return {"drawn": draw()}

    def transform(self, inpt, params):
        is_image = isinstance(inpt, (Image.Image, tv_tensors.Image, tv_tensors.Video)) or type(inpt) is torch.Tensor
        if isinstance(inpt, Image.Image):
            inpt = inpt.convert("RGB")
        elif is_image and inpt.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, not {inpt.dtype}; put the policy before v2.ToDtype")
        for name, value, center in params["drawn"]:
            if is_image or name in GEOMETRY:
                inpt = OPERATIONS[name](inpt, value, center)
        return inpt


if __name__ == "__main__":  # python this_file.py IN OUT: one image through the policy
    import sys

    AugmentationPolicy()(Image.open(sys.argv[1])).save(sys.argv[2])
''')
TORCHVISION_OPERATIONS = {
    "ShearX": "affine(image, shear=(value, 0.0))", "ShearY": "affine(image, shear=(0.0, value))",
    "TranslateX": "affine(image, shift=(value, 0.0))", "TranslateY": "affine(image, shift=(0.0, value))",
    "Rotate": "F.rotate(image, value)", "AutoContrast": "F.autocontrast(image)", "Invert": "F.invert(image)",
    "Equalize": "F.equalize(image)",
    "Solarize": "F.solarize(image, value) if value <= 255 else image",  # v2 refuses more, which inverts nothing
    "Posterize": "F.posterize(image, int(value))", "Contrast": "F.adjust_contrast(image, value)",
    "Color": "F.adjust_saturation(image, value)", "Brightness": "F.adjust_brightness(image, value)",
    "Sharpness": "F.adjust_sharpness(image, value)", "Cutout": "cutout(image, value, center)",
}

TIMM = Template('''$head
# timm's create_transform takes the names of its own policies only, so this one joins behind the crop (hflip=0. for no flip):
# transform = timm.data.create_transform(224, is_training=True, color_jitter=None)
# transform.transforms.insert(1, AugmentationPolicy())

import bisect
import itertools

import torch
from PIL import Image, ImageDraw
from timm.data import auto_augment as aa

NEAREST_BLACK = {"resample": Image.Resampling.NEAREST, "fillcolor": (0, 0, 0)}
$drawing
def cutout(image, value, center):
    image = image.copy()
    if value > 0:
        ImageDraw.Draw(image).rectangle(cutout_box(value * image.width, center, *image.size), fill=$color)
    return image


OPERATIONS = {
$operations
}


class AugmentationPolicy:
    """One draw a call, on a PIL image, in the place of timm's AutoAugment."""

    def __call__(self, img):
        img = img.convert("RGB")
        for name, value, center in draw():
            img = OPERATIONS[name](img, value, center)
        return img


if __name__ == "__main__":  # python this_file.py IN OUT: one image through the policy
    import sys

    AugmentationPolicy()(Image.open(sys.argv[1])).save(sys.argv[2])
''')
TIMM_OPERATIONS = {
    "ShearX": "aa.shear_x(image, value, **NEAREST_BLACK)", "ShearY": "aa.shear_y(image, value, **NEAREST_BLACK)",
    "TranslateX": "aa.translate_x_rel(image, value, **NEAREST_BLACK)",
    "TranslateY": "aa.translate_y_rel(image, value, **NEAREST_BLACK)",
    "Rotate": "aa.rotate(image, value, **NEAREST_BLACK)", "AutoContrast": "aa.auto_contrast(image)",
    "Invert": "aa.invert(image)", "Equalize": "aa.equalize(image)", "Solarize": "aa.solarize(image, value)",
    "Posterize": "aa.posterize(image, int(value))", "Contrast": "aa.contrast(image, value)",
    "Color": "aa.color(image, value)", "Brightness": "aa.brightness(image, value)",
    "Sharpness": "aa.sharpness(image, value)", "Cutout": "cutout(image, value, center)",
}

MMPRETRAIN = Template('''$head
# Save it as augmentation_policy.py beside the config, and write into the config:
# custom_imports = dict(imports=['augmentation_policy'], allow_failed_imports=False)
# train_pipeline = [..., dict(type='RandomFlip', prob=0.5), dict(type='AugmentationPolicy'), dict(type='PackInputs')]

import bisect
import itertools

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageEnhance
$drawing
def pillow(image, function):
    """`function` of Pillow on a BGR array."""
    return np.ascontiguousarray(np.asarray(function(Image.fromarray(image[..., ::-1])))[..., ::-1])


def affine(image, *matrix):
    """Output (x, y) reads (a x + b y + c, d x + e y + f), nearest, black outside."""
    return pillow(image, lambda pil: pil.transform(pil.size, Image.Transform.AFFINE, matrix))


def cutout(image, value, center):
    height, width = image.shape[:2]
    left, top, right, lower = cutout_box(value * width, center, width, height)
    image = image.copy()
    if value > 0:
        image[top : lower + 1, left : right + 1] = $color[::-1]
    return image


OPERATIONS = {
$operations
}


@TRANSFORMS.register_module()
class AugmentationPolicy(BaseTransform):
    """One draw a call, on results["img"], uint8 [H, W, 3] in BGR as LoadImageFromFile gives it."""

    def transform(self, results):
        if results["img"].dtype != np.uint8:
            raise TypeError(f"images must be uint8, not {results['img'].dtype}; load them without to_float32")
        for name, value, center in draw():
            results["img"] = OPERATIONS[name](results["img"], value, center)
        return results


if __name__ == "__main__":  # python this_file.py IN OUT: one image through the policy
    import sys

    mmcv.imwrite(AugmentationPolicy()({"img": mmcv.imread(sys.argv[1])})["img"], sys.argv[2])
''')
MMPRETRAIN_OPERATIONS = {
    "ShearX": "affine(image, 1, value, 0, 0, 1, 0)", "ShearY": "affine(image, 1, 0, 0, value, 1, 0)",
    "TranslateX": "affine(image, 1, 0, value * image.shape[1], 0, 1, 0)",
    "TranslateY": "affine(image, 1, 0, 0, 0, 1, value * image.shape[0])",
    "Rotate": "pillow(image, lambda pil: pil.rotate(value))", "AutoContrast": "mmcv.auto_contrast(image)",
    "Invert": "mmcv.iminvert(image)", "Equalize": "mmcv.imequalize(image)", "Solarize": "mmcv.solarize(image, value)",
    "Posterize": "mmcv.posterize(image, int(value))",
    "Contrast": "pillow(image, lambda pil: ImageEnhance.Contrast(pil).enhance(value))",
    "Color": "pillow(image, lambda pil: ImageEnhance.Color(pil).enhance(value))",
    "Brightness": "mmcv.adjust_brightness(image, value)",
    "Sharpness": "pillow(image, lambda pil: ImageEnhance.Sharpness(pil).enhance(value))",
    "Cutout": "cutout(image, value, center)",
}

MMDET = Template('''$head
# It needs dada_det where the detector is trained; put `augmentation_policy` into train_pipeline behind RandomFlip.

custom_imports = dict(imports=['dada_det.engine.policy_transform'], allow_failed_imports=False)
augmentation_policy = dict(
    type='ApplyPolicy',
    policy=dict(
        $others,
        sub_policies=[
$sub_policies
        ]))
''')
