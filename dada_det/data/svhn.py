"""SVHN's cropped digits in their standard files, {train,test,extra}_32x32.mat.

Format: http://ufldl.stanford.edu/housenumbers, "Format 2": X uint8 [32,32,3,N], y [N] of 1..10, where 10 is the digit 0.
Suffixes: N images, C = 3, H = W = 32.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dada_det.data.matlab import read_matlab
from dada_det.errors import UserError

CLASSES = tuple("0123456789")
ADVICE = "download it again from SVHN's page"


def load_svhn(root: str | Path, train: bool, extra: bool = False) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 [N,3,32,32], labels int64 [N] and the ten class names; label 0 is the digit 0.

    The files lie in `root`.

    Args:
        train: train_32x32.mat (73,257 images), with `extra` followed by extra_32x32.mat (531,131 easier ones, 2 GB in
            memory); otherwise test_32x32.mat (26,032).

    Raises:
        UserError: a file is missing or damaged, or images and labels have another form.
    """
    names = (["train", "extra"] if extra else ["train"]) if train else ["test"]
    parts = [_digits(Path(root) / f"{name}_32x32.mat", optional=name == "extra") for name in names]
    images_NCHW, labels_N = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return images_NCHW, labels_N, CLASSES


def _digits(path: Path, optional: bool) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        without = ", or write data.extra = False to train without it" if optional else ""
        raise UserError(f"{path.parent} holds no {path.name}; download SVHN's cropped digits there{without}")
    pixels, labels = read_matlab(path, ("X", "y"), ADVICE)
    if pixels.ndim == 3:  # a single image, whose last axis the reader has dropped
        pixels, labels = pixels[..., None], np.atleast_1d(labels)
    if pixels.dtype != np.uint8 or pixels.shape[:3] != (32, 32, 3) or labels.shape != pixels.shape[3:]:
        raise UserError(f"{path} holds images {pixels.dtype} {list(pixels.shape)} and labels {list(labels.shape)} instead "
                        f"of uint8 [32, 32, 3, N] and [N]; {ADVICE}")
    strangers = labels[(labels < 1) | (labels > 10)]
    if len(strangers):
        raise UserError(f"{path} has the label {strangers[0]}, which is not in 1..10; {ADVICE}")
    images_NCHW = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return images_NCHW, torch.from_numpy(labels.astype(np.int64) % 10)
