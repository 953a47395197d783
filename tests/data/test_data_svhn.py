"""SVHN's MATLAB files: the order of the axes, the digit 0, and the sentence that a damaged file gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from dada_det.data.svhn import load_svhn
from tests.data.standard_files import random_pixels, write_svhn
from tests.messages import refused


def test_the_digit_ten_is_zero_and_extra_follows_train(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    train, extra, test = (torch.from_numpy(random_pixels(count, seed)) for seed, count in enumerate((30, 12, 4)))
    images, labels, names = load_svhn(tmp_path, train=True)
    assert torch.equal(images, train) and images.dtype == torch.uint8 and images.is_contiguous()
    assert labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 3 and labels.dtype == torch.int64
    assert names == tuple("0123456789")
    images, labels, _ = load_svhn(tmp_path, train=True, extra=True)
    assert torch.equal(images, torch.cat([train, extra])) and labels[30:].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    images, labels, _ = load_svhn(tmp_path, train=False, extra=True)
    assert torch.equal(images, test) and labels.tolist() == [1, 2, 3, 4]


def test_a_file_of_one_image(tmp_path: Path) -> None:
    write_svhn(tmp_path, test=1)
    images, labels, _ = load_svhn(tmp_path, train=False)
    assert torch.equal(images, torch.from_numpy(random_pixels(1, 2))) and labels.tolist() == [1]


def test_messages(tmp_path: Path) -> None:
    with refused(tmp_path, "train_32x32.mat", "download"):
        load_svhn(tmp_path, train=True)
    write_svhn(tmp_path)
    (tmp_path / "extra_32x32.mat").unlink()
    with refused(tmp_path, "extra_32x32.mat", "download", "data.extra = False"):
        load_svhn(tmp_path, train=True, extra=True)
    content = (tmp_path / "train_32x32.mat").read_bytes()
    for damaged in (content[:2000], content[:300] + b"\xff" * 40 + content[340:], b"no MATLAB at all"):
        (tmp_path / "train_32x32.mat").write_bytes(damaged)
        with refused("train_32x32.mat", "level 5", "download"):
            load_svhn(tmp_path, train=True)
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with refused("train_32x32.mat", "'y'", "download"):
        load_svhn(tmp_path, train=True)


@pytest.mark.parametrize(("pixels", "labels", "names"), [
    (np.zeros((32, 32, 3, 2), np.float32), [1, 2], ("float32 [32, 32, 3, 2]", "labels [2]", "uint8 [32, 32, 3, N]", "[N]",
                                                    "download")),
    (np.zeros((2, 32, 32, 3), np.uint8), [1, 2], ("uint8 [2, 32, 32, 3]", "labels [2]", "uint8 [32, 32, 3, N]", "[N]",
                                                  "download")),
    (np.zeros((32, 32, 3, 2), np.uint8), [1, 2, 3], ("labels [3]", "uint8 [32, 32, 3, N]", "[N]", "download")),
    (np.zeros((32, 32, 3, 2), np.uint8), [1, 11], ("label 11", "1..10", "download")),
    (np.zeros((32, 32, 3, 2), np.uint8), [1, 0], ("label 0", "1..10", "download"))])
def test_images_and_labels_of_another_form(pixels, labels, names: tuple[str, ...], tmp_path: Path) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.array(labels, np.uint8)[:, None]})
    with refused("train_32x32.mat", *names):
        load_svhn(tmp_path, train=True)
