"""Detection images with a planted shift: a third trains, a third is transformed and validates, a third is unseen.

N images, S x S pixels, M instances of one image; masks are needed, for a box is that of its mask's pixels throughout.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from dada_det.augment.boxes import mask_extents
from dada_det.augment.operations import operation_index
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.augment.transform import Draws
from dada_det.data.checks import check_coco, find_coco
from dada_det.data.detection import DetectionTargets, MemoryDetection, apply_with_instances, load_coco
from dada_det.data.random import generator_for
from dada_det.errors import UserError
from dada_det.files import make_folder, write_text

LEAST_PIXELS = 10  # of a mask, where a tile's edge cuts it
STRENGTH, OTHERWISE = {"Rotate": 1.0, "Solarize": 0.8}, 0.95  # Rotate: by 30 degrees to either side
CHUNK = 32  # images that are transformed at a time


def plant_detection(operation: str, seed: int, data: Path, side: int) -> tuple[MemoryDetection, ...]:
    """(training third as it is, validation third transformed, unseen third transformed), as tiles of `side` px.

    Images of both parts of `data`, in COCO's layout, at twice `side` px, each cut into four tiles; thirds are drawn by
    `seed` and share no image. Raises UserError for data that check_coco refuses or that have no masks.
    """
    layout, images = find_coco(data), []
    for part in ("train", "val"):
        if check_coco(*layout.part(part)).without_mask:
            raise UserError(f"{layout.part(part)[0]} has boxes without masks, which a planted shift needs; give others")
        images.append(load_coco(*layout.part(part), 2 * side, True, None, generator_for(seed))[0])
    everything = joined(*images)
    order = torch.randperm(len(everything), generator=generator_for(seed, 11))
    thirds = [tiles(everything, order[part::3].sort().values, side) for part in range(3)]
    return thirds[0], *(moved(third, operation, generator_for(seed, 12, part)) for part, third in enumerate(thirds[1:]))


def detector_oracle(operation: str) -> Policy:
    """The planted operation at its magnitude with probability 1/2: what a perfect search could say."""
    only = Operation(operation, probability=0.5, magnitude=STRENGTH.get(operation, OTHERWISE))
    return Policy("strength", (SubPolicy(1.0, (only,)),), {"source": "oracle"})


def moved(images: MemoryDetection, operation: str, generator: torch.Generator) -> MemoryDetection:
    """Every image and its instances transformed by `operation`, the sign drawn anew for each."""
    n = len(images)
    signs_N1 = (torch.rand(n, 1, generator=generator) < 0.5).float() * 2 - 1
    draws = Draws(torch.full((n, 1), operation_index(operation)), torch.ones(n, 1, dtype=torch.bool),
                  torch.full((n, 1), STRENGTH.get(operation, OTHERWISE)), signs_N1,
                  torch.rand(n, 1, 2, generator=generator))
    chunks = [apply_with_instances(*images.batch(rows), draws[rows], "strength") for rows in torch.arange(n).split(CHUNK)]
    return with_instances(joined(*(in_memory(*chunk) for chunk in chunks)))


def tiles(images: MemoryDetection, rows: Tensor, side: int) -> MemoryDetection:
    """The four quarters of each image, `side` px each; instances of LEAST_PIXELS in a tile, and tiles with any.

    The names of an image's tiles differ in their last number alone.
    """
    found = []
    for row in rows:
        pixels_1CHW, targets = images.batch(row[None])
        assert targets.masks_MSS is not None
        for number, (top, left) in enumerate(((0, 0), (0, side), (side, 0), (side, side))):
            window = (..., slice(top, top + side), slice(left, left + side))
            masks_MSS = targets.masks_MSS[0][window]
            keep_M = masks_MSS.flatten(1).sum(1) >= LEAST_PIXELS
            tile = DetectionTargets([mask_extents(masks_MSS[keep_M])[0]], [targets.labels_M[0][keep_M]], [masks_MSS[keep_M]])
            names = [f"{Path(images.names[row]).stem}_{number}.png"] if images.names else []
            found.append(replace(in_memory(pixels_1CHW[window], tile), names=names))
    return with_instances(joined(*found))


def in_memory(images_BCHW: Tensor, targets: DetectionTargets) -> MemoryDetection:
    """Images and targets with masks, as they are kept."""
    masks = [coco_mask.encode(np.asfortranarray(masks_MSS.permute(1, 2, 0).numpy()))
             for masks_MSS in targets.masks_MSS or []]
    return MemoryDetection(images_BCHW, targets.boxes_M4, targets.labels_M, masks)


def with_instances(images: MemoryDetection) -> MemoryDetection:
    """Those images that have any."""
    return images[torch.tensor([len(labels_M) > 0 for labels_M in images.labels_M]).nonzero().flatten()]


def joined(*parts: MemoryDetection) -> MemoryDetection:
    return MemoryDetection(torch.cat([part.images_NCHW for part in parts]), [b for part in parts for b in part.boxes_M4],
                           [labels for part in parts for labels in part.labels_M],
                           [masks for part in parts for masks in part.masks or []],
                           [name for part in parts for name in part.names])


def write_coco(root: Path, **parts: MemoryDetection) -> Path:
    """root/<part>/*.png and root/annotations/instances_<part>.json, so that a command can read them; all one category.

    The files have the images' own names, where these tell them apart.
    """
    for name, images in parts.items():
        folder = make_folder(root / name)
        annotations: list[dict[str, Any]] = []
        files = images.names if len(set(images.names)) == len(images) else [f"{i:05d}.png" for i in range(len(images))]
        for index, image_CSS in enumerate(images.images_NCHW):
            Image.fromarray(image_CSS.permute(1, 2, 0).numpy()).save(folder / files[index])
            for box, mask in zip(images.boxes_M4[index].tolist(), (images.masks or [])[index], strict=True):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": index, "category_id": 1, "iscrowd": 0,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": int(coco_mask.area(mask)),
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}})
        side = images.images_NCHW.shape[-1]
        content = {"images": [{"id": index, "file_name": name, "width": side, "height": side}
                              for index, name in enumerate(files)],
                   "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
        write_text(make_folder(root / "annotations") / f"instances_{name}.json", json.dumps(content))
    return root
