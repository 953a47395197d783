"""Image files of a detection data set that do not decode, or not to the size that is annotated: found before training.

The decoder is the one that will read them: the first step of the data set's pipeline, MMDetection's LoadImageFromFile with
OpenCV unless the config says otherwise. OpenCV fills the rest of a truncated JPEG with grey and says nothing, so the end of
the file is looked at, too.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size
from PIL import Image

from dada_det.data.coco_instances import CocoSummary, Picture, listed, size_mistake, what_is_learned
from dada_det.engine.detect import config as change
from dada_det.engine.runtime import mmcv_ops
from dada_det.errors import UserError

mmcv_ops.install()  # before mmdet's structures, which import mmcv.ops
from mmdet.datasets import CocoDataset  # noqa: E402
from mmdet.registry import DATASETS, TRANSFORMS  # noqa: E402

MOST_BROKEN = 0.01  # of the images; more than that means that something is wrong with the whole folder
MOST_THREADS = 8  # which hold a decoded image each
BLOCK = 1024  # images that wait for a thread at a time
DARK = 32  # an eighth of the range; see data/decode.py, where the search scales such images
TAIL = 64  # bytes at the end of a file in which its format's end mark must stand
MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}  # first bytes -> end mark of JPEG and PNG

Reader = Callable[[Path], tuple[int, int] | None]


def reader_of(pipeline: Sequence[Mapping[str, Any]]) -> Reader:
    """What gives an image's (width, height) as the pipeline's loading step decodes it; None where it does not decode, or
    comes out black, as 8 to 12 bits stored in 16 do."""
    step = next((dict(step) for step in pipeline if "LoadImage" in str(step["type"])), {"type": "LoadImageFromFile"})
    loading = TRANSFORMS.build(step)

    def read(path: Path) -> tuple[int, int] | None:
        try:
            if not path.is_file() or _is_cut_off(path):  # a pipe would never end
                return None
            image = loading.transform({"img_path": str(path)})
            if _is_lost_in_the_dark(path, image["img"]):
                return None
            height, width = image["img_shape"]
        except Exception:  # a decoder raises what it likes; none of it may end a training
            return None
        return int(width), int(height)

    return read


def broken_images(pictures: Sequence[Picture], annotations: Path, folder: Path, read: Reader) -> list[str]:
    """File names, in order, of the images that do not decode; UserError for the first whose size is not the annotated one.

    Every image is decoded, some 300 a second and processor; several processes share the work.
    """
    mine = list(range(get_rank(), len(pictures), get_world_size()))
    broken, wrong = [], None
    with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as pool:
        rows = iter(mine)
        while wrong is None and (block := list(islice(rows, BLOCK))):
            sizes = pool.map(lambda row: read(folder / pictures[row].file_name), block)
            for row, size in zip(block, sizes, strict=True):
                if size is None:
                    broken.append(row)
                elif wrong is None and size != (pictures[row].width, pictures[row].height):
                    wrong = (row, size)
    found = all_gather_object((broken, wrong))
    if mistakes := [mistake for _, mistake in found if mistake is not None]:
        row, size = min(mistakes)
        raise size_mistake(pictures[row], size, annotations, folder)
    return [pictures[row].file_name for row in sorted(row for rows, _ in found for row in rows)]


def leave_out_broken(pictures: Sequence[Picture], annotations: Path, folder: Path, read: Reader) -> list[str]:
    """The broken training images, which the caller leaves out.

    Raises:
        UserError: two or more, and more than 1 %, are broken.
    """
    broken = broken_images(pictures, annotations, folder, read)
    if len(broken) > max(1.0, MOST_BROKEN * len(pictures)):
        raise UserError(f"{len(broken)} of the {len(pictures)} images in {folder} do not decode, such as {listed(broken)}; "
                        "more than 1 % is too many: put whole files of 8 bits there")
    return broken


def what_trains(config: Config, summary: CocoSummary, annotations: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The training images of `config` that do not decode, and a line each about what is left out of training and why.

    Raises:
        UserError: an image has another size than annotated, too many do not decode, or no box is left to learn from.
    """
    broken = leave_out_broken(summary.pictures, annotations, folder, reader_of(change.pipeline_of(config, "train")))
    note = what_is_learned(summary, annotations, change.filter_of(config), broken)
    lines = [f"{annotations}: {note}"] if note else []
    lines += [f"{folder}: left out {len(broken)} images that do not decode: {listed(broken)}"] if broken else []
    return broken, lines


def demand_whole(pictures: Sequence[Picture], annotations: Path, folder: Path, read: Reader) -> None:
    """UserError where an image does not decode: figures without it could not be compared with anybody's."""
    if broken := broken_images(pictures, annotations, folder, read):
        raise UserError(f"{len(broken)} of the images in {folder} do not decode, such as {listed(broken)}; an evaluation "
                        "needs every image: put whole files of 8 bits there")


@DATASETS.register_module()
class WholeCocoDataset(CocoDataset):
    """CocoDataset without the images whose file names are in `left_out`."""

    def __init__(self, *args: Any, left_out: Iterable[str], **options: Any) -> None:
        self.left_out = set(left_out)
        super().__init__(*args, **options)

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        return {**super().parse_data_info(raw_data_info), "file_name": raw_data_info["raw_img_info"]["file_name"]}

    def filter_data(self) -> list[dict[str, Any]]:
        return [image for image in super().filter_data() if image["file_name"] not in self.left_out]


def _is_lost_in_the_dark(path: Path, pixels_HWC: np.ndarray) -> bool:
    """Whether an image of more than 8 bits comes out so dark that its values were shifted away, not scaled."""
    if pixels_HWC.max(initial=0) >= DARK:
        return False
    with Image.open(path) as image:
        return image.mode.startswith(("I", "F"))


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG or PNG lacks its end; Pillow is asked where the last bytes do not settle it."""
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read()
    ends = [last in tail for first, last in MARKS.items() if head.startswith(first)]
    if ends in ([], [True]):
        return False
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow's decoders raise
        return True
    return False
