"""The binary files of CIFAR-10 and CIFAR-100: the layout of a record, and the sentence that a damaged file gets."""

from pathlib import Path

import pytest
import torch

from dada_det.data.cifar import CLASSES, load_cifar10, load_cifar100, write_cifar10
from tests.data.standard_files import random_pixels, write_cifar100_binary
from tests.messages import refused


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
    with refused(tmp_path, "no CIFAR-10", "cifar-10-batches-bin/data_batch_1.bin", "unpack"):
        load_cifar10(tmp_path, train=True)
    folder = write_cifar10(tmp_path, random_images(10, 0), random_images(5, 1))
    content = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(content[:-1])
    with refused("data_batch_2.bin", "6145 bytes", "3073-byte", "unpack"):
        load_cifar10(tmp_path, train=True)
    (folder / "data_batch_2.bin").write_bytes(b"\x0b" + content[1:])
    with refused("data_batch_2.bin", "label 11", "above 9", "CIFAR-10"):
        load_cifar10(tmp_path, train=True)
    (folder / "data_batch_2.bin").unlink()
    with refused("data_batch_2.bin", "No such file", "unpack"):
        load_cifar10(tmp_path, train=True)
    (folder / "batches.meta.txt").write_text("airplane\n")
    with refused("batches.meta.txt", "1 classes", "of 10", "unpack"):
        load_cifar10(tmp_path, train=False)

def test_cifar_100_gives_the_fine_classes(tmp_path: Path) -> None:
    write_cifar100_binary(tmp_path)
    for root in (tmp_path, tmp_path / "cifar-100-binary"):
        images, labels, names = load_cifar100(root, train=True)
        assert torch.equal(images, torch.from_numpy(random_pixels(40, 0))) and images.dtype == torch.uint8
        assert labels.tolist() == [7 * index % 100 for index in range(40)] and labels.dtype == torch.int64
        assert names == tuple(f"fine {label}" for label in range(100))
    images, labels, _ = load_cifar100(tmp_path, train=False)
    assert torch.equal(images, torch.from_numpy(random_pixels(4, 1))) and labels.tolist() == [0, 7, 14, 21]


def test_messages_of_cifar_100(tmp_path: Path) -> None:
    with refused(tmp_path, "no CIFAR-100", "cifar-100-binary/train.bin", "unpack"):
        load_cifar100(tmp_path, train=True)
    folder = write_cifar100_binary(tmp_path) / "cifar-100-binary"
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-1])
    with refused("train.bin", "122959 bytes", "3074-byte", "unpack"):
        load_cifar100(tmp_path, train=True)
    (folder / "train.bin").write_bytes(content[:1] + b"\x64" + content[2:])
    with refused("train.bin", "label 100", "above 99", "CIFAR-100"):
        load_cifar100(tmp_path, train=True)
    (folder / "train.bin").write_bytes(b"\x14" + content[1:])  # a record of CIFAR-10 has pixels here
    with refused("train.bin", "label 20", "above 19", "CIFAR-100"):
        load_cifar100(tmp_path, train=True)
    (folder / "fine_label_names.txt").unlink()
    with refused("fine_label_names.txt", "No such file", "unpack"):
        load_cifar100(tmp_path, train=False)


@pytest.mark.parametrize(("load", "folder"), [(load_cifar10, "cifar-10-batches-py"), (load_cifar100, "cifar-100-python")])
def test_pickles_are_not_opened(load, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    for root in (tmp_path, tmp_path / folder):
        with refused(root, "pickles", "run code", "unpack", "binary"):
            load(root, train=True)
