"""Makes of a loader's batch what a classifier takes: on the device, augmented, float32, normalised.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, K = 2 slots of a sub-policy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor

from dada_det.augment import Draws, PolicyTransform, apply_draws
from dada_det.augment.schedule import ScheduleTransform
from dada_det.augment.transform import slot_rows
from dada_det.data.arrays import ArrayImages
from dada_det.data.folders import ImageList
from dada_det.data.imagenet import ImageFolder
from dada_det.data.random import generator_for
from dada_det.devices import move
from dada_det.models.backbone import IMAGENET

BOX = 1  # the key of a Cutout box's stream, after (seed, epoch, index)


class TrainImages(ImageFolder):
    """Training images whose side in pixels follows the epoch: sizes[epoch], and the last of them ever after.

    transform (of `image_transform`), then `after`, both called as (image, generator=..), act on each cropped and flipped PIL
    image. A worker process sees the epoch that `set_epoch` has set in the main one; a policy that follows the training's
    progress is told the epoch over len(sizes).

    Args:
        padding, mirror, interpolation: see ImageFolder.
        cutout: side in pixels of a square around a pixel drawn uniformly (DeVries and Taylor, arXiv:1708.04552), 0 for none;
            a sample then holds {"cutout": int64 [4]}, its left, top, right and bottom, which ImagePreprocessor blanks.
    """

    def __init__(self, images: ImageList | ArrayImages, sizes: Sequence[int], transform: Callable[..., Any], seed: int = 0,
                 padding: int | None = None, cutout: int = 0, mirror: bool = True,
                 after: Callable[..., Image.Image] | None = None, interpolation: str = "bilinear") -> None:
        super().__init__(images, sizes[-1], True, transform, seed, padding, mirror, interpolation)
        self.sizes, self.cutout, self.after = tuple(sizes), cutout, after

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.size = self.sizes[min(int(self._epoch), len(self.sizes) - 1)]
        if isinstance(self.transform, ScheduleTransform):
            self.transform.progress = min(1.0, int(self._epoch) / len(self.sizes))
        sample = super().__getitem__(index)
        if self.cutout:
            generator = generator_for(self.seed, int(self._epoch), index, BOX)
            corner_2 = torch.randint(self.size, (2,), generator=generator) - self.cutout // 2
            sample["cutout"] = torch.cat([corner_2, corner_2 + self.cutout])
        return sample

    def augmented(self, image: Image.Image, generator: torch.Generator) -> tuple[Image.Image, dict[str, Any]]:
        image, entries = super().augmented(image, generator)
        return image if self.after is None else self.after(image, generator=generator), entries


class DrawnImages(TrainImages):
    """Training images for a policy on the device: cropped and flipped, and with what the policy draws for each.

    A sample also holds {"draws": slot_rows, "ranges": str}, which ImagePreprocessor applies. The draws come from the stream
    of (seed, epoch, index) from which the policy would have drawn here. So both ways give the same images, with any number
    of workers and after a resume.
    """

    transform: PolicyTransform | ScheduleTransform

    def augmented(self, image: Image.Image, generator: torch.Generator) -> tuple[Image.Image, dict[str, Any]]:
        # Not `draw`: on tensors of one image it takes a worker as long as Pillow takes to apply them.
        return image, {"draws": slot_rows(self.transform.draw_one(generator)), "ranges": self.transform.ranges}


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """{"image": uint8 [B,3,H,W] RGB, "label": int64 [B], ..} -> {"images": float32 [B,3,H,W], "labels": int64 [B]}.

    images = (image - mean) / std, with mean and std of each channel on the 0..255 scale (default: ImageNet's). Before that
    the policy is applied to a batch of DrawnImages. After that the boxes of Cutout are set to zero. Other entries are
    dropped.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        # Not persistent: they belong to r50.json and not to the state dict.
        self.register_buffer("mean", torch.tensor(mean or IMAGENET["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or IMAGENET["std"]).view(3, 1, 1), persistent=False)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Tensor]:
        images_BCHW, labels_B = (move(data[name], self.device) for name in ("image", "label"))
        if "draws" in data:
            # The draws stay on the CPU, where apply_draws can see without waiting which rows each kernel needs.
            images_BCHW = apply_draws(images_BCHW, Draws.of_rows(data["draws"]), data["ranges"][0])
        images_BCHW = (images_BCHW.float() - self.mean) / self.std
        if "cutout" in data:
            images_BCHW = blank(images_BCHW, move(data["cutout"], images_BCHW.device))
        return {"images": images_BCHW, "labels": labels_B}


def blank(images_BCHW: Tensor, boxes_B4: Tensor) -> Tensor:
    """The images with zeros in a box of each: left, top, right and bottom in pixels, the last two exclusive; clipped."""
    left_B11, top_B11, right_B11, bottom_B11 = boxes_B4[:, :, None, None].unbind(1)
    rows_H1 = torch.arange(images_BCHW.shape[2], device=images_BCHW.device)[:, None]
    columns_W = torch.arange(images_BCHW.shape[3], device=images_BCHW.device)
    inside_BHW = (rows_H1 >= top_B11) & (rows_H1 < bottom_B11) & (columns_W >= left_B11) & (columns_W < right_B11)
    return images_BCHW.masked_fill(inside_BHW[:, None], 0)
