"""Folders of images with everything that people's disks hold: they are read rightly, or refused in one sentence."""

import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import decode_to_memory
from dada_det.data.splits import halves, search_lists
from dada_det.errors import UserError
from tests.data.coco_strategies import examples

SIDE = 16
GREYS = (60, 120, 180)  # of the images of each class, so that a pixel tells the class
WHOLE = {  # kind -> mode of the image and its format
    ".png": ("RGB", "PNG"), ".JPG": ("RGB", "JPEG"), ".jfif": ("L", "JPEG"), ".jpeg": ("CMYK", "JPEG"),
    ".tif": ("I;16", "TIFF"), ".tiff": ("F", "TIFF"), ".webp": ("RGBA", "WEBP"), ".gif": ("P", "GIF"),
    ".bmp": ("RGB", "BMP")}
BROKEN = ("empty", "text", "cut", "link to nothing", "link to itself")
OTHERS = ("notes.txt", "Thumbs.db", "photo.heic", "README")
UNSEEN = (".hidden.png", "pipe.png", "folder.png", "all")  # "all" links to the class folder, or to the one above


@dataclass(frozen=True)
class Folder:
    """One class: its name, the kinds of its images (of WHOLE or BROKEN), where they lie, and what is beside them."""

    name: bytes
    images: list[str]
    nested: bool
    beside: list[str]


folders = st.lists(st.builds(
    Folder, st.sampled_from([b"cat", b"dog", "größe".encode(), b"caf\xe9", b"new\nline", b"-rf", b"a b"]),
    st.lists(st.one_of(st.sampled_from(sorted(WHOLE)), st.sampled_from((*sorted(WHOLE), *BROKEN))), max_size=8),
    st.booleans(), st.lists(st.sampled_from((*OTHERS, *UNSEEN)), max_size=4, unique=True)),
    min_size=1, max_size=3, unique_by=lambda folder: folder.name)


def picture(kind: str, grey: int) -> bytes:
    """A file of that kind, whose middle has this grey."""
    mode, form = WHOLE[kind]
    pixels = np.full((20, 30), grey, np.uint8)
    pixels[0, :2] = 0, 255  # all of the range is in use
    image = Image.fromarray(pixels.astype(np.uint16) * 257 if mode == "I;16" else pixels / np.float32(255) if mode == "F"
                            else pixels)
    if mode not in ("I;16", "F"):
        image = image.convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def write(root: bytes, classes: list[Folder]) -> None:
    order = sorted(folder.name for folder in classes)
    for folder in classes:
        home = os.path.join(root, folder.name)
        place = os.path.join(home, b"inner") if folder.nested else home
        os.makedirs(place)
        for number, kind in enumerate(folder.images):
            path = os.path.join(place, b"%d%s" % (number, kind.encode() if kind in WHOLE else b".jpg"))
            whole = picture(kind if kind in WHOLE else ".JPG", GREYS[order.index(folder.name)])
            if kind == "link to nothing":
                os.symlink(b"/nonexistent/image.jpg", path)
            elif kind == "link to itself":
                os.symlink(os.path.basename(path), path)
            else:
                Path(os.fsdecode(path)).write_bytes({"empty": b"", "text": b"no image", "cut": whole[:len(whole) // 2]}.get(
                    kind, whole))
        for name in folder.beside:
            path = os.path.join(home, name.encode())
            if name == "pipe.png":
                os.mkfifo(path)
            elif name == "folder.png":
                os.mkdir(path)
            elif name == "all":
                os.symlink(home if len(folder.images) % 2 else os.path.join(root, b".."), path)
            else:
                Path(os.fsdecode(path)).write_bytes(b"nothing to see")


def mistake(classes: list[Folder]) -> bool:
    """Whether the search has to refuse these classes: one without two images, or without one that decodes, or too many
    that do not."""
    broken = [sum(kind in BROKEN for kind in folder.images) for folder in classes]
    total = sum(len(folder.images) for folder in classes)
    return any(len(folder.images) < 2 or bad == len(folder.images) for folder, bad in zip(classes, broken, strict=True)) \
        or (sum(broken) >= 2 and sum(broken) > total / 100)


@examples
def test_folders_are_read_or_refused_in_a_sentence(examples, capsys):
    @examples
    @given(folders)
    def every_folder(classes: list[Folder]) -> None:
        with tempfile.TemporaryDirectory() as place:
            root = os.path.join(place.encode(), b"data", b"train")
            write(root, classes)
            try:
                images, _ = search_lists({"root": os.path.join(place, "data")}, 0)
                memory = decode_to_memory(images, 14, "search")
                train, val, _ = halves(images, "auto", 0, memory.images_NCHW)
            except UserError as error:
                assert mistake(classes) and len(str(error).splitlines()) <= 1 + str(error).count("new\nline"), error
                capsys.readouterr()
                return
            assert not mistake(classes)
            out = capsys.readouterr().out
            assert len(images) == sum(len(folder.images) for folder in classes)
            assert sorted(train + val) == list(range(len(images))) and min(map(len, (train, val))) >= len(classes)
            centres = memory.images_NCHW[:, :, SIDE // 2, SIDE // 2].float()
            greys = torch.tensor(GREYS)[memory.labels_N, None]
            assert (centres - greys).abs().max() <= 12  # of its own class, broken or not
            assert len(images.hash()) == 64
            broken = sum(kind in BROKEN for folder in classes for kind in folder.images)
            assert (f"{broken} of {len(images)} images" in out) == (broken > 0)
            others = sum(name in OTHERS for folder in classes for name in folder.beside)
            assert (f"search  {others} files in" in out) == (others > 0)
            out.encode("utf-8")  # as it is printed

    every_folder()


def test_a_link_to_the_folder_above_is_no_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture(".png", 90))
    (tmp_path / "all").symlink_to(tmp_path)
    assert scan_folder(tmp_path).classes == ("a", "b")
