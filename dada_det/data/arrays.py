"""Data sets of 32 px images that come as arrays and are kept in memory.

Suffixes: N images, C = 3 channels (RGB), H height, W width in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dada_det.data.cifar import load_cifar10, load_cifar100
from dada_det.data.svhn import load_svhn

# kind of a config -> reader (root, train=True or False) -> images uint8 [N,3,32,32], labels int64 [N], class names
READERS: dict[str, Callable[..., tuple[Tensor, Tensor, tuple[str, ...]]]] = {
    "cifar10": load_cifar10, "cifar100": load_cifar100, "svhn": load_svhn}


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of named classes in memory; for pretraining what ImageList is for files."""

    root: Path
    classes: tuple[str, ...]
    images_NCHW: Tensor
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)


def read_arrays(kind: str, root: str | Path, train: bool, **options: bool) -> ArrayImages:
    """The training or test images of `kind`, one of READERS, in `root`.

    Raises:
        UserError: its files are missing or damaged.
    """
    images_NCHW, labels_N, classes = READERS[kind](root, train=train, **options)
    return ArrayImages(Path(root), classes, images_NCHW, tuple(labels_N.tolist()))
