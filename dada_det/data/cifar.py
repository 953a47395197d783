"""CIFAR-10 in its standard binary form: records of a label byte and 3 x 32 x 32 pixel bytes (red, green, blue planes).

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version". Suffixes: N images, C = 3, H = W = 32.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dada_det.errors import UserError
from dada_det.files import whole_file, write_text

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
NAMES_FILE = "batches.meta.txt"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS


def load_cifar10(root: str | Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 [N,3,32,32], labels int64 [N] and the ten class names.

    The files lie in `root` or in its folder cifar-10-batches-bin. `train`: the five training files in their order.
    Raises UserError for a missing file, one that is no whole number of records, and labels above 9.
    """
    folder = _folder(Path(root))
    names = tuple(line.strip() for line in _read(folder / NAMES_FILE).decode("utf-8", "replace").splitlines()
                  if line.strip())
    if len(names) != len(CLASSES):
        raise UserError(f"{folder / NAMES_FILE} names {len(names)} classes instead of {len(CLASSES)}; "
                        "unpack CIFAR-10's binary version again")
    records = np.concatenate([_records(folder / name, len(names)) for name in (TRAIN_FILES if train else TEST_FILES)])
    images_NCHW = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images_NCHW, torch.from_numpy(records[:, 0].astype(np.int64)), names


def write_cifar10(root: str | Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor],
                  classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes (images uint8 [N,3,32,32], labels [N]) in the binary form; the training images go into five files.

    Returns the folder, <root>/cifar-10-batches-bin. Needs at least five training images and one test image.
    """
    folder = Path(root) / FOLDER
    parts = zip(torch.tensor_split(train[0], len(TRAIN_FILES)), torch.tensor_split(train[1], len(TRAIN_FILES)),
                strict=True)
    for name, (images_NCHW, labels_N) in zip(TRAIN_FILES + TEST_FILES, [*parts, test], strict=True):
        records = torch.cat([labels_N.to(torch.uint8)[:, None], images_NCHW.reshape(-1, PIXELS)], dim=1)
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(records.numpy().tobytes())
    write_text(folder / NAMES_FILE, "\n".join(classes) + "\n")
    return folder


def _folder(root: Path) -> Path:
    for folder in (root / FOLDER, root):
        if (folder / TRAIN_FILES[0]).is_file() or (folder / TEST_FILES[0]).is_file():
            return folder
    raise UserError(f"{root} holds no CIFAR-10: looked for {FOLDER}/{TRAIN_FILES[0]} and {TRAIN_FILES[0]}; "
                    "unpack CIFAR-10's binary version there")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; unpack CIFAR-10's binary version again") from error


def _records(path: Path, classes: int) -> np.ndarray:
    """The records of one file, uint8 [N,3073]."""
    content = np.frombuffer(_read(path), np.uint8)
    if len(content) == 0 or len(content) % RECORD:
        raise UserError(f"{path} has {len(content)} bytes, no whole number of {RECORD}-byte records; "
                        "it is damaged or cut short: unpack CIFAR-10's binary version again")
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() >= classes:
        raise UserError(f"{path} has the label {records[:, 0].max()}, above {classes - 1}; "
                        "it is not CIFAR-10's binary version")
    return records
