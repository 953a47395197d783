"""Planted shifts: thirds that do not overlap, the operation applied to two of them, and an oracle that says just that."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d

from dada_det.augment import PolicyTransform, apply_operation
from dada_det.data.folders import scan_folder
from dada_det.data.memory import MemoryImages
from planted_images import LUMINANCE, MADE, images_for, oracle, plant, source, write_folders
from tests.messages import refused

pytest.importorskip("sklearn")


@pytest.mark.parametrize("operation", ["Invert", "Color", "Sharpness"])
def test_the_thirds_are_one_set_and_two_of_them_are_transformed(operation: str) -> None:
    images, labels = images_for(operation, 3, None, 16)
    train, val, unseen = plant(operation, 3)
    assert len(train) == len(val) == len(unseen) == 599
    assert torch.equal(train.images_NCHW, images[:599]) and torch.equal(unseen.labels_N, labels[1198:1797])
    assert not torch.equal(val.images_NCHW, images[599:1198])
    assert not torch.equal(plant(operation, 4)[0].images_NCHW, train.images_NCHW)
    if operation == "Invert":
        assert torch.equal(unseen.images_NCHW, 255 - images[1198:1797])


@pytest.mark.parametrize("operation", ["Color", "Sharpness"])
def test_one_part_of_a_label_tells_by_itself_after_the_operation_and_as_a_ratio_after_contrast(operation: str) -> None:
    """Label % 2 is how far apart an image's coarse greys are; the other part is in what is left without them."""
    images, labels = images_for(operation, 0, None, 16)
    images, labels = images[:600], labels[:600]

    def told(values_N: torch.Tensor) -> float:
        """By the best threshold."""
        return max(((values_N > at) == (labels % 2 == 1)).double().mean().item() for at in values_N)

    def coarse_and_rest(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        moved_NCHW = apply_operation(images, name, 0.95, signs, ranges="strength").double()
        grey_N1HW = (moved_NCHW * LUMINANCE.double()[:, None, None]).sum(1, keepdim=True)
        blurred_N1HW = avg_pool2d(grey_N1HW, 5, 1)
        rest_NCHW = moved_NCHW - grey_N1HW if operation == "Color" else grey_N1HW[..., 2:-2, 2:-2] - blurred_N1HW
        return avg_pool2d(grey_N1HW, 4).flatten(1).std(1), rest_NCHW.flatten(1).std(1)

    signs = torch.ones(600)
    signs[::2] = -1
    coarse_N, rest_N = coarse_and_rest(operation)
    assert told(coarse_N) > 0.95 and told(coarse_N / rest_N) < 0.8
    coarse_N, rest_N = coarse_and_rest("Contrast")
    assert told(coarse_N) < 0.8 and told(coarse_N / rest_N) > 0.9
    assert ((images == 0) | (images == 255)).double().mean() < 1e-3  # nor does what is cut off tell anything


@pytest.mark.parametrize("operation", ["Brightness", "Contrast"])
def test_the_oracle_of_a_low_factor_is_what_was_planted(operation: str) -> None:
    """The factor 0.145 whatever the sign; the same pixels, where the flag is on."""
    images, _ = images_for(operation, 0, None, 16)
    moved = apply_operation(images[:64], operation, 0.95, -torch.ones(64), ranges="strength")
    transform = PolicyTransform(oracle(operation))
    draws = transform.draw(64, torch.Generator().manual_seed(0))
    acted = draws.active_BK[:, 0]
    assert 16 < acted.sum() < 48
    assert torch.equal(transform.apply(images[:64], draws)[acted], moved[acted])
    assert torch.equal(transform.apply(images[:64], draws)[~acted], images[:64][~acted])


def test_a_folder_of_images_and_the_folders_written_for_the_search(tmp_path: Path) -> None:
    train, val, _ = plant("Rotate", 0)
    write_folders(tmp_path, train=train, val=val)
    assert len(scan_folder(tmp_path / "train")) == 599
    again = plant("Rotate", 1, tmp_path / "train", 16)
    assert [len(part) for part in again] == [199, 199, 199] and again[0].images_NCHW.shape[1:] == (3, 16, 16)


def test_both_splits_of_a_folder_are_taken_together(tmp_path: Path) -> None:
    """Not as two classes that are called train and val."""
    train, val, _ = plant("Rotate", 0)
    write_folders(tmp_path, train=train, val=val)
    images, labels = images_for("Rotate", 0, tmp_path, 16)
    assert len(images) == 1198 and labels.unique().tolist() == list(range(10))
    assert torch.equal(labels.bincount(), train.labels_N.bincount() + val.labels_N.bincount())


def test_a_class_that_the_training_third_lacks_is_said(tmp_path: Path) -> None:
    images, labels_N = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8), torch.arange(9)
    write_folders(tmp_path, images=MemoryImages(images, labels_N))
    with refused("seed 2", "6 of 9 classes"):
        plant("Rotate", 2, tmp_path / "images", 16)


def test_folders_of_one_name_and_other_images_are_told_apart(tmp_path: Path) -> None:
    for place, images in (("a", 3), ("b", 4)):
        black = MemoryImages(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), torch.zeros(images, dtype=torch.long))
        write_folders(tmp_path / place, images=black)
    named = [source(tmp_path / place / "images") for place in "ab"]
    assert all(name.startswith("images, ") for name in named) and named[0] != named[1]
    assert source(None) == MADE
