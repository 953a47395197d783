"""Images of arrays one by one: CIFAR's crop of the padded image, the whole image to validate on, and random streams."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dada_det.data.arrays import READERS, ArrayImages, read_arrays
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder, padded_crop
from dada_det.data.random import generator_for
from tests.conftest import write_noise
from tests.data.standard_files import random_pixels, write_cifar10_binary, write_cifar100_binary, write_svhn
from tests.messages import refused


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return ArrayImages(Path("nowhere"), ("a", "b"), torch.from_numpy(random_pixels(6, 0)), (0, 1, 0, 1, 0, 1))


def test_every_kind_is_read_by_its_name(tmp_path: Path) -> None:
    for kind, write in {"cifar10": write_cifar10_binary, "cifar100": write_cifar100_binary, "svhn": write_svhn}.items():
        root = write(tmp_path / kind)
        train, test = (read_arrays(kind, root, train=train) for train in (True, False))
        assert len(train.classes) == (100 if kind == "cifar100" else 10) and train.classes == test.classes
        assert (len(train), len(test), train.root) == (30 if kind == "svhn" else 40, 4, root)
        assert len(train.images_NCHW) == len(train) and all(type(label) is int for label in train.labels)
    assert len(read_arrays("svhn", root, train=True, extra=True)) == 42
    assert set(READERS) == {"cifar10", "cifar100", "svhn"}


def test_training_images_are_crops_of_the_padded_image_and_mirrored(images: ArrayImages) -> None:
    dataset = ImageFolder(images, 32, train=True, seed=3, padding=4)
    corners, mirrored = set(), 0
    for epoch in range(40):
        dataset.set_epoch(epoch)
        for index in range(len(images)):
            stream = generator_for(3, epoch, index)
            left, top, right, bottom = padded_crop(32, 32, 32, 4, stream)
            flipped = bool(torch.rand((), generator=stream) < 0.5)
            padded = functional.pad(images.images_NCHW[index], (4, 4, 4, 4))
            expected = padded[:, top + 4:bottom + 4, left + 4:right + 4]
            sample = dataset[index]
            assert torch.equal(sample["image"], expected.flip(2) if flipped else expected)
            assert (sample["label"], sample["index"], sample["broken"]) == (index % 2, index, "")
            corners.add((left, top))
            mirrored += flipped
    assert {left for left, _ in corners} == {top for _, top in corners} == set(range(-4, 5))
    assert 80 < mirrored < 160


def test_validation_images_are_whole_or_their_middle(images: ArrayImages) -> None:
    whole, middle = (ImageFolder(images, size, train=False, padding=4) for size in (32, 24))
    for index in range(len(images)):
        assert torch.equal(whole[index]["image"], images.images_NCHW[index])
        assert torch.equal(middle[index]["image"], images.images_NCHW[index, :, 4:28, 4:28])


def test_files_are_cropped_without_resizing_too(tmp_path: Path) -> None:
    listed = scan_folder(write_noise(tmp_path, classes=2, images=2, side=20, spread=60))
    plain = ImageFolder(listed, 20, train=False, padding=2)
    cropped = ImageFolder(listed, 20, train=True, padding=2)
    stream = generator_for(0, 0, 1)
    left, top, right, bottom = padded_crop(20, 20, 20, 2, stream)
    expected = functional.pad(plain[1]["image"], (2, 2, 2, 2))[:, top + 2:bottom + 2, left + 2:right + 2]
    flipped = bool(torch.rand((), generator=stream) < 0.5)
    assert torch.equal(cropped[1]["image"], expected.flip(2) if flipped else expected)


def test_a_crop_larger_than_the_padded_image_is_refused(images: ArrayImages) -> None:
    with refused("32 x 32", "padding = 4", "41 px", "--image-size"):
        ImageFolder(images, 41, train=True, padding=4)[0]
