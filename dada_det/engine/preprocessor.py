"""From what the loader collates to what a classifier takes: on the device, augmented, float32, normalised.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, K = 2 slots of a sub-policy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor

from dada_det.augment import Draws, Policy, PolicyTransform, apply_draws
from dada_det.data.folders import ImageList
from dada_det.data.imagenet import ImageFolder
from dada_det.models.backbone import IMAGENET


class TrainImages(ImageFolder):
    """Training images whose side in pixels follows the epoch: sizes[epoch], and the last of them ever after.

    transform(image, generator=..) is applied to each cropped and mirrored PIL image. A worker process sees the epoch
    that `set_epoch` has set in the main one.
    """

    def __init__(self, images: ImageList, sizes: Sequence[int], transform: Callable[..., Any], seed: int = 0) -> None:
        super().__init__(images, sizes[-1], train=True, transform=transform, seed=seed)
        self.sizes = tuple(sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.size = self.sizes[min(int(self._epoch), len(self.sizes) - 1)]
        return super().__getitem__(index)


class DrawnImages(TrainImages):
    """Training images for a policy on the device: cropped and flipped, and with what the policy draws for each.

    A sample also holds {"draws": {field of Draws: tensor [K, ..]}, "ranges": str}, which ImagePreprocessor applies. The
    draws are those that the policy would have made in this place, from the same stream of (seed, epoch, index): both ways
    give the same images, with any number of workers and after a resume.
    """

    def __init__(self, images: ImageList, size: int | Sequence[int], policy: Policy, seed: int = 0) -> None:
        super().__init__(images, [size] if isinstance(size, int) else size, self._draw, seed)
        self.policy = PolicyTransform(policy)
        self.drawn: dict[str, Tensor] = {}  # of the sample in the making; a loader's worker makes one at a time

    def _draw(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        self.drawn = {name: tensor[0] for name, tensor in vars(self.policy.draw(1, generator)).items()}
        return image

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "draws": self.drawn, "ranges": self.policy.policy.ranges}


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """{"image": uint8 [B,3,H,W] RGB, "label": int64 [B], ..} -> {"images": float32 [B,3,H,W], "labels": int64 [B]}.

    images = (image - mean) / std, with mean and std of each channel on the 0..255 scale (default: ImageNet's), after the
    policy where the batch comes from DrawnImages. Other entries are left behind.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__(non_blocking=True)
        # Not persistent: they belong to r50.json and not to the state dict.
        self.register_buffer("mean", torch.tensor(mean or IMAGENET["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or IMAGENET["std"]).view(3, 1, 1), persistent=False)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Tensor]:
        batch = self.cast_data({"images": data["image"], "labels": data["label"]})
        images_BCHW = batch["images"]
        if "draws" in data:
            # The draws stay on the CPU, where apply_draws can see without waiting which rows each kernel needs.
            images_BCHW = apply_draws(images_BCHW, Draws(**data["draws"]), data["ranges"][0])
        return {"images": (images_BCHW.float() - self.mean) / self.std, "labels": batch["labels"]}
