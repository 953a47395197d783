"""Groups by names, by expressions and of near copies, and halves that keep them whole."""

import io
import random
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dada_det.data.folders import ImageList, offered_to_validate, scan_folder
from dada_det.data.groups import group_halves, groups_of, leak_found, leak_found_in_pixels, near_copies
from dada_det.data.imagenet import decode
from dada_det.data.splits import halves
from tests.messages import refused


def listed(*names: str) -> ImageList:
    """Images of these names, <class>/.., that are nowhere."""
    classes = tuple(dict.fromkeys(name.partition("/")[0] for name in names))
    return ImageList(Path("/nowhere"), classes, names, tuple(classes.index(name.partition("/")[0]) for name in names))


def together(names: list[str], rule: str = "auto") -> list[list[str]]:
    """The groups of several images, by name; all images are of one class."""
    ids = groups_of(names, [0] * len(names), rule).ids
    return [group for number in dict.fromkeys(ids)
            if len(group := [name for name, own in zip(names, ids, strict=True) if own == number]) > 1]


@pytest.fixture(scope="module")
def signs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """336 pictures of 84 signs, four of each, in twelve classes; a name is <sign>_<sign>_<picture>.png."""
    folder = tmp_path_factory.mktemp("signs")
    with tarfile.open(shared / "data/natural/gtsrb12-48.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder / "gtsrb12" / "train"


def photographs(count: int, seed: int = 0) -> Tensor:
    """uint8 [N,3,32,32]: clouds of colour, no two alike."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=source).float()
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("names", [
    [f"a/{video:05d}_{frame:05d}.png" for video in range(4) for frame in range(3)],
    [f"a/video{video}_frame{frame}.jpg" for video in range(4) for frame in range(3)],
    [f"a/patient{patient}/{slice_}.tif" for patient in range(4) for slice_ in range(3)],
    [f"a/P{tile:04d}__1__{x}___seg.png" for tile in range(4) for x in range(3)],
    [f"a/clip_{clip}-{frame}_jpg.rf.{random.Random(9 * clip + frame).getrandbits(128):032x}.jpg"
     for clip in range(4) for frame in range(3)],
], ids=["signs", "videos", "folders", "tiles", "exported"])
def test_names_that_differ_in_their_last_number_alone_are_a_group(names: list[str]) -> None:
    assert together(names) == [names[start:start + 3] for start in range(0, 12, 3)]
    assert together(names, "none") == []


@pytest.mark.parametrize("names", [
    [f"a/IMG_{number}.jpg" for number in range(12)],
    [f"a/{number:06d}.jpg" for number in range(12)],
    [f"a/n01440764_{number}.JPEG" for number in range(10)] + ["a/ILSVRC2012_val_01.JPEG", "a/ILSVRC2012_val_02.JPEG"],
    [f"a/{source}_{number}.jpg" for source in ("caltech", "flickr") for number in range(6)],
    ["a/one.jpg", "a/two.jpg", "a/three.jpg", "a/no ending", "a/4.5.jpg"],
], ids=["one camera", "numbers", "imagenette", "two sources", "words"])
def test_names_that_make_no_groups_of_a_class(names: list[str]) -> None:
    assert together(names) == []


def test_a_class_is_grouped_by_itself_and_names_of_two_classes_are_never_one_group() -> None:
    images = listed(*(f"a/{video}_{frame}.png" for video in range(3) for frame in range(2)),
                    *(f"b/0_{number}.png" for number in range(4)), "c/0_0.png", "c/0_1.png", "c/1_0.png", "c/1_1.png",
                    "c/2_0.png", "c/2_1.png")
    groups = groups_of(images.files, images.labels, "auto")
    assert Counter(Counter(groups.ids).values()) == {2: 6, 1: 4}
    assert groups.said == "6 groups of file names such as a/0_*"


def test_an_expressions_match_is_the_group() -> None:
    names = ["a/tile_x1_y1.png", "b/tile_x1_y2.png", "a/tile_x2_y1.png", "a/tile_x2_y9.png", "b/other.png", "b/another.png"]
    ids = groups_of(names, [0, 1, 0, 0, 1, 1], r"x\d+").ids
    assert ids[0] == ids[1] != ids[2] == ids[3] and len(set(ids)) == 4
    with refused("--groups", "'('", "auto or none"):
        groups_of(names, [0] * 6, "(")
    with refused("--groups", "'video'", "6 images", "'a/tile_x1_y1.png'", "auto or none"):
        groups_of(names, [0] * 6, "video")


def test_without_groups_the_halves_are_the_same_as_ever() -> None:
    names = [f"{name}/IMG_{number}.jpg" for name, count in (("a", 9), ("b", 4), ("c", 2)) for number in range(count)]
    images = listed(*names)
    expected = []
    for label, name in enumerate(images.classes):  # drawn image by image, the first half of each class validates
        members = [index for index, own in enumerate(images.labels) if own == label]
        expected += random.Random(f"7/{name}").sample(members, len(members))[:len(members) // 2]
    for rule in ("auto", "none"):
        train, val, groups = halves(images, rule, seed=7, images_NCHW=photographs(len(names)))
        assert val == sorted(expected) and train == sorted(set(range(15)) - set(expected)) and groups.said is None


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_of_whole_groups_and_even(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"{name}/{video}_{frame}.png" for name in "abc" for video in range(chance.randint(5, 9))
             for frame in range(chance.randint(1, 6))]
    images = listed(*names)
    ids = groups_of(names, images.labels, "auto").ids
    train, val = group_halves(offered_to_validate(images, seed), ids)
    assert sorted(train + val) == list(range(len(names)))
    assert not {ids[row] for row in train} & {ids[row] for row in val}
    for label in range(3):
        parts = [sum(images.labels[row] == label for row in part) for part in (train, val)]
        assert abs(parts[0] - parts[1]) <= 6  # as one group, at most


def test_groups_across_classes_stay_whole_and_a_class_of_one_group_is_said() -> None:
    images = listed(*(f"{name}/video{video}_{frame}.png" for name in "ab" for video in range(4) for frame in range(2)))
    train, val, groups = halves(images, r"video\d+", seed=0)
    assert groups.said == "4 groups of file names such as video0" and len(train) == len(val) == 8
    assert {images.files[row][2:8] for row in train}.isdisjoint({images.files[row][2:8] for row in val})
    with refused("1 groups", "'a'", "8 images", "--groups none", "--val-data"):
        halves(images, r"^\w/", seed=0)


def test_groups_of_many_classes_are_parted_so_that_each_class_is_near_its_half() -> None:
    chance = random.Random(5)
    videos = [f"{chance.choice('abc')}/video{video}_{frame}.png" for video in range(30) for frame in range(8)]
    images = listed(*videos, *(f"d/video{video}_0.png" for video in (3, 17)))  # a rare class, in two videos
    train, val, _ = halves(images, r"video\d+(?=_)", seed=1)
    assert len(train) >= len(val)
    for label in range(4):
        parts = [sum(images.labels[row] == label for row in part) for part in (train, val)]
        assert abs(parts[0] - parts[1]) <= max(4, 0.1 * sum(parts)) and min(parts) > 0


def test_halves_exist_where_a_group_must_leave_its_best_side() -> None:
    assert group_halves([[0, 1, 3], [2, 4]], [0, 2, 2, 3, 3]) == ([0, 3, 4], [1, 2])


def test_near_copies_are_found_and_other_images_are_not() -> None:
    originals = photographs(40)
    labels = [number % 4 for number in range(40)]
    copies = []
    for row in range(4):  # stored again, resized, slightly cropped, darker
        image = Image.fromarray(originals[row].permute(1, 2, 0).numpy())
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=70)
        changed = [Image.open(buffer), image.resize((20, 20)).resize((32, 32)), image.crop((1, 1, 31, 31)).resize((32, 32)),
                   image.point(lambda value: value // 2)][row]
        copies.append(torch.from_numpy(np.asarray(changed).transpose(2, 0, 1).copy()))
    pixels, everyone = torch.cat([originals, torch.stack(copies)]), labels + labels[:4]
    assert near_copies(pixels, everyone) == [(0, 40), (1, 41), (2, 42), (3, 43)]
    assert near_copies(pixels, [*labels, 3, 0, 1, 2]) == []  # of another class
    assert near_copies(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), [0] * 5) == []
    groups = groups_of(None, everyone, "auto", pixels)
    assert [groups.ids[row] for row in range(4)] == [groups.ids[row] for row in range(40, 44)]
    assert groups.said == "4 near copies kept beside their originals"
    assert groups_of(None, everyone, "none", pixels).said is None


def test_images_that_are_all_alike_are_no_copies_of_each_other() -> None:
    one = photographs(1).expand(10, -1, -1, -1)
    noisy = (one.int() + torch.randint(-3, 4, one.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    pixels = torch.cat([noisy.to(torch.uint8), photographs(10, seed=1)])
    assert groups_of(None, [0] * 10 + [1] * 10, "auto", pixels).said is None


def test_signs_are_grouped_by_sign_and_renamed_ones_as_far_as_their_pixels_tell(signs: Path, tmp_path: Path) -> None:
    images = scan_folder(signs)
    by_sign = [name.rpartition("_")[0] for name in images.files]
    groups = groups_of(images.files, images.labels, "auto")
    assert groups.ids == tuple({sign: number for number, sign in enumerate(dict.fromkeys(by_sign))}[s] for s in by_sign)
    assert groups.said == "84 groups of file names such as 00001/00001_00001_*"
    train, val, _ = halves(images, "auto", seed=0)
    assert (train, val) == halves(images, r"^.*(?=_\d+\.png)", seed=0)[:2]
    assert {by_sign[row] for row in train}.isdisjoint({by_sign[row] for row in val})
    pixels, _ = decode(images, 48, workers=2)
    pairs = near_copies(pixels, images.labels)
    assert len(pairs) >= 3 and all(by_sign[one] == by_sign[other] for one, other in pairs)
    renamed = random.Random(0).sample(range(10 ** 6), len(images))
    names = [f"{name.partition('/')[0]}/{new}.png" for name, new in zip(images.files, renamed, strict=True)]
    hidden = groups_of(names, images.labels, "auto", pixels)
    assert "near copies" in str(hidden.said) and len(set(hidden.ids)) < len(images)
    labels = torch.tensor(images.labels)


    def found(one: Sequence[int], other: Sequence[int], target: bool = False) -> str | None:
        return leak_found_in_pixels(pixels[one], pixels[other], labels[one], labels[other], target)

    leaking = found(*group_halves(offered_to_validate(images, 0), hidden.ids))
    assert leaking and "stand in both halves" in leaking and "--groups" in leaking and "--val-data" in leaking
    assert found(train, val) is None
    assert "both among the training images and in --val-data" in str(found(train, train, target=True))


def clusters(groups: int, members: int, spread: float, seed: int = 0) -> Tensor:
    """Features [groups x members, 12]: points around a centre each, in the order of the groups."""
    source = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 1, 12, generator=source)
    return (centres + spread * torch.randn(groups, members, 12, generator=source)).flatten(0, 1)


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.4])
def test_a_leak_is_found_in_features_and_halves_of_whole_groups_have_none(spread: float) -> None:
    features, labels = clusters(groups=24, members=4, spread=spread), torch.zeros(48, dtype=torch.long)
    leaking = leak_found(features[::2], features[1::2], labels, labels)
    assert leaking and "stand in both halves" in leaking
    assert leak_found(features[:48], features[48:], labels, labels) is None


@pytest.mark.parametrize("dimensions", [12, 60])
@pytest.mark.parametrize("images", [28, 100, 1000])
def test_images_that_stand_alone_are_no_leak(dimensions: int, images: int) -> None:
    source = torch.Generator().manual_seed(images + dimensions)
    normal, uniform = (draw(2 * images, dimensions, generator=source) for draw in (torch.randn, torch.rand))
    labels = torch.arange(2 * images) % 2
    stretched = normal * torch.logspace(0, 2, dimensions)  # most of the variance in a few directions
    for features in (normal, uniform, stretched, normal.relu()):
        assert leak_found(features[:images], features[images:], labels[:images], labels[images:]) is None


def test_small_classes_say_nothing() -> None:
    features, labels = clusters(groups=40, members=2, spread=0.01), torch.arange(40) % 8  # five images that train
    assert leak_found(features[::2], features[1::2], labels, labels) is None
