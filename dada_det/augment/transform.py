"""A policy applied image by image, to a uint8 batch or to one PIL image.

Shape legend: B images, C = 3 channels (RGB), H x W pixels, K = 2 slots of a sub-policy, S sub-policies of a policy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dada_det.augment.kernels import apply_operations
from dada_det.augment.operations import check_ranges, operation_index, value_of
from dada_det.augment.pil import apply_operation_pil
from dada_det.augment.policy import Operation, Policy
from dada_det.devices import move_all

Images = TypeVar("Images", Tensor, Image.Image)
Slot = tuple[int, float, float, tuple[float, float]]  # operation, magnitude, sign and Cutout's centre


@dataclass(frozen=True, eq=False)
class Draws:
    """What each of B images gets in each of its K slots. It holds all randomness of applying a policy."""

    operations_BK: Tensor  # long, index into OPERATION_NAMES
    active_BK: Tensor  # bool
    magnitudes_BK: Tensor  # float32 in 0..1
    signs_BK: Tensor  # float32, +1 or -1
    centers_BK2: Tensor  # float32 in 0..1, (x, y); read by Cutout only

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.operations_BK, self.active_BK, self.magnitudes_BK, self.signs_BK, self.centers_BK2

    def __len__(self) -> int:
        return len(self.operations_BK)

    def __getitem__(self, rows: slice | Tensor) -> Draws:
        return Draws(*(tensor[rows] for tensor in self._tensors()))

    @classmethod
    def of_rows(cls, rows_BK6: Tensor) -> Draws:
        """Draws of B images, each from its `slot_rows`."""
        operations_BK, active_BK, magnitudes_BK, signs_BK = rows_BK6[..., :4].unbind(-1)
        return cls(operations_BK.long(), active_BK > 0, magnitudes_BK, signs_BK, rows_BK6[..., 4:])

    def active_slots(self) -> list[list[Slot]]:
        """The active slots of each image as Python numbers. Draws that lie on a device are waited for."""
        images = zip(*(tensor.tolist() for tensor in self._tensors()), strict=True)
        return [[(operation, magnitude, sign, (center[0], center[1]))
                 for operation, active, magnitude, sign, center in zip(*slots, strict=True) if active] for slots in images]

    def to(self, device: torch.device | str) -> Draws:
        return Draws(*move_all(self._tensors(), device))


def slot_rows(slots: list[Slot]) -> Tensor:
    """One image's active slots, at most two, as one small tensor, float32 [2,6], which a loader can collate: operation, 1
    where it acts, magnitude, sign and centre."""
    rows = [(operation, 1.0, magnitude, sign, *center) for operation, magnitude, sign, center in slots]
    return torch.tensor([*rows, *[(0.0, 0.0, 0.0, 1.0, 0.0, 0.0)] * (2 - len(rows))], dtype=torch.float32)


def check_images(images_BCHW: Tensor) -> None:
    """Raises ValueError unless the images are uint8 [B,3,H,W]."""
    if images_BCHW.dtype != torch.uint8 or images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
        raise ValueError(f"images must be uint8 [B,3,H,W], not {images_BCHW.dtype} {list(images_BCHW.shape)}")


def apply_draws(images_BCHW: Tensor, draws: Draws, ranges: str) -> Tensor:
    """Applies each image's own operations.

    On the CPU few or large images go through PIL one by one and many small ones through the batch's kernels, whichever
    is faster; the pixels are the same. On a GPU nothing waits for the device. There, draws on the CPU save most of the
    work: they say which images need which kernel.

    Args:
        images_BCHW: uint8 [B,3,H,W], on any device.
        draws: of B images, on the images' device or on the CPU.
        ranges: "strength" or "autoaugment".

    Returns:
        A new uint8 [B,3,H,W] on the images' device, channels_last where the images are, else contiguous.

    Raises:
        ValueError: images of another type or shape, or another number of them than draws.
        UserError: `ranges` is unknown.
    """
    check_images(images_BCHW)
    if len(images_BCHW) != len(draws):
        raise ValueError(f"{len(images_BCHW)} images but {len(draws)} draws")
    check_ranges(ranges)
    channels_last = not images_BCHW.is_contiguous() and images_BCHW.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if one_by_one_pays(images_BCHW):
        return _apply_one_by_one(images_BCHW.clone(memory_format=memory_format), draws, ranges)
    operations_BK = draws.operations_BK.masked_fill(~draws.active_BK, -1)
    values_BK = value_of(draws.operations_BK, draws.magnitudes_BK.double(), draws.signs_BK.double(), ranges)
    applied_BCHW = apply_operations(images_BCHW, operations_BK, values_BK, draws.centers_BK2.double())
    return applied_BCHW.contiguous(memory_format=memory_format)


def one_by_one_pays(images_BCHW: Tensor) -> bool:
    """Whether PIL is faster. Measured on one core: the kernels' fixed cost, some 5 ms, is that of 60 small images in PIL."""
    return images_BCHW.device.type == "cpu" and (len(images_BCHW) <= 64 or images_BCHW[0, 0].numel() >= 64 * 64)


def _apply_one_by_one(images_BCHW: Tensor, draws: Draws, ranges: str) -> Tensor:
    """`images_BCHW`, contiguous or channels_last on the CPU, with every image overwritten by what PIL makes of it."""
    for image_CHW, slots in zip(images_BCHW.numpy(), draws.active_slots(), strict=True):
        if slots:
            _write(apply_slots(_picture(image_CHW), slots, ranges), image_CHW)
    return images_BCHW


def _picture(image_CHW: np.ndarray) -> Image.Image:
    """A uint8 RGB image, contiguous or channels_last, as a PIL image."""
    import cv2

    height, width = image_CHW.shape[1:]
    image_HWC = image_CHW.transpose(1, 2, 0)
    if image_HWC.flags.c_contiguous:
        return Image.frombytes("RGB", (width, height), image_HWC)
    # Four bytes a pixel, as Pillow stores RGB: numpy's own way from planes to pixels takes five times as long.
    return Image.frombytes("RGB", (width, height), cv2.merge([*image_CHW, image_CHW[0]]), "raw", "RGBX")


def _write(picture: Image.Image, image_CHW: np.ndarray) -> None:
    """`image_CHW`, contiguous or channels_last, overwritten by the picture."""
    import cv2

    image_HWC = image_CHW.transpose(1, 2, 0)
    if image_HWC.flags.c_contiguous:
        image_HWC[:] = np.asarray(picture)
    else:
        pixels = np.frombuffer(picture.tobytes("raw", "RGBX"), np.uint8).reshape(picture.height, picture.width, 4)
        cv2.split(pixels, [*image_CHW, np.empty_like(image_CHW[0])])


def apply_draws_pil(image: Image.Image, draws: Draws, ranges: str) -> Image.Image:
    """The same on one PIL image (converted to RGB where it is not) with draws of length 1."""
    if len(draws) != 1:
        raise ValueError(f"one PIL image needs one draw, not {len(draws)}")
    return apply_slots(image, draws.active_slots()[0], check_ranges(ranges))


def apply_slots(image: Image.Image, slots: list[Slot], ranges: str) -> Image.Image:
    """The operations of one image's active slots, one after the other, on a PIL image (converted to RGB)."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    for operation, magnitude, sign, center in slots:
        image = apply_operation_pil(image, operation, value_of(operation, magnitude, sign, ranges), center)
    return image


def apply_operation(images: Tensor, name: str, magnitude: Tensor | float, sign: Tensor | None = None,
                    ranges: str = "autoaugment", centers: Tensor | None = None,
                    generator: torch.Generator | None = None) -> Tensor:
    """Applies one operation to every image of a batch.

    Args:
        images: uint8 [B,3,H,W].
        name: one of OPERATION_NAMES.
        magnitude: 0..1, float [B], or one number for all.
        sign: +1 or -1 [B]; None means +1.
        ranges: "strength" or "autoaugment".
        centers: Cutout's (x, y) in 0..1, [B,2]; None: drawn with `generator`.
        generator: None: torch's global one.

    Returns:
        uint8 [B,3,H,W].

    Raises:
        UserError: the name or the table of ranges is unknown.
    """
    count, device = len(images), images.device

    def column(values: Tensor | float) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=device).expand(count)[:, None]

    if centers is None:
        centers = random_numbers(torch.rand, (count, 2), generator)
    operations = torch.full((count, 1), operation_index(name), device=device)
    draws = Draws(operations, torch.ones_like(operations, dtype=torch.bool), column(magnitude),
                  column(1.0 if sign is None else sign), centers.to(device)[:, None])
    return apply_draws(images, draws, ranges)


def random_numbers(distribution: Callable[..., Tensor], shape: tuple[int, ...],
                   generator: torch.Generator | None) -> Tensor:
    """`distribution` (torch.rand or torch.randn) of `shape` on the CPU, from `generator` or torch's global one."""
    return distribution(shape, generator=generator, device=generator.device if generator else "cpu").cpu()


class PolicyTransform:
    """Applies a Policy. Each image draws its own sub-policy, flags, magnitudes, signs and centres.

    Call it with a uint8 batch [B,3,H,W] on any device, or with one PIL image. The result has the same type.
    `generator` None is torch's global one. Equal generators give equal draws, whatever the images are.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.ranges = policy, policy.ranges
        padded = [(*sub_policy.operations, _NOTHING)[:2] for sub_policy in policy.sub_policies]
        weights = torch.tensor([sub_policy.weight for sub_policy in policy.sub_policies], dtype=torch.float64)
        self.cumulative_S = (weights / weights.max()).cumsum(0)
        self.cumulative_S /= self.cumulative_S[-1].clone()
        if policy.unaugmented:  # one entry more, the first, that does nothing
            padded = [(_NOTHING, _NOTHING), *padded]
            self.cumulative_S = policy.unaugmented + (1 - policy.unaugmented) * self.cumulative_S
            self.cumulative_S = torch.cat([torch.tensor([policy.unaugmented], dtype=torch.float64), self.cumulative_S])
        self.operations_SK = torch.tensor([[operation_index(slot.name) for slot in pair] for pair in padded])
        numbers = torch.tensor([[(slot.probability, slot.magnitude, slot.spread or 0.0) for slot in pair]
                                for pair in padded])
        self.probabilities_SK, self.magnitudes_SK, self.spreads_SK = numbers.unbind(2)
        self.spread_at_all = bool((self.spreads_SK > 0).any())
        # The same numbers as lists: for one image a few calls on tensors take longer than an operation.
        self.cumulative, self.operations = self.cumulative_S.tolist(), self.operations_SK.tolist()
        self.probabilities, self.magnitudes = self.probabilities_SK.tolist(), self.magnitudes_SK.tolist()

    def __call__(self, images: Images, generator: torch.Generator | None = None) -> Images:
        if isinstance(images, Image.Image):
            return apply_slots(images, self.draw_one(generator), self.ranges)
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """Draws for n images, on the CPU; K = 2, the second slot of a single operation is never active."""
        uniform = random_numbers(torch.rand, (n, 9), generator)
        chosen_B = torch.searchsorted(self.cumulative_S, uniform[:, 0].double(), right=True)
        magnitudes_BK = self._magnitudes(chosen_B, n, generator)
        return Draws(self.operations_SK[chosen_B], uniform[:, 1:3] < self.probabilities_SK[chosen_B], magnitudes_BK,
                     (uniform[:, 3:5] >= 0.5) * 2.0 - 1.0, uniform[:, 5:].unflatten(1, (2, 2)))

    def draw_one(self, generator: torch.Generator | None = None) -> list[Slot]:
        """The active slots of draw(1, generator), number for number, in a sixth of its time."""
        uniform = random_numbers(torch.rand, (9,), generator).tolist()
        chosen = bisect_right(self.cumulative, uniform[0])
        magnitudes = self.magnitudes[chosen]
        if self.policy.uniform_strength or self.spread_at_all:
            magnitudes = self._magnitudes(slice(chosen, chosen + 1), 1, generator)[0].tolist()
        return [(operation, magnitudes[k], 1.0 if uniform[3 + k] >= 0.5 else -1.0, (uniform[5 + 2 * k], uniform[6 + 2 * k]))
                for k, operation in enumerate(self.operations[chosen]) if uniform[1 + k] < self.probabilities[chosen][k]]

    def _magnitudes(self, chosen: Tensor | slice, n: int, generator: torch.Generator | None) -> Tensor:
        """float32 [B,K] for the n chosen sub-policies: drawn uniformly, around their means, or the means themselves."""
        if self.policy.uniform_strength:
            return random_numbers(torch.rand, (n, 2), generator)
        mean_BK = self.magnitudes_SK[chosen]
        if not self.spread_at_all:
            return mean_BK
        spread_BK = self.spreads_SK[chosen]
        noise_BK = random_numbers(torch.randn, (n, 2), generator)
        drawn_BK = torch.sigmoid(torch.logit(mean_BK) + spread_BK * noise_BK)
        return torch.where(spread_BK > 0, drawn_BK, mean_BK)

    def apply(self, images: Images, draws: Draws) -> Images:
        """Applies draws that were made before: to a batch, or draws of length 1 to one PIL image."""
        if isinstance(images, Image.Image):
            return apply_draws_pil(images, draws, self.ranges)
        return apply_draws(images, draws, self.ranges)


_NOTHING = Operation("Cutout", probability=0.0, magnitude=0.0)  # fills the second slot of a single operation
