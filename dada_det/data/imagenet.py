"""Images in ImageNet's layout as tensors: all at once for the search, one by one for pretraining.

Shape suffixes: N images, C = 3 channels (RGB), H height, W width in pixels.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dada_det.data.arrays import ArrayImages
from dada_det.data.decode import Box, load_image, load_part, resized
from dada_det.data.folders import ImageList, is_first_process, say_passed_over
from dada_det.data.memory import MemoryImages, demand_room
from dada_det.data.random import generator_for
from dada_det.errors import UserError
from dada_det.untrusted import printable

CROP_AREA = (0.08, 1.0)  # Inception's crop (arXiv 1409.4842): share of the image and aspect ratio
CROP_RATIO = (3 / 4, 4 / 3)
VAL_SHARE = 224 / 256  # of the short side that the central crop of a validation image shows
MARGIN = 1 / VAL_SHARE  # side of an image kept in memory over the side of its crops
BROKEN_SHARE = 0.01


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3,H,W]."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def decode(images: ImageList, size: int, workers: int, interpolation: str = "bilinear") -> tuple[Tensor, list[str]]:
    """All images as uint8 [N,3,size,size] (short side resized, centre cropped), and the names of the broken ones.

    A broken file's place is taken by the next image of its class that decodes, so the labels stay right. `workers` threads
    decode; the result does not depend on their number.

    Raises:
        UserError: more than 1 % (and at least two) are broken, or all images of a class.
    """
    demand_room(len(images), size, images.root)
    pixels_NCHW = np.empty((len(images), 3, size, size), np.uint8)

    def fill(index: int) -> bool:
        try:
            image = load_part(images.read(index), size, central_square, interpolation)
        except OSError:
            return False
        pixels_NCHW[index] = np.asarray(image).transpose(2, 0, 1)
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


def decode_to_memory(images: ImageList, image_size: int, stage: str, interpolation: str = "bilinear",
                     crop_share: float = VAL_SHARE) -> MemoryImages:
    """Decodes all images on every core, so large that crops of `image_size` pixels have `crop_share` of their side.

    The first of several processes prints a line, headed by `stage`, about files that are passed over and one about images
    that do not decode.

    Raises:
        UserError: as `decode` does.
    """
    say_passed_over(images, stage)
    pixels_NCHW, broken = decode(images, round(image_size / crop_share), len(os.sched_getaffinity(0)), interpolation)
    if broken and is_first_process():
        print(f"{stage}  {len(broken)} of {len(images)} images in {images.root} did not decode and were replaced by the "
              f"next of their class: {', '.join(map(printable, broken[:3]))}", flush=True)
    return MemoryImages(pixels_NCHW, torch.tensor(images.labels))


def decodable(images: ImageList, image_size: int, stage: str, interpolation: str = "bilinear",
              crop_share: float = VAL_SHARE) -> tuple[ImageList, MemoryImages]:
    """decode_to_memory without the images that do not decode: (the list of the others, their pixels). A replacement would
    stand in the list twice, and a search could part the two.

    Raises:
        UserError: as `decode` does.
    """
    say_passed_over(images, stage)
    pixels_NCHW, broken = decode(images, round(image_size / crop_share), len(os.sched_getaffinity(0)), interpolation)
    if broken:
        if is_first_process():
            print(f"{stage}  {len(broken)} of {len(images)} images in {images.root} did not decode and are left out: "
                  f"{', '.join(map(printable, broken[:3]))}", flush=True)
        left_out = set(broken)
        rows = [row for row, name in enumerate(images.files) if name not in left_out]
        images, pixels_NCHW = images.select(rows), pixels_NCHW[rows]
    return images, MemoryImages(pixels_NCHW, torch.tensor(images.labels))


def check_broken(broken: Sequence[str], total: int, root: Path | str) -> None:
    """Raises UserError if at least two of `total` images, and more than 1 % of them, are broken."""
    if len(broken) >= 2 and len(broken) > BROKEN_SHARE * total:
        raise UserError(f"{len(broken)} of {total} images in {root} do not decode, more than 1 %: "
                        f"{', '.join(map(printable, broken[:3]))}{', ..' if len(broken) > 3 else ''}; repair or remove them")


def _rest_of_class(images: ImageList, index: int) -> list[int]:
    """The other images of the class of image `index`, from the one after it around to the one before it."""
    label = images.labels[index]
    members = [other for other, its_label in enumerate(images.labels) if its_label == label]
    place = members.index(index)
    return members[place + 1:] + members[:place]


def _class_is_broken(images: ImageList, index: int) -> UserError:
    name = images.classes[images.labels[index]]
    return UserError(f"no image of the class {name!r} in {images.root} decodes, such as {printable(images.files[index])}; "
                     "repair them or remove the class")


class ImageFolder(Dataset[dict[str, Any]]):
    """Images one by one, each {"image": uint8 [3,size,size], "label": int, "index": int, "broken": str}.

    Args:
        train: True: a random crop, a flip of every second image (unless mirror is False), then
            `transform(image, generator=..)` on the PIL image. False: the central `crop_share` of the short side.
        padding: None, or as for CIFAR a number of black pixels on each side. Then nothing is resized: the random crop is
            `size` x `size` pixels of the padded image, and other images are the central `size` x `size` pixels.

    Every random choice follows from (seed, epoch, index), so a resumed run draws what it would have drawn. "broken" is "" or
    the name of the file at `index`, which the next image of its class then replaces.
    """

    def __init__(self, images: ImageList | ArrayImages, size: int, train: bool,
                 transform: Callable[..., Any] | None = None, seed: int = 0, padding: int | None = None,
                 mirror: bool = True, interpolation: str = "bilinear", crop_share: float = VAL_SHARE) -> None:
        self.images, self.size, self.train, self.transform, self.seed = images, size, train, transform, seed
        self.padding, self.mirror, self.interpolation, self.crop_share = padding, mirror, interpolation, crop_share
        self.copy = 0  # number of the copy that is being made
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers must see it change

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`; from len(self) on these are more copies of the images, each with draws of its own."""
        images, broken = self.images, ""
        self.copy, index = divmod(index, len(images))
        if isinstance(images, ArrayImages):
            generator = self._generator(index)
            pixels_HWC = images.images_NCHW[index].permute(1, 2, 0).contiguous()
            image = self._cut(Image.fromarray(pixels_HWC.numpy()), generator)
        else:
            image, generator, broken = self._decoded(images, index)
        entries = {"label": images.labels[index], "index": index, "broken": broken}
        if self.train:
            if torch.rand((), generator=generator) < 0.5 and self.mirror:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image, drawn = self.augmented(image, generator)
            entries |= drawn
        return {"image": to_tensor(image), **entries}

    def _generator(self, index: int) -> torch.Generator:
        return generator_for(self.seed, int(self._epoch), index + self.copy * len(self.images))

    def _decoded(self, images: ImageList, index: int) -> tuple[Image.Image, torch.Generator, str]:
        """The part that a sample shows, the stream to go on with, and the name of the file where it does not decode."""
        def part(candidate: int) -> tuple[Image.Image, torch.Generator]:
            generator, data = self._generator(index), images.read(candidate)
            if self.padding is None:
                return load_part(data, self.size, partial(self._window, generator), self.interpolation), generator
            return self._cut(load_image(data), generator), generator

        with contextlib.suppress(OSError):
            return *part(index), ""
        for other in _rest_of_class(images, index):
            with contextlib.suppress(OSError):
                return *part(other), images.files[index]
        raise _class_is_broken(images, index)

    def _cut(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        box = self._window(generator, image.width, image.height)
        return resized(image, self.size, box, self.interpolation) if self.padding is None else image.crop(box)

    def _window(self, generator: torch.Generator, width: int, height: int) -> Box:
        if self.padding is None:
            return random_crop(width, height, generator) if self.train else central_square(width, height, self.crop_share)
        if self.train:
            return padded_crop(width, height, self.size, self.padding, generator)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return left, top, left + self.size, top + self.size

    def augmented(self, image: Image.Image, generator: torch.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """A training image, cropped and flipped, after `transform`, and what else its sample holds."""
        return image if self.transform is None else self.transform(image, generator=generator), {}


def central_square(width: int, height: int, share: float = 1.0) -> Box:
    """The square in the middle whose side is `share` of the short side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def padded_crop(width: int, height: int, size: int, padding: int,
                generator: torch.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a uniform `size` x `size` crop that leaves the image by at most `padding` pixels.

    Pillow's crop is black where there is no image.

    Raises:
        UserError: the image is smaller than `size` - 2 `padding`.
    """
    if min(width, height) + 2 * padding < size:
        raise UserError(f"an image of {width} x {height} px with padding = {padding} is smaller than a crop of {size} px; "
                        "give a smaller --image-size")
    left, top = (int(torch.randint(-padding, side + padding - size + 1, (), generator=generator))
                 for side in (width, height))
    return left, top, left + size, top + size


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
