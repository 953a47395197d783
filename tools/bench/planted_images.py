"""Images with a planted shift: a third trains, a third is transformed by one operation and validates, a third is unseen.

N images, C = 3 channels, S = 16 px. Images uint8 [N,3,S,S], labels long [N]. scikit-learn's digits need its package (dev).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dada_det.augment import apply_operation
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.data.folders import ImageList, scan_folder
from dada_det.data.imagenet import decode
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.data.splits import train_and_val
from dada_det.errors import UserError

SIDE = 16
STRENGTH = {"Solarize": 0.8}  # 0.95 would invert everything; all others are planted at 0.95 of their range
DARKER_ONLY = ("Contrast", "Brightness")  # planted at their low factor alone
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])  # PIL's grey, towards which Color blends
AUTOAUGMENT_LOW = 0.025  # the factor 1 - 0.9 * 0.95 in the ranges 0.1 + 1.8 m, where a sign changes nothing


def digits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Handwritten digits, enlarged to 16 px and tinted: the label is the shape."""
    shapes_N1SS, labels_N = _shapes()
    n = len(labels_N)
    tints = 0.4 + 0.6 * torch.rand(n, 3, 1, 1, generator=generator)
    return shapes_N1SS * tints + 0.15 * torch.rand(n, 3, 1, 1, generator=generator), labels_N


def hues(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same shapes in one of six hues, little or much lighter than the grey around them: the label is both.

    What Color fades, Contrast fades too. But the lightness tells by itself after Color, and after Contrast only beside the
    strength of the hue: a network that has learned to look past the one is lost before the other.
    """
    shapes_N1SS, _ = _shapes()
    n = len(shapes_N1SS)
    hue_N, light_N = (torch.randint(0, k, (n,), generator=generator) for k in (6, 2))
    angle_N = 2 * torch.pi * (hue_N + 0.25 + 0.5 * torch.rand(n, generator=generator)) / 6
    colors_N3 = torch.cos(angle_N[:, None] + 2 * torch.pi * torch.arange(3) / 3)
    colors_N3 = (colors_N3 - (colors_N3 @ LUMINANCE)[:, None]) * (0.2 + 0.06 * torch.rand(n, 1, generator=generator))
    colors_N3 = colors_N3 + (0.08 + 0.16 * light_N + 0.03 * torch.rand(n, generator=generator))[:, None]
    grey_N111 = 0.2 + 0.1 * torch.rand(n, 1, 1, 1, generator=generator)
    noise_N3SS = 0.01 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return grey_N111 + shapes_N1SS * colors_N3[:, :, None, None] + noise_N3SS, 2 * hue_N + light_N


def details(generator: torch.Generator, n: int = 1797) -> tuple[Tensor, Tensor]:
    """One of eight fine patterns, one or two pixels wide, on a smooth background, faint or strong: the label is both.

    As with `hues`: the background tells by itself after Sharpness, and after Contrast only beside the pattern.
    """
    pattern_N, strong_N = (torch.randint(0, k, (n,), generator=generator) for k in (8, 2))
    smooth_N3SS = F.interpolate(torch.rand(n, 3, 3, 3, generator=generator), SIDE, mode="bicubic")
    smooth_N3SS = smooth_N3SS - smooth_N3SS.mean((1, 2, 3), keepdim=True)
    smooth_N3SS = smooth_N3SS / smooth_N3SS.abs().amax((1, 2, 3), keepdim=True)
    smooth_N3SS = smooth_N3SS * (0.08 + 0.16 * strong_N)[:, None, None, None]
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    wide_x, wide_y = x // 2, y // 2
    patterns_8SS = torch.stack([x, y, x + y, wide_x + wide_y, wide_x + y, x + wide_y, wide_x, wide_y]) % 2 * 2.0 - 1
    phases_N11 = torch.randint(0, 2, (n, 1, 1), generator=generator) * 2 - 1
    amplitudes_N11 = 0.1 + 0.05 * torch.rand(n, 1, 1, generator=generator)
    noise_N3SS = 0.03 * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    fine_NSS = patterns_8SS[pattern_N] * phases_N11 * amplitudes_N11
    return 0.5 + smooth_N3SS + fine_NSS[:, None] + noise_N3SS, 2 * pattern_N + strong_N


MADE = "digits; six hues by lightness; eight patterns by background"  # names the sets in what was measured on them
SETS: dict[str, Callable[[torch.Generator], tuple[Tensor, Tensor]]] = {"Color": hues, "Sharpness": details}  # else digits


def _shapes() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits come with scikit-learn, which is not installed; "
                        "run `pip install scikit-learn`") from error
    data = load_digits()
    return F.interpolate(torch.tensor(data.images)[:, None].float() / 16, SIDE, mode="bilinear"), torch.tensor(data.target)


def images_for(operation: str, seed: int, folder: Path | None, side: int) -> tuple[Tensor, Tensor]:
    """The untransformed images in a random order: made ones, or those of `folder` at `side` px.

    `folder` is <class>/*, or train/<class>/* and val/<class>/*, whose images are then taken together.
    """
    generator = generator_for(seed, 11)
    if folder is None:
        pixels, labels_N = SETS.get(operation, digits)(generator)
        images = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    else:
        images, labels_N = _photographs(folder, side)
    order = torch.randperm(len(labels_N), generator=generator)
    return images[order], labels_N[order]


def _lists(folder: Path) -> tuple[ImageList, ...]:
    return train_and_val(folder, None) if (folder / "train").is_dir() else (scan_folder(folder),)


def source(folder: Path | None) -> str:
    """What a file says of the images that its rows were measured on: the folder's name and a hash of its files."""
    return MADE if folder is None else f"{folder.name}, {'/'.join(listed.hash()[:12] for listed in _lists(folder))}"


def _photographs(folder: Path, side: int) -> tuple[Tensor, Tensor]:
    lists = _lists(folder)
    return (torch.cat([decode(listed, side, workers=1)[0] for listed in lists]),
            torch.tensor([label for listed in lists for label in listed.labels]))


def plant(operation: str, seed: int, folder: Path | None = None, side: int = SIDE) -> tuple[MemoryImages, ...]:
    """(training third as it is, validation third transformed, unseen third transformed the same way).

    Raises UserError where chance leaves the training third without a class.
    """
    images, labels_N = images_for(operation, seed, folder, side)
    third, generator = len(images) // 3, generator_for(seed, 12)
    if missing := len(labels_N.unique()) - len(labels_N[:third].unique()):
        raise UserError(f"{folder} has too few images for a third of them to train: with seed {seed} it lacks {missing} of "
                        f"{len(labels_N.unique())} classes; give classes of twenty images or more")
    signs_N = (torch.rand(len(images), generator=generator) < 0.5).float() * 2 - 1
    if operation in DARKER_ONLY:
        signs_N = -torch.ones(len(images))
    strength = STRENGTH.get(operation, 0.95)
    moved = apply_operation(images, operation, strength, signs_N, ranges="strength", generator=generator)
    return tuple(MemoryImages(source[part * third:(part + 1) * third], labels_N[part * third:(part + 1) * third])
                 for part, source in enumerate((images, moved, moved)))


def oracle(operation: str) -> Policy:
    """The planted operation at its magnitude with probability 1/2: what a perfect search could say."""
    low = operation in DARKER_ONLY
    magnitude = AUTOAUGMENT_LOW if low else STRENGTH.get(operation, 0.95)
    only = SubPolicy(1.0, (Operation(operation, probability=0.5, magnitude=magnitude),))
    return Policy("autoaugment" if low else "strength", (only,), {"source": "oracle"})


def write_folders(root: Path, **parts: MemoryImages) -> Path:
    """root/<part>/<label>/*.png, so that a command can read them."""
    for part, images in parts.items():
        for index, (image_CHW, label) in enumerate(zip(images.images_NCHW, images.labels_N.tolist(), strict=True)):
            path = root / part / f"{label:03d}" / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(path)
    return root
