"""pretrain.py --decode: a JPEG to a random crop as a PIL image, by each library. Decoders give whole images but "_scaled".

A library that gives an array hands Pillow only the pixels around the crop; Pillow resizes for all of them, so that the
crops are alike: with a decoder of whole images they differ by at most one level, as the window's arithmetic rounds.
"""

import importlib
import importlib.util
import io
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from dada_det.data.decode import SCALES, Box, load_image, load_part, resized
from dada_det.data.imagenet import random_crop
from dada_det.data.random import generator_for
from dada_det.errors import UserError

Window = Callable[[int, int], Box]
Decoder = Callable[[bytes, int, Window], Image.Image]  # (file, side of the crop, window of the whole image)
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def read_jpegs(root: Path, most: int) -> list[bytes]:
    """The first of the JPEGs below `root` that every library reads the same way; UserError where there is none."""
    found: list[bytes] = []
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")):
        if len(found) == most:
            break
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("L", "RGB") and not image.getexif():
                found.append(data)
    if not found:
        raise UserError(f"{root} holds no JPEG (*.jpg, *.jpeg); give a folder of photographs with --data")
    return found


def facts(sources: Sequence[bytes]) -> dict[str, Any]:
    """What the images were: their number, mean size in pixels and in kilobytes; and whose decoders ran."""
    sizes = [Image.open(io.BytesIO(data)).size for data in sources]
    packages = ["pillow", "torchvision", "opencv-python-headless", *(["simplejpeg"] if has_simplejpeg() else [])]
    return {"images": len(sources), "width": statistics.mean(width for width, _ in sizes),
            "height": statistics.mean(height for _, height in sizes),
            "kilobytes": statistics.mean(map(len, sources)) / 1000, "packages": {name: version(name) for name in packages}}


def has_simplejpeg() -> bool:
    return importlib.util.find_spec("simplejpeg") is not None


def measure(sources: Sequence[bytes], size: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each library in each round; they take turns image by image, and the first round is not counted."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    decoders = all_decoders()
    rates: dict[str, list[float]] = {what: [] for what in decoders}
    for number in range(rounds + 1):
        taken, order = dict.fromkeys(decoders, 0.0), deque(decoders)
        for index, data in enumerate(sources):
            order.rotate()
            for what in order:
                generator = generator_for(number, index)
                began = time.process_time()
                decoders[what](data, size, lambda width, height, g=generator: random_crop(width, height, g))  # type: ignore
                taken[what] += time.process_time() - began
        for what in decoders:
            rates[what].append(len(sources) / taken[what])
    return {what: each[1:] for what, each in rates.items()}


def all_decoders() -> dict[str, Decoder]:
    """By name: "pillow" decodes whole images, "pillow_scaled" is what the pipeline does."""
    found: dict[str, Decoder] = {"pillow": pillow, "pillow_scaled": load_part, "torchvision": torchvision,
                                 "opencv": opencv, "opencv_scaled": opencv_scaled}
    if has_simplejpeg():
        found |= simplejpegs()
    return found


def pillow(data: bytes, size: int, window: Window) -> Image.Image:
    image = load_image(data)
    return resized(image, size, window(*image.size))


def torchvision(data: bytes, size: int, window: Window) -> Image.Image:
    pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    pixels_HWC = pixels_CHW.permute(1, 2, 0).numpy()
    return part_of(pixels_HWC, size, window(pixels_HWC.shape[1], pixels_HWC.shape[0]))


def opencv(data: bytes, size: int, window: Window) -> Image.Image:
    pixels_HWC = by_opencv(data, cv2.IMREAD_COLOR_RGB)
    return part_of(pixels_HWC, size, window(pixels_HWC.shape[1], pixels_HWC.shape[0]))


def by_opencv(data: bytes, flag: int) -> np.ndarray:
    pixels_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    assert pixels_HWC is not None
    return pixels_HWC


def opencv_scaled(data: bytes, size: int, window: Window) -> Image.Image:
    width, height = Image.open(io.BytesIO(data)).size  # OpenCV does not read a header by itself
    box = window(width, height)
    flag = REDUCED.get(scale_of(box, size))
    pixels_HWC = by_opencv(data, cv2.IMREAD_COLOR_RGB) if flag is None else \
        cv2.cvtColor(by_opencv(data, flag), cv2.COLOR_BGR2RGB)
    return part_of(pixels_HWC, size, scaled(box, pixels_HWC, width, height))


def simplejpegs() -> dict[str, Decoder]:
    simplejpeg = importlib.import_module("simplejpeg")  # not among the project's dependencies

    def whole(data: bytes, size: int, window: Window) -> Image.Image:
        pixels_HWC = simplejpeg.decode_jpeg(data, "RGB")
        return part_of(pixels_HWC, size, window(pixels_HWC.shape[1], pixels_HWC.shape[0]))

    def smaller(data: bytes, size: int, window: Window) -> Image.Image:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        box = window(width, height)
        scale = scale_of(box, size)
        pixels_HWC = simplejpeg.decode_jpeg(data, "RGB", min_width=width // scale, min_height=height // scale)
        return part_of(pixels_HWC, size, scaled(box, pixels_HWC, width, height))

    return {"simplejpeg": whole, "simplejpeg_scaled": smaller}


def scale_of(box: Box, size: int) -> int:
    """As load_part's."""
    return next((scale for scale in SCALES if min(box[2] - box[0], box[3] - box[1]) >= scale * size), 1)


def scaled(box: Box, pixels_HWC: np.ndarray, width: int, height: int) -> Box:
    across, down = pixels_HWC.shape[1] / width, pixels_HWC.shape[0] / height
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def part_of(pixels_HWC: np.ndarray, size: int, box: Box) -> Image.Image:
    """resized(image, size, box) of the pixels that the filter reaches."""
    left, top, right, bottom = box
    reach_x, reach_y = (math.ceil(max(1.0, side / size)) + 1 for side in (right - left, bottom - top))
    x, y = max(0, math.floor(left) - reach_x), max(0, math.floor(top) - reach_y)
    window_HWC = pixels_HWC[y:math.ceil(bottom) + reach_y, x:math.ceil(right) + reach_x]
    return resized(Image.fromarray(np.ascontiguousarray(window_HWC)), size, (left - x, top - y, right - x, bottom - y))
