"""How the images of a search become folds where the target's labelled images will train, too."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dada_det.data.folders import ImageList
from dada_det.data.memory import MemoryImages
from dada_det.engine.search.problem import say_copies
from dada_det.engine.search.problems import against_target, labelled
from tests.messages import assert_names, refused


def numbered(labels: list[int], first: int) -> MemoryImages:
    """Images of one pixel, whose value is their number, from `first` on."""
    values = torch.arange(first, first + len(labels), dtype=torch.uint8)
    return MemoryImages(values.view(-1, 1, 1, 1).expand(-1, 3, 1, 1), torch.tensor(labels))


def numbers(images: MemoryImages) -> list[int]:
    return images.images_NCHW[:, 0, 0, 0].tolist()


def test_labels_are_part_of_what_identifies_a_list(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"image")
    one, other = (ImageList(tmp_path, ("a", "b"), ("1.jpg", "2.jpg"), labels) for labels in ((0, 1), (1, 0)))
    assert one.hash() == other.hash() and labelled(one) != labelled(other)
    assert labelled(one) == labelled(one.select([0, 1]))


def test_half_of_the_target_trains_beside_the_training_images_in_whole_groups() -> None:
    images, target = numbered([0, 0, 1, 2], 0), numbered([0] * 8 + [1] * 4 + [2], 100)
    training, groups = MemoryImages(target.images_NCHW + 100, target.labels_N), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    fold = against_target(images, target, training, 3, groups)
    assert fold.groups_V.tolist() == [groups[n - 100] for n in numbers(fold.val)]
    trains, validates = numbers(fold.train), numbers(fold.val)
    assert trains[:4] == [0, 1, 2, 3]
    assert sorted(trains[4:]) == sorted(set(range(200, 213)) - {n + 100 for n in validates})
    assert {groups[n - 200] for n in trains[4:]}.isdisjoint(fold.groups_V.tolist())
    assert [(fold.val.labels_N == label).sum() for label in (0, 1)] == [4, 2]
    assert trains[-1] == 212  # the one image of class 2


@pytest.mark.parametrize("group", range(4))
def test_the_one_image_of_a_class_is_on_the_side_of_its_group(group: int) -> None:
    images, target = numbered([0], 0), numbered([0, 0, 0, 0, 1], 100)
    groups = [0, 1, 2, 3, group]
    fold = against_target(images, target, target, 0, groups)
    trains, validates = ({groups[n - 100] for n in numbers(part) if n >= 100} for part in (fold.train, fold.val))
    assert trains.isdisjoint(validates) and trains | validates == {0, 1, 2, 3}


def test_the_target_validates_whole_where_it_does_not_train_and_a_sentence_where_it_cannot_be_parted() -> None:
    images, target = numbered([0, 1], 0), numbered([0, 1], 100)
    fold = against_target(images, target, None, 0, [7, 7])
    assert numbers(fold.train) == [0, 1] and numbers(fold.val) == [100, 101] and fold.groups_V.tolist() == [7, 7]
    with refused("--target-trains", "--val-data", "no class"):
        against_target(images, target, target, 0, [0, 1])


def test_images_of_the_target_that_train_too_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (35, 3, 6, 6), generator=generator).float()
    images, target = (F.interpolate(small, side, mode="bilinear").to(torch.uint8) for side in (40, 32))
    names = [f"{row}.jpg" for row in range(8)]
    say_copies(images[:30], images[:8, :, :32, :32], names)  # crops are other images
    assert capsys.readouterr().out == ""
    say_copies(images[:30], target[27:], names)
    assert_names(capsys.readouterr().out, "3 of the 8", "0.jpg", "1.jpg", "2.jpg", "--data", "--val-data")
