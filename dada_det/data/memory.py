"""Images kept as uint8 in memory, and the batches of a search drawn from them.

N images, B of a batch, C channels, H height, W width. All randomness is keyed by (seed, stream, epoch or step), so a resumed
search goes on exactly. Each process draws the whole batch and takes its own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dada_det.devices import move, move_all
from dada_det.errors import UserError

CGROUP = "/sys/fs/cgroup"  # of version 2, where memory.max and memory.current are this container's


@dataclass(frozen=True)
class MemoryImages:
    """uint8 images [N,3,H,W] and their labels [N] (long)."""

    images_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, rows: Sequence[int] | Tensor) -> "MemoryImages":
        """The images at `rows` (indices on the CPU), copied, on the device of the images; nothing waits for it."""
        index = move(torch.as_tensor(rows, dtype=torch.long), self.images_NCHW.device)
        return MemoryImages(self.images_NCHW[index], self.labels_N[index])


def random_crop(images_BCHW: Tensor, size: int, padding: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """A random `size` x `size` crop of each zero-padded uint8 image; with `mirror`, flipped with probability 1/2."""
    b, _, h, w = images_BCHW.shape
    ys = torch.randint(0, h + 2 * padding - size + 1, (b,), generator=generator)
    xs = torch.randint(0, w + 2 * padding - size + 1, (b,), generator=generator)
    flips = (torch.rand(b, generator=generator) < 0.5) & mirror
    offsets = torch.arange(size)
    rows_BS = ys[:, None] + offsets
    columns_BS = xs[:, None] + torch.where(flips[:, None], offsets.flip(0), offsets)
    rows_BS, columns_BS = move_all((rows_BS, columns_BS), images_BCHW.device)
    padded = F.pad(images_BCHW, (padding,) * 4) if padding else images_BCHW
    index_B11 = torch.arange(b, device=images_BCHW.device)[:, None, None]
    crops_BSSC = padded.permute(0, 2, 3, 1)[index_B11, rows_BS[:, :, None], columns_BS[:, None, :]]
    return crops_BSSC.permute(0, 3, 1, 2).contiguous()


def center_crop(images_BCHW: Tensor, size: int) -> Tensor:
    """The middle `size` x `size` pixels; ValueError if the images are smaller."""
    h, w = images_BCHW.shape[-2:]
    if size > min(h, w):
        raise ValueError(f"a crop of {size} px does not fit into {h} x {w} px")
    y, x = (h - size) // 2, (w - size) // 2
    return images_BCHW[..., y:y + size, x:x + size]


def demand_room(images: int, side: int, where: Path | str) -> None:
    """Raises UserError if `images` uint8 images [3,side,side] need more memory than is free."""
    needed, free = 3 * images * side**2, free_memory()
    if free is not None and needed > free:
        raise UserError(f"{images} images of {where} take {needed / 1e9:.1f} GB of memory at {side} px, and "
                        f"{free / 1e9:.1f} GB are free; give fewer (in a search --cfg-options data.images_per_class=50) or "
                        "a smaller --image-size")


def free_memory() -> int | None:
    """The bytes that this process may still take, of the machine or of its container; None where the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        most, taken = (Path(CGROUP, f"memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current"))
        found += [int(most) - int(taken)] if most != "max" else []
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)
