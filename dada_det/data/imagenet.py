"""Images in ImageNet's layout as tensors: all at once for the search, one by one for pretraining.

Shape suffixes: N images, C = 3 channels (RGB), H height, W width in pixels.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from dada_det.data.folders import ImageList, scan_folder, search_subset, stratified_halves
from dada_det.errors import UserError

__all__ = ["ImageFolder", "ImageList", "check_broken", "decode", "load_image", "scan_folder", "search_subset",
           "stratified_halves"]

CROP_AREA = (0.08, 1.0)  # Inception's crop (arXiv 1409.4842): share of the image and aspect ratio
CROP_RATIO = (3 / 4, 4 / 3)
VAL_SHARE = 224 / 256  # of the short side that the central crop of a validation image shows
BROKEN_SHARE = 0.01

# Several photographs of ImageNet carry damaged EXIF data; their pixels are fine.
warnings.filterwarnings("ignore", message="(?i).*corrupt EXIF", category=UserWarning)


def load_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """The image in `path` as RGB, upright by its EXIF rotation; grey, CMYK, palette and 16-bit images are converted.

    With `at_least`, a JPEG may come back smaller, both sides >= `at_least` pixels: it decodes several times faster.
    Raises OSError where the file does not decode or is truncated.
    """
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise SyntaxError, struct.error, ValueError, .. on damaged files
        raise OSError(f"cannot decode {path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("P", "LA", "PA"):  # a palette's transparency needs the detour
        image = image.convert("RGBA")
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int, share: float = 1.0) -> Image.Image:
    """Resizes the short side to size / share and takes the central size x size pixels, in one step."""
    side = min(image.size) * share
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3,H,W]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def decode(images: ImageList, size: int, workers: int) -> tuple[Tensor, list[str]]:
    """All images as uint8 [N,3,size,size] (short side resized, centre cropped), and the names of the broken ones.

    A broken file's place is taken by the next image of its class that decodes, so the labels stay right.
    `workers` threads decode; the result does not depend on their number.
    Raises UserError where more than 1 % (and at least two) are broken, or all images of a class.
    """
    pixels_NCHW = np.empty((len(images), 3, size, size), np.uint8)

    def fill(index: int) -> bool:
        try:
            image = load_image(images.path(index), at_least=size)
        except OSError:
            return False
        pixels_NCHW[index] = np.asarray(centre_square(image, size)).transpose(2, 0, 1)
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        fine = list(pool.map(fill, range(len(images))))
    broken = [index for index, good in enumerate(fine) if not good]
    check_broken([images.files[index] for index in broken], len(images), images.root)
    for index in broken:
        substitutes = [other for other in _rest_of_class(images, index) if fine[other]]
        if not substitutes:
            raise _class_is_broken(images, index)
        pixels_NCHW[index] = pixels_NCHW[substitutes[0]]
    return torch.from_numpy(pixels_NCHW), [images.files[index] for index in broken]


def check_broken(broken: Sequence[str], total: int, root: Path | str) -> None:
    """Raises UserError where at least two of `total` images, and more than 1 % of them, are broken."""
    if len(broken) >= 2 and len(broken) > BROKEN_SHARE * total:
        raise UserError(f"{len(broken)} of {total} images in {root} do not decode, more than 1 %: "
                        f"{', '.join(broken[:3])}{', ..' if len(broken) > 3 else ''}; repair or remove them")


def _rest_of_class(images: ImageList, index: int) -> list[int]:
    """The other images of the class of image `index`, from the one after it around to the one before it."""
    label = images.labels[index]
    members = [other for other, its_label in enumerate(images.labels) if its_label == label]
    place = members.index(index)
    return members[place + 1:] + members[:place]


def _class_is_broken(images: ImageList, index: int) -> UserError:
    name = images.classes[images.labels[index]]
    return UserError(f"no image of the class {name!r} in {images.root} decodes, such as {images.files[index]}; "
                     "repair them or remove the class")


def generator_for(*keys: int) -> torch.Generator:
    """A random stream of its own for each tuple of whole numbers, such as (seed, epoch, index)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


class ImageFolder(Dataset[dict[str, Any]]):
    """Images one by one, each {"image": uint8 [3,size,size], "label": int, "index": int, "broken": str}.

    train: a random crop and mirror, then `transform(image, generator=..)` on the PIL image.
    otherwise: the central 224/256 of the short side, without `transform`.
    Every random choice follows from (seed, epoch, index), so that a resumed run draws what it would have drawn.
    "broken" is "" or the name of the file at `index`, whose place the next image of its class has taken.
    """

    def __init__(self, images: ImageList, size: int, train: bool, transform: Callable[..., Any] | None = None,
                 seed: int = 0) -> None:
        self.images, self.size, self.train, self.transform, self.seed = images, size, train, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers must see it change

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The smallest random crop still has `size` pixels a side when the image has 4 * size.
        at_least = 4 * self.size if self.train else math.ceil(self.size / VAL_SHARE)
        try:
            image, broken = load_image(self.images.path(index), at_least), ""
        except OSError:
            image, broken = self._substitute(index, at_least), self.images.files[index]
        pixels = to_tensor(self._augment(image, index) if self.train else centre_square(image, self.size, VAL_SHARE))
        return {"image": pixels, "label": self.images.labels[index], "index": index, "broken": broken}

    def _substitute(self, index: int, at_least: int) -> Image.Image:
        for other in _rest_of_class(self.images, index):
            try:
                return load_image(self.images.path(other), at_least)
            except OSError:
                continue
        raise _class_is_broken(self.images, index)

    def _augment(self, image: Image.Image, index: int) -> Image.Image:
        generator = generator_for(self.seed, int(self._epoch), index)
        box = random_crop(image.width, image.height, generator)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if torch.rand((), generator=generator) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if self.transform is None else self.transform(image, generator=generator)


def random_crop(width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop with a uniform share of the area and a log-uniform aspect ratio.

    After ten draws that do not fit, the largest central crop within the ratios (as torchvision's RandomResizedCrop).
    """
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area_draw, ratio_draw, x_draw, y_draw in torch.rand(10, 4, generator=generator).tolist():
        area = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x_draw * (width - w + 1)), int(y_draw * (height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    w, h = (min(width, round(height * ratio)), min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
