"""Image files of a detection data set that do not decode: found before training and left out of it.

OpenCV, which MMDetection reads with, fills the rest of a truncated JPEG with grey and says nothing.
"""

from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from PIL import Image

from dada_det.errors import UserError
from dada_det.files import read_json

MOST_BROKEN = 0.01  # of the images; more than that means that something is wrong with the whole folder
TAIL = 64  # bytes at the end of a file in which its format's end mark must stand
MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}  # first bytes -> end mark of JPEG and PNG


def broken_images(annotations: str | Path, folder: str | Path) -> list[str]:
    """File names, of those in `annotations`, whose image in `folder` is truncated or no image.

    Only the ends of a file are read, and the whole where they do not settle it: 118,000 images take seconds.
    """
    names = [image["file_name"] for image in read_json(annotations, "annotation file")["images"]]
    return [name for name in names if not (_ends_well(Path(folder) / name) or _decodes(Path(folder) / name))]


def leave_out_broken(annotations: Path, folder: Path) -> list[str]:
    """The broken training images, which the caller leaves out; UserError where they are more than 1 % (and two)."""
    broken = broken_images(annotations, folder)
    total = len(read_json(annotations, "annotation file")["images"]) if broken else 0
    if len(broken) > max(1.0, MOST_BROKEN * total):
        raise UserError(f"{len(broken)} of the {total} images in {folder} do not decode, such as "
                        f"{', '.join(broken[:3])}; more than 1 % is too many: put whole files there")
    return broken


def demand_whole(annotations: Path, folder: Path) -> None:
    """UserError where an image does not decode: figures without it could not be compared with anybody's."""
    if broken := broken_images(annotations, folder):
        raise UserError(f"{len(broken)} of the images in {folder} do not decode, such as {', '.join(broken[:3])}; an "
                        "evaluation needs every image: put whole files there")


@DATASETS.register_module()
class WholeCocoDataset(CocoDataset):
    """CocoDataset without the images whose file names are in `left_out`."""

    def __init__(self, *args: Any, left_out: list[str], **options: Any) -> None:
        self.left_out = set(left_out)
        super().__init__(*args, **options)

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        return {**super().parse_data_info(raw_data_info), "file_name": raw_data_info["raw_img_info"]["file_name"]}

    def filter_data(self) -> list[dict[str, Any]]:
        return [image for image in super().filter_data() if image["file_name"] not in self.left_out]


def _ends_well(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - TAIL))
        tail = file.read()
    return any(head.startswith(first) and last in tail for first, last in MARKS.items())


def _decodes(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow's decoders raise
        return False
    return True
