"""Detection images kept as uint8 in memory, their instances beside them, and policies applied to both.

N images, B of a batch, C = 3 channels (RGB), S x S pixels, M instances of one image. All images stand in squares of one
side. An image lies in the upper left corner, as large as its `sizes` entry says. The rest is padding, which no flip and no
policy moves, as MMDetection pads after both.
Boxes are (x1, y1, x2, y2) in pixels, float32, their corners on the edges of pixels. Targets stay on the CPU.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from dada_det.augment.boxes import geometry_of, transform_instances
from dada_det.augment.transform import Draws, apply_draws
from dada_det.data.coco_instances import FILTER, Picture, listed, reason_to_drop, size_mistake
from dada_det.data.decode import load_sized
from dada_det.data.imagenet import check_broken
from dada_det.data.memory import demand_room
from dada_det.devices import move
from dada_det.errors import UserError
from dada_det.files import read_json

SLIVER = 1e-3  # px of a box that must be seen; of a smaller one float32 cannot tell the corners apart
PADDING = (124, 116, 104)  # ImageNet's mean colour, which is 0 after normalisation, as mmdet's own padding is
Mask = dict[str, Any]  # pycocotools' RLE of one instance


@dataclass(eq=False)
class DetectionTargets:
    """The instances of B images. A slice, an index tensor, `repeat` and + give targets of these images.

    Args:
        boxes_M4: of each image, [M,4].
        labels_M: long [M].
        masks_MSS: uint8 [M,S,S] of 0 and 1; None where none are learned.
        sizes: (height, width) of each image within its square, None where all fill it.

    An object also keeps the proposals [P,4] that a two-stage detector makes for its images (`proposals`). Targets that are
    made from it start without any.
    """

    boxes_M4: list[Tensor]
    labels_M: list[Tensor]
    masks_MSS: list[Tensor] | None = None
    sizes: list[tuple[int, int]] | None = None
    _proposals_P4: list[Tensor] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.boxes_M4)

    def __getitem__(self, rows: slice | Tensor) -> "DetectionTargets":
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return DetectionTargets([self.boxes_M4[row] for row in chosen], [self.labels_M[row] for row in chosen],
                                None if self.masks_MSS is None else [self.masks_MSS[row] for row in chosen],
                                sizes=None if self.sizes is None else [self.sizes[row] for row in chosen])

    def repeat(self, times: int) -> "DetectionTargets":
        masks = None if self.masks_MSS is None else self.masks_MSS * times
        sizes = None if self.sizes is None else self.sizes * times
        return DetectionTargets(self.boxes_M4 * times, self.labels_M * times, masks, sizes=sizes)

    def __add__(self, other: "DetectionTargets") -> "DetectionTargets":
        """The targets of both batches, of images in squares of one side."""
        def both(first: list[Any] | None, second: list[Any] | None) -> list[Any] | None:
            assert (first is None) == (second is None)
            return None if first is None or second is None else first + second

        return DetectionTargets(self.boxes_M4 + other.boxes_M4, self.labels_M + other.labels_M,
                                both(self.masks_MSS, other.masks_MSS), sizes=both(self.sizes, other.sizes))

    def size(self, row: int, images_BCHW: Tensor) -> tuple[int, int]:
        """(height, width) of image `row` of `images_BCHW`, without its padding."""
        return self.sizes[row] if self.sizes is not None else (images_BCHW.shape[2], images_BCHW.shape[3])

    def proposals(self, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The proposals of each image, [P,4]: what `make` gives at the first call, which is kept."""
        if self._proposals_P4 is None:
            self._proposals_P4 = make()
        return self._proposals_P4


@dataclass(frozen=True, eq=False)
class MemoryDetection:
    """uint8 images [N,3,S,S] and the instances of each; masks as run lengths, which take a few hundred bytes each.

    Args:
        names: the file_name of each image, where they come from a file.
        sizes: (height, width) of each image within its square, None where all fill it.
    """

    images_NCHW: Tensor
    boxes_M4: list[Tensor]
    labels_M: list[Tensor]
    masks: list[list[Mask]] | None
    names: Sequence[str] = ()
    sizes: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, rows: Tensor) -> "MemoryDetection":
        chosen = rows.tolist()
        return MemoryDetection(self.images_NCHW[rows], [self.boxes_M4[row] for row in chosen],
                               [self.labels_M[row] for row in chosen],
                               None if self.masks is None else [self.masks[row] for row in chosen],
                               [self.names[row] for row in chosen] if self.names else (),
                               None if self.sizes is None else [self.sizes[row] for row in chosen])

    def __add__(self, other: "MemoryDetection") -> "MemoryDetection":
        """The images of both, of squares of one size; UserError where one part has masks and the other has none."""
        if (self.masks is None) != (other.masks is None):
            raise UserError("one part of the images has masks and the other has none; give both or leave them out")
        whole = [(self.images_NCHW.shape[2], self.images_NCHW.shape[3])]
        sizes = None if self.sizes is None and other.sizes is None else \
            (self.sizes or whole * len(self)) + (other.sizes or whole * len(other))
        return MemoryDetection(torch.cat([self.images_NCHW, other.images_NCHW]), self.boxes_M4 + other.boxes_M4,
                               self.labels_M + other.labels_M,
                               None if self.masks is None or other.masks is None else self.masks + other.masks,
                               (*self.names, *other.names), sizes)

    def batch(self, rows: Tensor, flips_B: Tensor | None = None) -> tuple[Tensor, DetectionTargets]:
        """(images [B,3,S,S], their targets); those of `flips_B` (bool) are mirrored left to right."""
        side, chosen = self.images_NCHW.shape[-1], rows.tolist()
        targets = DetectionTargets(
            [self.boxes_M4[row] for row in chosen], [self.labels_M[row] for row in chosen],
            None if self.masks is None else [_decoded(self.masks[row], side) for row in chosen],
            sizes=None if self.sizes is None else [self.sizes[row] for row in chosen])
        images_BCHW = self.images_NCHW[rows]
        for row in [] if flips_B is None else flips_B.nonzero().flatten().tolist():
            width = targets.size(row, images_BCHW)[1]
            targets.boxes_M4[row] = (targets.boxes_M4[row] * torch.tensor([-1, 1, -1, 1])
                                     + torch.tensor([width, 0, width, 0]))[:, [2, 1, 0, 3]]
            images_BCHW[row, :, :, :width] = images_BCHW[row, :, :, :width].flip(2)
            if targets.masks_MSS is not None:
                targets.masks_MSS[row][:, :, :width] = targets.masks_MSS[row][:, :, :width].flip(2)
        return images_BCHW, targets


def apply_with_instances(images_BCHW: Tensor, targets: DetectionTargets, draws: Draws,
                         ranges: str) -> tuple[Tensor, DetectionTargets]:
    """Applies draws to images and their targets; what nothing has moved is shared with the old ones.

    A policy sees an image as ApplyPolicy does, without its padding, which stays as it is. Instances move and are dropped by
    the rule of `dada_det.augment.boxes`. If there are masks, a box is that of the pixels that are left of its mask. An
    image without instances stays, as background.

    Args:
        images_BCHW: uint8.

    Returns:
        uint8 images [B,3,H,W] and their targets.
    """
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row in range(len(targets)):
        rows_of.setdefault(targets.size(row, images_BCHW), []).append(row)
    if list(rows_of) == [images_BCHW.shape[2:]]:
        augmented_BCHW = apply_draws(images_BCHW, draws, ranges)
    else:
        augmented_BCHW = images_BCHW.clone()
        for (height, width), rows in rows_of.items():
            own, of_draws = (move(torch.tensor(rows), tensor.device) for tensor in (images_BCHW, draws.operations_BK))
            applied = apply_draws(images_BCHW[own, :, :height, :width], draws[of_draws], ranges)
            augmented_BCHW[own, :, :height, :width] = applied
    operations_BK, values_BK = geometry_of(draws.to("cpu"), ranges)
    moved = targets.repeat(1)
    for row in (operations_BK >= 0).any(1).nonzero().flatten().tolist():
        height, width = targets.size(row, images_BCHW)
        masks_MHW = None if moved.masks_MSS is None else moved.masks_MSS[row][:, :height, :width]
        boxes_M4, masks_MHW, keep_M = transform_instances(moved.boxes_M4[row], masks_MHW, operations_BK[row:row + 1],
                                                          values_BK[row:row + 1], (height, width), tight=True)
        if moved.masks_MSS is not None and masks_MHW is not None:
            beside = (0, images_BCHW.shape[3] - width, 0, images_BCHW.shape[2] - height)
            moved.masks_MSS[row] = F.pad(masks_MHW[keep_M], beside)
        moved.boxes_M4[row], moved.labels_M[row] = boxes_M4[keep_M], moved.labels_M[row][keep_M]
    return augmented_BCHW, moved


def load_coco(annotations: Path, images: Path, side: int, masks: bool, most: int | None,
              generator: torch.Generator) -> tuple[MemoryDetection, list[str]]:
    """Reads the images of a COCO file at `side` px, in the file's order. The file has passed `check_coco`.

    An image is scaled (bilinear) so that its longer side has `side` px. It lies in the upper left corner, the rest has
    PADDING's colour. As in mmdet's training, labels number the file's categories in order, and small images and what
    `reason_to_drop` names are left out. Here crowds, boxes under 1 px wide or high after scaling, and images without any
    instance are left out too.

    Args:
        most: how many of the images, drawn by `generator`; None takes all.

    Returns:
        The images, and the names of those that do not decode.

    Raises:
        UserError: none is left, an image's size is not the annotated one, or more than 1 % of the files do not decode.
    """
    content = read_json(annotations, "annotation file")
    label_of = {category["id"]: label for label, category in enumerate(content["categories"])}
    instances: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        instances.setdefault(entry["image_id"], []).append(entry)
    infos = [info for info in content["images"] if min(info["width"], info["height"]) >= FILTER["min_size"]
             and any(_counts(entry, info, side) for entry in instances.get(info["id"], []))]
    if not infos:
        raise UserError(f"{annotations} has no image with a box of 1 px or more at {side} px; give a larger --image-size")
    if most is not None and most < len(infos):
        infos = [infos[row] for row in torch.randperm(len(infos), generator=generator)[:most].sort().values.tolist()]
    demand_room(len(infos), side, images)
    pixels_NCSS, fine = _read_pixels(infos, annotations, images, side)
    broken = [info["file_name"] for info, good in zip(infos, fine.tolist(), strict=True) if not good]
    check_broken(broken, len(infos), images)
    if len(broken) == len(infos):
        raise UserError(f"the image {listed(broken)} in {images}, the only one with a box to learn, does not decode; put a "
                        "whole file there")
    boxes_M4, labels_M, run_lengths = [], [], []
    for info in infos:
        own = [entry for entry in instances[info["id"]] if _counts(entry, info, side)]
        boxes_M4.append(torch.tensor([_box(entry, info, side) for entry in own]))
        labels_M.append(torch.tensor([label_of[entry["category_id"]] for entry in own]))
        run_lengths.append([_mask(entry, info, side) for entry in own] if masks else [])
    everything = MemoryDetection(torch.from_numpy(pixels_NCSS), boxes_M4, labels_M, run_lengths if masks else None,
                                 [os.path.relpath(images / info["file_name"], images) for info in infos],
                                 [_scaled(info, side)[::-1] for info in infos])
    return everything[fine.nonzero().flatten()] if broken else everything, broken


def _read_pixels(infos: Sequence[dict[str, Any]], annotations: Path, images: Path, side: int) -> tuple[np.ndarray, Tensor]:
    """The padded images, uint8 [N,3,side,side], and whether each decodes, bool [N]; UserError for one of another size."""
    pixels_NCSS = np.empty((len(infos), 3, side, side), np.uint8)
    pixels_NCSS[:] = np.array(PADDING)[:, None, None]

    def fill(row: int) -> bool:
        info, size = infos[row], _scaled(infos[row], side)
        try:
            if not os.path.isfile(images / info["file_name"]):
                return False  # a pipe would never end
            image, whole = load_sized(images / info["file_name"], at_least=side)
        except OSError:
            return False
        if whole != (info["width"], info["height"]):
            raise size_mistake(Picture(info["file_name"], info["width"], info["height"], 0, 0), whole, annotations, images)
        image = image.resize(size, Image.Resampling.BILINEAR)
        pixels_NCSS[row, :, :size[1], :size[0]] = np.asarray(image).transpose(2, 0, 1)
        return True

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return pixels_NCSS, torch.tensor(list(pool.map(fill, range(len(infos)))))


def _scaled(info: dict[str, Any], side: int) -> tuple[int, int]:
    """Width and height of an image whose longer side has been brought to `side`."""
    longer = max(info["width"], info["height"])
    return max(1, round(info["width"] * side / longer)), max(1, round(info["height"] * side / longer))


def _box(entry: dict[str, Any], info: dict[str, Any], side: int) -> list[float]:
    """The scaled box, cut at the image's border."""
    x, y, width, height = entry["bbox"]
    new_width, new_height = _scaled(info, side)
    across, down = new_width / info["width"], new_height / info["height"]
    return [max(0, x) * across, max(0, y) * down, min(info["width"], x + width) * across,
            min(info["height"], y + height) * down]


def _counts(entry: dict[str, Any], info: dict[str, Any], side: int) -> bool:
    if reason_to_drop(entry, info["width"], info["height"]):
        return False
    _, _, width, height = entry["bbox"]
    new_width, new_height = _scaled(info, side)
    large = min(width * new_width / info["width"], height * new_height / info["height"]) >= 1
    x1, y1, x2, y2 = _box(entry, info, side)
    return not entry["iscrowd"] and large and min(x2 - x1, y2 - y1) > SLIVER


def _mask(entry: dict[str, Any], info: dict[str, Any], side: int) -> Mask:
    """The scaled mask on its padded square; without a segmentation an empty one, mmdet's stand-in."""
    canvas_SS = np.zeros((side, side), np.uint8, order="F")
    segmentation = entry.get("segmentation")
    if segmentation:
        height, width = info["height"], info["width"]
        if isinstance(segmentation, list):
            run_lengths = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            run_lengths = coco_mask.frPyObjects(segmentation, height, width)
        else:
            run_lengths = segmentation
        size = _scaled(info, side)
        mask = coco_mask.decode(run_lengths)
        if size != (width, height):
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        canvas_SS[:size[1], :size[0]] = mask
    return coco_mask.encode(canvas_SS)


def _decoded(run_lengths: Sequence[Mask], side: int) -> Tensor:
    """uint8 [M,S,S]."""
    if not run_lengths:
        return torch.zeros(0, side, side, dtype=torch.uint8)
    return torch.from_numpy(coco_mask.decode(list(run_lengths))).permute(2, 0, 1).contiguous()
