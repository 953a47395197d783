"""Scanning, subsets and halves of image folders, and the sentence that each mistake gets."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dada_det.data.folders import ImageList, say_passed_over, scan_folder, search_subset
from dada_det.data.splits import halves, search_lists
from tests.messages import assert_names, refused


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def imagenet_like(per_class: int = 60, classes: int = 1000) -> ImageList:
    names = tuple(f"n{number:08d}" for number in range(classes))
    files = tuple(f"{name}/{i:03d}.JPEG" for name in names for i in range(per_class))
    return ImageList(Path("/nowhere"), names, files, tuple(label for label in range(classes) for _ in range(per_class)))


def halved(images: ImageList, seed: int) -> tuple[ImageList, ImageList]:
    train, val, _ = halves(images, "auto", seed)
    return images.select(train), images.select(val)


def test_scan_sorts_nests_and_ignores_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPEG", "b/deep/er/1.jpg", "a/x.PNG", "a/y.webp", "a/z.Bmp", "a/notes.txt", "a/.hidden.jpg",
          "a/.thumbs/t.jpg", ".git/x.jpg", "loose.jpg")
    images = scan_folder(tmp_path)
    assert images.classes == ("a", "b")
    assert images.files == ("a/x.PNG", "a/y.webp", "a/z.Bmp", "b/2.JPEG", "b/deep/er/1.jpg")
    assert images.labels == (0, 0, 0, 1, 1)
    assert images.path(4) == tmp_path / "b" / "deep" / "er" / "1.jpg"


def test_scan_follows_links(tmp_path: Path) -> None:
    touch(tmp_path, "store/cat/1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "store" / "cat")
    assert scan_folder(tmp_path / "root").files == ("cat/1.jpg",)


def test_labels_follow_given_classes(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "c/1.jpg")
    images = scan_folder(tmp_path, classes=("a", "c", "b"))
    assert images.classes == ("a", "c", "b") and images.labels == (2, 1)


def test_messages_of_scan(tmp_path: Path) -> None:
    with refused(tmp_path / "missing", "class"):
        scan_folder(tmp_path / "missing")
    with refused(tmp_path, "<class>/<image>"):
        scan_folder(tmp_path)
    touch(tmp_path, "a/1.jpg", "b/notes.txt")
    with refused(tmp_path / "b", "image"):
        scan_folder(tmp_path)
    touch(tmp_path, "b/1.jpg")
    with refused(tmp_path, "1 classes", "'b'", "validation folder"):
        scan_folder(tmp_path, classes=("a",))
    with refused("'a'", tmp_path, "1 images", "--val-data"):
        halves(scan_folder(tmp_path), "auto", seed=0)


def test_halves_are_disjoint_complete_and_stratified(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{i}.jpg" for name, count in (("a", 7), ("b", 4)) for i in range(count)))
    images = scan_folder(tmp_path)
    train, val = halved(images, seed=3)
    assert sorted(train.files + val.files) == sorted(images.files)
    assert [train.labels.count(label) for label in (0, 1)] == [4, 2]
    assert [val.labels.count(label) for label in (0, 1)] == [3, 2]
    assert all(name[0] == images.classes[label] for name, label in zip(val.files, val.labels, strict=True))
    assert halved(images, seed=3) == (train, val) and halved(images, seed=4) != (train, val)


def test_hash_names_content_not_place(tmp_path: Path) -> None:
    touch(tmp_path / "one", "a/1.jpg", "a/2.jpg")
    images = scan_folder(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert len(images.hash()) == 64
    assert scan_folder(tmp_path / "two").hash() == images.hash() != images.select([0]).hash()
    (tmp_path / "two" / "a" / "2.jpg").write_bytes(b"another size")
    assert scan_folder(tmp_path / "two").hash() != images.hash()


def test_imagenet_subset_is_the_papers() -> None:
    images = imagenet_like()
    chosen = search_subset(images, "imagenet120", 50, None, seed=0)
    assert len(chosen) == 6000 and len(chosen.classes) == 120
    assert chosen.classes[:3] == ("n00000016", "n00000023", "n00000052") and chosen.classes[-1] == "n00000959"
    assert [chosen.labels.count(label) for label in range(120)] == [50] * 120
    assert all(name.startswith(chosen.classes[label]) for name, label in zip(chosen.files, chosen.labels, strict=True))
    assert len(set(chosen.files)) == 6000
    assert search_subset(images, "imagenet120", 50, None, seed=0) == chosen
    assert search_subset(images, "imagenet120", 50, None, seed=1).files != chosen.files


def test_subset_takes_everything_of_other_folders() -> None:
    few = imagenet_like(per_class=3, classes=10)
    assert search_subset(few, "imagenet120", 1, None, seed=0) is few
    full = imagenet_like(per_class=2)
    assert search_subset(full, None, 1, None, seed=0) is full
    assert len(search_subset(full, "imagenet120", 50, None, seed=0)) == 240
    with refused("data.subset", "'cifar'", "imagenet120", "None"):
        search_subset(few, "cifar", 1, None, seed=0)


@pytest.mark.parametrize("subset", ["imagenet120", None])
@pytest.mark.parametrize("classes", [10, 999, 1000, 1001])
def test_images_per_class_counts_for_every_folder(subset: str | None, classes: int) -> None:
    images = imagenet_like(per_class=5, classes=classes)
    drawn = search_subset(images, subset, 4, 2, seed=0)
    left = 120 if subset and classes == 1000 else classes
    assert len(drawn.classes) == left and [drawn.labels.count(label) for label in (0, left - 1)] == [2, 2]
    assert len(drawn) == 2 * left and len(set(drawn.files)) == len(drawn)
    assert all(name.startswith(drawn.classes[label]) for name, label in zip(drawn.files, drawn.labels, strict=True))
    assert search_subset(images, subset, 4, 2, seed=0) == drawn != search_subset(images, subset, 4, 2, seed=1)
    assert len(search_subset(images, subset, 4, 99, seed=0)) == 5 * left  # all where there are fewer


def test_a_folder_as_large_as_imagenet_is_never_taken_whole_by_default() -> None:
    """1,001 classes, or 1,000 that have other names than ImageNet's."""
    for images in (imagenet_like(per_class=5, classes=1001),
                   replace(imagenet_like(per_class=5), classes=tuple(f"class{label}" for label in range(1000)))):
        drawn = search_subset(images, "imagenet120", 3, None, seed=0)
        assert drawn.classes == images.classes and len(drawn) == 3 * len(images.classes)


def test_images_per_class_counts_for_the_images_that_validate_too(tmp_path: Path) -> None:
    for split in ("train", "val"):
        touch(tmp_path / split, *(f"{name}/{number}.jpg" for name in "ab" for number in range(6)))
    data = {"root": tmp_path, "val_root": tmp_path / "val"}
    assert [len(part) for part in search_lists({**data, "images_per_class": 4}, seed=0)] == [8, 8]
    assert [len(part) for part in search_lists(data, seed=0)] == [12, 12]


def test_a_target_of_all_classes_of_imagenet_is_taken_down_to_those_of_the_subset(tmp_path: Path) -> None:
    for split in ("train", "val"):
        touch(tmp_path / split, *(f"n{number:08d}/{split}.jpg" for number in range(1000)))
    data = {"root": tmp_path, "val_root": tmp_path / "val", "subset": "imagenet120"}
    images, target = search_lists(data, seed=0)
    assert target is not None and images.classes == target.classes and len(images) == len(target) == 120
    assert all(name.startswith(target.classes[label]) for name, label in zip(target.files, target.labels, strict=True))
    touch(tmp_path / "other", "n00000000/0.jpg")  # a class of ImageNet that is none of the 120
    with refused(tmp_path / "other", "no image of the 120 classes", "'n00000016'", "data.subset"):
        search_lists({**data, "val_root": tmp_path / "other"}, seed=0)


def test_real_folder(shared: Path) -> None:
    images = scan_folder(shared / "data" / "imagenette-mini" / "train")
    assert len(images) == 400 and len(images.classes) == 10 and images.classes[0] == "n01440764"
    val = scan_folder(shared / "data" / "imagenette-mini" / "val", images.classes)
    assert len(val) == 200 and set(val.labels) == set(range(10))


def test_what_cannot_be_opened_is_an_image_that_does_not_decode(tmp_path: Path) -> None:
    touch(tmp_path / "train", "a/1.jpg")
    (tmp_path / "train/a/2.jpg").symlink_to("/nonexistent/2.jpg")
    (tmp_path / "train/a/3.jpg").symlink_to("3.jpg")
    images = scan_folder(tmp_path / "train")
    assert images.files == ("a/1.jpg", "a/2.jpg", "a/3.jpg") and [images.size(row) for row in range(3)] == [7, -1, -1]
    assert len(images.hash()) == 64
    with pytest.raises(OSError, match="2"):
        images.read(1)
    (tmp_path / "train/b").symlink_to("/nonexistent/b")
    with refused(tmp_path / "train/b", "link", "mount", "remove"):
        scan_folder(tmp_path / "train")


def test_each_folder_of_a_class_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "root/cat/1.jpg", "root/cat/deep/2.jpg", "store/3.jpg")
    for link, folder in (("root/cat/itself", "root/cat"), ("root/cat/deep/up", "root/cat"), ("root/cat/top", "root"),
                         ("root/cat/one", "store"), ("root/cat/two", "store")):
        (tmp_path / link).symlink_to(tmp_path / folder)
    assert scan_folder(tmp_path / "root").files == ("cat/1.jpg", "cat/deep/2.jpg", "cat/one/3.jpg")


def test_other_files_are_counted_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path, "a/1.jfif", "a/2.JPE", "a/3.gif", "a/4.heic", "a/5.HEIC", "a/notes", "a/.DS_Store", "b/1.png")
    images = scan_folder(tmp_path)
    assert len(images) == 4
    say_passed_over(images, "search")
    assert_names(capsys.readouterr().out, "search", "3 files", tmp_path, "2 .heic", "1 without an ending")
    say_passed_over(images.select([0, 1]), "search")  # the line is about the folder
    assert "3 files" in capsys.readouterr().out
    touch(tmp_path, "c/1.heic")
    with refused(tmp_path / "c", "1 .heic", "add images"):
        scan_folder(tmp_path)


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"tee"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        for number in range(2):
            with open(folder + b"/\xff%d.jpg" % number, "wb") as file:
                file.write(b"x")
    images = scan_folder(tmp_path)
    train, val = halved(images, seed=0)
    assert train.labels == val.labels == (0, 1) and len(train.hash()) == 64
