"""CIFAR-10 and CIFAR-100 in their binary form: records of label bytes and 3 x 32 x 32 pixel bytes (red, green, blue planes).

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version". Suffixes: N images, C = 3, H = W = 32.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dada_det.errors import UserError
from dada_det.files import whole_file, write_text

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """The files of one data set; of a record's label bytes the last is the class, the one before it the superclass."""

    name: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    names_file: str
    labels: tuple[int, ...]  # how many values each label byte has
    pickles: str  # the folder of the Python version

    @property
    def advice(self) -> str:
        return f"unpack {self.name}'s binary version again"


CIFAR10 = Layout("CIFAR-10", "cifar-10-batches-bin", tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
                 ("test_batch.bin",), "batches.meta.txt", (10,), "cifar-10-batches-py")
CIFAR100 = Layout("CIFAR-100", "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", (20, 100),
                  "cifar-100-python")


def load_cifar10(root: str | Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 [N,3,32,32], labels int64 [N] and the ten class names.

    The files lie in `root` or in its folder cifar-10-batches-bin.

    Args:
        train: whether to read the five training files, in their order, or the test file.

    Raises:
        UserError: a file is missing, is of the Python version or no whole number of records, or has labels above 9.
    """
    return _load(CIFAR10, Path(root), train)


def load_cifar100(root: str | Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The same of CIFAR-100, with its hundred fine classes; the files lie in `root` or in its folder cifar-100-binary."""
    return _load(CIFAR100, Path(root), train)


def write_cifar10(root: str | Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor],
                  classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes (images uint8 [N,3,32,32], labels [N]) in the binary form; the training images go into five files.

    Returns the folder, <root>/cifar-10-batches-bin. Needs at least five training images and one test image.
    """
    folder, files = Path(root) / CIFAR10.folder, len(CIFAR10.train_files)
    parts = zip(torch.tensor_split(train[0], files), torch.tensor_split(train[1], files), strict=True)
    for name, (images_NCHW, labels_N) in zip(CIFAR10.train_files + CIFAR10.test_files, [*parts, test], strict=True):
        records = torch.cat([labels_N.to(torch.uint8)[:, None], images_NCHW.reshape(-1, PIXELS)], dim=1)
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(records.numpy().tobytes())
    write_text(folder / CIFAR10.names_file, "\n".join(classes) + "\n")
    return folder


def _load(layout: Layout, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    folder, classes = _folder(layout, root), layout.labels[-1]
    names = tuple(line.strip() for line in _read(layout, folder / layout.names_file).decode("utf-8", "replace").splitlines()
                  if line.strip())
    if len(names) != classes:
        raise UserError(f"{folder / layout.names_file} names {len(names)} classes instead of {classes}; {layout.advice}")
    files = layout.train_files if train else layout.test_files
    records = np.concatenate([_records(layout, folder / name) for name in files])
    labels = len(layout.labels)
    images_NCHW = torch.from_numpy(records[:, labels:].reshape(-1, 3, 32, 32).copy())
    return images_NCHW, torch.from_numpy(records[:, labels - 1].astype(np.int64)), names


def _folder(layout: Layout, root: Path) -> Path:
    for folder in (root / layout.folder, root):
        if (folder / layout.train_files[0]).is_file() or (folder / layout.test_files[0]).is_file():
            return folder
    if (root / layout.pickles).is_dir() or root.name == layout.pickles:
        raise UserError(f"{root} holds {layout.name}'s Python version, whose files are pickles and are not opened, as they "
                        "can run code; unpack the binary version there")
    raise UserError(f"{root} holds no {layout.name}: looked for {layout.folder}/{layout.train_files[0]} and "
                    f"{layout.train_files[0]}; unpack {layout.name}'s binary version there")


def _read(layout: Layout, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {layout.advice}") from error


def _records(layout: Layout, path: Path) -> np.ndarray:
    """The records of one file, uint8 [N, label bytes + 3072]."""
    content, size = np.frombuffer(_read(layout, path), np.uint8), len(layout.labels) + PIXELS
    if len(content) == 0 or len(content) % size:
        raise UserError(f"{path} has {len(content)} bytes, no whole number of {size}-byte records; it is damaged or cut "
                        f"short: {layout.advice}")
    records = content.reshape(-1, size)
    for place, values in enumerate(layout.labels):
        if records[:, place].max() >= values:
            raise UserError(f"{path} has the label {records[:, place].max()}, above {values - 1}; it is not "
                            f"{layout.name}'s binary version")
    return records
