"""CIFAR-10's binary files: the layout of a record, and the sentence that a damaged file gets."""

from pathlib import Path

import pytest
import torch

from dada_det.data.cifar import CLASSES, load_cifar10, write_cifar10
from dada_det.errors import UserError


def random_images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 10


def test_round_trip_in_order(tmp_path: Path) -> None:
    train, test = random_images(13, 0), random_images(4, 1)
    folder = write_cifar10(tmp_path, train, test)
    for root in (tmp_path, folder):
        images, labels, names = load_cifar10(root, train=True)
        assert torch.equal(images, train[0]) and torch.equal(labels, train[1]) and names == CLASSES
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    images, labels, _ = load_cifar10(tmp_path, train=False)
    assert torch.equal(images, test[0]) and torch.equal(labels, test[1])


def test_a_record_is_a_label_and_three_planes(tmp_path: Path) -> None:
    train = random_images(5, 0)
    folder = write_cifar10(tmp_path, train, train)
    record = (folder / "data_batch_3.bin").read_bytes()
    assert len(record) == 3073 and record[0] == 2
    assert record[1] == train[0][2, 0, 0, 0] and record[1 + 1024 + 33] == train[0][2, 1, 1, 1]


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no CIFAR-10: looked for cifar-10-batches-bin/data_batch_1.bin"):
        load_cifar10(tmp_path, train=True)
    folder = write_cifar10(tmp_path, random_images(10, 0), random_images(5, 1))
    content = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data_batch_2.bin has 6145 bytes, no whole number of 3073-byte records"):
        load_cifar10(tmp_path, train=True)
    (folder / "data_batch_2.bin").write_bytes(b"\x0b" + content[1:])
    with pytest.raises(UserError, match=r"data_batch_2.bin has the label 11, above 9"):
        load_cifar10(tmp_path, train=True)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*data_batch_2.bin: No such file or directory; unpack"):
        load_cifar10(tmp_path, train=True)
    (folder / "batches.meta.txt").write_text("airplane\n")
    with pytest.raises(UserError, match=r"batches.meta.txt names 1 classes instead of 10"):
        load_cifar10(tmp_path, train=False)
