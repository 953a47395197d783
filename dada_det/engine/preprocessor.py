"""From what the loader collates to what a classifier takes: on the device, float32, normalised."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from dada_det.models.backbone import IMAGENET


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """{"image": uint8 [B,3,H,W] RGB, "label": int64 [B], ..} -> {"images": float32 [B,3,H,W], "labels": int64 [B]}.

    images = (image - mean) / std, with mean and std of each channel on the 0..255 scale (default: ImageNet's). Other entries
    are left behind.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__(non_blocking=True)
        # Not persistent: they belong to r50.json and not to the state dict.
        self.register_buffer("mean", torch.tensor(mean or IMAGENET["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or IMAGENET["std"]).view(3, 1, 1), persistent=False)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Tensor]:
        batch = self.cast_data({"images": data["image"], "labels": data["label"]})
        return {"images": (batch["images"].float() - self.mean) / self.std, "labels": batch["labels"]}
