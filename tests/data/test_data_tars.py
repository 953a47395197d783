"""Tar shards as lists of images: what is read from them, and the sentence that each mistake gets."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder, decode
from dada_det.data.splits import halves, search_lists
from dada_det.data.tars import find_shards, split_name
from dada_det.errors import UserError
from tests.conftest import write_noise, write_shard
from tests.messages import refused


def entries(count: int = 2, **changes: bytes | None) -> dict[str, bytes]:
    """`count` samples 000.jpg, 000.cls, .., with `changes` ("000_cls" is 000.cls; None leaves it out)."""
    files: dict[str, bytes | None] = {}
    for number in range(count):
        files |= {f"{number:03d}.jpg": bytes([number]) * (100 + number), f"{number:03d}.cls": str(number % 2).encode()}
    files |= {name.replace("_", "."): content for name, content in changes.items()}
    return {name: content for name, content in files.items() if content is not None}


def test_images_and_labels_of_shards_are_sorted_by_label_and_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", {"z.jpg": b"zz", "z.cls": b"7\n", "deep/y.PNG": b"y", "deep/y.cls": b"2",
                                     "deep/y.json": b"{}", "deep/y.seg.png": b"?", "__index__.cls": b"9"})
    write_shard(tmp_path / "a.tar", {"x.webp": b"xxx", "x.cls": b"7", "z.jpg": b"z", "z.cls": b"2"})
    images = scan_folder(tmp_path)
    assert images.classes == ("2", "7")
    assert images.files == ("b.tar/deep/y.PNG", "a.tar/z.jpg", "a.tar/x.webp", "b.tar/z.jpg")
    assert images.labels == (0, 0, 1, 1)
    assert [images.read(index) for index in range(4)] == [b"y", b"z", b"xxx", b"zz"]
    assert [images.size(index) for index in range(4)] == [1, 1, 3, 2] and images.path(0) == tmp_path / "b.tar"
    assert images.select([2, 0]).read(0) == b"xxx" and images.select([2, 0]).read(1) == b"y"
    assert images.hash() != images.select([0, 1, 2]).hash() and pickle.loads(pickle.dumps(images)) == images


@pytest.mark.parametrize("name, parts", [("a/b.c/d.seg.PNG", ("a/b.c/d", "seg.png")), ("000.jpg", ("000", "jpg")),
                                         ("noending", ("noending", "")), ("a/._x.jpg", ("a/", "_x.jpg"))])
def test_names_split_as_webdatasets(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_images_whose_keys_have_dots_are_read_with_their_labels_and_else_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"x.v1.2.jpg": b"x", "x.v1.2.cls": b"3", "y.jpg": b"y", "y.cls": b"3",
                                     "y.seg.png": b"?", "z.seg.png": b"?", "._y.jpg": b"?", "._y.cls": b"?",
                                     "y.fine.cls": b"5"})
    images = scan_folder(tmp_path)
    assert images.files == ("0.tar/x.v1.2.jpg", "0.tar/y.jpg") and images.read(0) == b"x" and images.labels == (0, 0)
    assert images.passed_over == {".seg.png": 2}
    write_shard(tmp_path / "0.tar", {"x.v1.jpg": b"x", "x.cls": b"3"})
    with pytest.raises(UserError, match="holds no image"):
        scan_folder(tmp_path)


def test_classes_have_the_names_of_classes_txt_beside_or_above(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / split / "0.tar", entries(4))
    assert scan_folder(tmp_path / "train").classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    train = scan_folder(tmp_path / "train")
    assert train.classes == ("cat", "dog") and train.labels == (0, 0, 1, 1)
    assert scan_folder(tmp_path / "val", ("dog", "cat")).labels == (1, 1, 0, 0)
    (tmp_path / "val" / "classes.txt").write_text("bee\ncat\n")
    with refused(tmp_path / "val", "1 classes", "'bee'"):
        scan_folder(tmp_path / "val", train.classes)
    (tmp_path / "classes.txt").write_text("cat\n")
    with refused(tmp_path / "train", "label 1", "classes.txt", "1 lines", "class"):
        scan_folder(tmp_path / "train")
    for text in ("cat\n\ndog\n", "cat\ncat\n"):
        (tmp_path / "classes.txt").write_text(text)
        with refused("classes.txt", "empty line", "twice", "one class name a line"):
            scan_folder(tmp_path / "train")


@pytest.mark.parametrize("changes, names", [
    ({"001_cls": None}, ("'001.jpg'", "label", "pack", "'001.cls'")),
    ({"001_jpg": None}, ("'001.cls'", "image", ".jpg", "pack")),
    ({"001_png": b"x"}, ("'001'", "twice", "'001.png'", "pack", ".cls")),
    ({"001_cls": b"dog"}, ("'001.cls'", "class number", "17")),
    ({"001_cls": b"-1"}, ("'001.cls'", "class number", "17")),
    ({"001_cls": b"1" * 1000}, ("'001.cls'", "class number", "17")),
    ({"000_jpg": None, "001_jpg": None, "000_cls": None, "001_cls": None, "a_txt": b""}, (".jpg", "pack", "key.cls"))])
def test_what_is_wrong_in_a_shard_is_said(changes: dict[str, bytes | None], names: tuple[str, ...], tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", entries(**changes))
    with refused(tmp_path / "0.tar", *names):
        scan_folder(tmp_path)


def test_a_file_twice_in_a_shard_is_said(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("0.jpg", "0.cls", "0.cls"):
            tar.addfile(tarfile.TarInfo(name))
    with refused("'0.cls'", "0.tar", "class number"):
        scan_folder(tmp_path)
    write_shard(tmp_path / "0.tar", [("0.cls", b"1"), ("0.jpg", b"x"), ("0.cls", b"0")])
    with refused("0.tar", "key '0'", "twice", "'0.cls'"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("0.jpg")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(entry)
    with refused("'0.jpg'", "0.tar", "link", "pack the file"):
        scan_folder(tmp_path)


def test_names_that_leave_the_folder_are_only_names(tmp_path: Path) -> None:
    """Nothing is extracted, so such a name reads the bytes in the shard, and no file appears anywhere."""
    write_shard(tmp_path / "in" / "0.tar", {"/etc/passwd.jpg": b"A", "/etc/passwd.cls": b"0", "../../up.jpg": b"B",
                                            "../../up.cls": b"1"})
    images = scan_folder(tmp_path / "in")
    assert [images.read(index) for index in range(2)] == [b"A", b"B"]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "0.tar"]


def test_cut_and_damaged_shards_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", entries(3))
    whole = (tmp_path / "0.tar").read_bytes()
    data_end = 3 * 4 * 512  # each sample: header, 512 bytes of image, header, 512 bytes of label
    for length in (data_end - 1, data_end - 512, data_end - 1000, data_end, 700, 100, 0):
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with refused(tmp_path / "0.tar", "again"):
            scan_folder(tmp_path)
    (tmp_path / "0.tar").write_bytes(whole[:2048] + b"\xff" * 512 + whole[2560:])
    with refused(tmp_path / "0.tar", "byte 2048", "again"):
        scan_folder(tmp_path)
    (tmp_path / "0.tar").write_bytes(os.urandom(4096))
    with refused(tmp_path / "0.tar", "again"):
        scan_folder(tmp_path)


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar.gz").write_bytes(b"")
    with refused("0.tar.gz", "compressed", "decompress"):
        find_shards(tmp_path)


def test_a_shard_that_shrinks_later_gives_broken_images(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", entries(2))
    images = scan_folder(tmp_path)
    os.truncate(tmp_path / "0.tar", 550)
    with refused(tmp_path / "0.tar", "0.tar/000.jpg", error=OSError):
        images.read(0)


def pack(folder: Path, shards: int, to: Path) -> Path:
    """The images of folder/class<k>/* in `shards` tar files, in an order that is not theirs."""
    files = sorted(folder.glob("*/*.png"))
    np.random.default_rng(1).shuffle(files)  # type: ignore[arg-type]
    for number in range(shards):
        samples: dict[str, bytes] = {}
        for path in files[number::shards]:
            samples[path.name] = path.read_bytes()
            samples[f"{path.stem}.cls"] = path.parent.name.removeprefix("class").encode()
        write_shard(to / f"{number}.tar", samples)
    return to


def test_shards_and_folders_give_the_same_samples(tmp_path: Path) -> None:
    write_noise(tmp_path / "files" / "train", classes=2, images=5, side=20, spread=60)
    for path in sorted((tmp_path / "files").rglob("*.png")):  # names that no other class has
        path.rename(path.with_name(f"{path.parent.name}-{path.name}"))
    pack(tmp_path / "files" / "train", 3, tmp_path / "tars" / "train")
    folders, shards = (scan_folder(tmp_path / kind / "train") for kind in ("files", "tars"))
    assert folders.labels == shards.labels
    assert [name.rpartition("/")[2] for name in folders.files] == [name.rpartition("/")[2] for name in shards.files]
    assert torch.equal(decode(folders, 16, 1)[0], decode(shards, 16, 2)[0])
    for index in range(len(folders)):
        one, other = (ImageFolder(images, 16, train=True, seed=4)[index] for images in (folders, shards))
        assert torch.equal(one["image"], other["image"]) and one["label"] == other["label"]
    assert search_lists({"root": tmp_path / "tars"}, 0)[1] is None
    parts = [halves(images, "auto", 0) for images in (folders, shards)]
    assert [folders.select(rows).labels for rows in parts[0][:2]] == [shards.select(rows).labels for rows in parts[1][:2]]


def test_a_broken_image_in_a_shard_is_replaced_and_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 99, 199)).save(buffer, "PNG")
    write_shard(tmp_path / "0.tar", {"0.png": b"broken", "0.cls": b"0", "1.png": buffer.getvalue(), "1.cls": b"0"})
    sample = ImageFolder(scan_folder(tmp_path), 16, train=False)[0]
    assert sample["broken"] == "0.tar/0.png" and sample["image"][:, 8, 8].tolist() == [9, 99, 199]
