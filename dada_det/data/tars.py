"""Reads images and labels in tar files as WebDataset and img2dataset write them: key.jpg, key.cls, ..

A shard's headers are read once and say where each image's bytes are. Images are then read from there in any order, so
shuffle and exact resume work as for folders. Nothing is extracted: a name in a shard is never a path. The key of a name ends
at the first dot of its last part, as in WebDataset. Plain Python.
"""

import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dada_det.errors import UserError

CLASSES = "classes.txt"  # the name of class k in line k + 1; beside the shards or in the folder above
LABEL = "cls"
MOST_DIGITS = 9  # of a label


@dataclass(frozen=True, slots=True)
class TarImage:
    """One image: the shard's file name, the name in it, the label that its .cls holds, and where its bytes are."""

    shard: str
    name: str
    label: int
    offset: int
    size: int


def find_shards(root: Path) -> list[Path]:
    """The *.tar of a folder by name.

    Raises:
        UserError: there are only compressed ones, which have no random access.
    """
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the image folder {root}: {error.strerror}; check its permissions") from error
    packed = [name for name in names if name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))]
    if packed:
        raise UserError(f"{root / packed[0]} is compressed, and images are read from the middle of a shard; decompress it "
                        "to .tar")
    return [root / name for name in names if name.lower().endswith(".tar")]


def class_names(root: Path) -> list[str] | None:
    """The lines of classes.txt beside the shards or in the folder above; None where there is none."""
    for path in (root / CLASSES, root.parent / CLASSES):
        if path.is_file():
            try:
                names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; write one class name a "
                                "line") from error
            if not all(names) or len(set(names)) < len(names):
                raise UserError(f"{path} has an empty line or a name twice; write one class name a line, in the order of "
                                "the labels")
            return names
    return None


def read_shard(path: Path, suffixes: Sequence[str], passed_over: Counter[str] | None = None) -> list[TarImage]:
    """The images (`suffixes`: their endings, lower case with the dot) of a shard, in its order.

    Folders, hidden files, other endings and WebDataset's own entries (__name__) are passed over. An image whose key has dots
    is read where there is a label with the same dots (a.v2.jpg, a.v2.cls), else counted in `passed_over` by its ending
    (a.seg.png).

    Raises:
        UserError: the shard cannot be read or is cut off, holds no image, a link, or a file twice, or where an image has no
            label of its own.
    """
    images: dict[str, tuple[str, int, int]] = {}  # key -> name, offset, size
    labels: dict[str, int] = {}
    dotted: set[str] = set()  # keys up to the last dot, of what WebDataset's rule gives an ending of several parts
    known = (*suffixes, f".{LABEL}")
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                key, ending = split_name(entry.name)
                if entry.isdir() or entry.name.rpartition("/")[2].startswith((".", "__")):
                    continue
                if f".{ending}" not in known and f".{ending.rpartition('.')[2]}" in known and entry.isreg():
                    key, ending = entry.name.rpartition(".")[0], ending.rpartition(".")[2]
                    dotted.add(key)
                if f".{ending}" not in known:
                    continue
                if not entry.isreg() or entry.issparse():
                    raise UserError(f"{entry.name!r} in {path} is a link or no ordinary file; pack the file itself")
                if key in (labels if ending == LABEL else images):
                    raise UserError(f"{path} has the key {key!r} twice ({entry.name!r}); pack one image and one .{LABEL} "
                                    "for each key")
                if ending == LABEL:
                    labels[key] = read_label(tar.extractfile(entry), entry, path)
                else:
                    images[key] = entry.name, entry.offset_data, entry.size
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all, and there are millions
            file.seek(tar.offset)
            # To tarfile a damaged or missing header behind the first is the end.
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {path}: {getattr(error, 'strerror', None) or error}; make or copy it "
                        "again") from error
    if not whole:
        raise UserError(f"the shard {path} is damaged or cut off at byte {tar.offset}; make or copy it again")
    for key in [key for key in dotted if key not in images or key not in labels]:
        labels.pop(key, None)
        if (image := images.pop(key, None)) and passed_over is not None:
            passed_over[f".{split_name(image[0])[1]}"] += 1
    if not images:
        raise UserError(f"the shard {path} holds no image ({', '.join(suffixes)}); remove it, or pack key.jpg and "
                        f"key.{LABEL}")
    without = next((key for key in images if key not in labels), None)
    if without is not None:
        raise UserError(f"{images[without][0]!r} in {path} has no label; pack {without + '.' + LABEL!r}, which holds the "
                        "number of its class")
    alone = next((key for key in labels if key not in images), None)
    if alone is not None:
        raise UserError(f"{alone + '.' + LABEL!r} in {path} has no image ({', '.join(suffixes)}); pack it, or leave the "
                        "label out")
    return [TarImage(path.name, name, labels[key], offset, size) for key, (name, offset, size) in images.items()]


def split_name(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of an entry, as WebDataset's base_plus_ext: "a/b.seg.png" is "a/b" and "seg.png"."""
    folder, slash, last = name.rpartition("/")
    base, _, ending = last.partition(".")
    return folder + slash + base, ending.lower()


def read_label(content: IO[bytes] | None, entry: tarfile.TarInfo, path: Path) -> int:
    """The number of a class in a .cls entry.

    Raises:
        UserError: the entry holds anything else.
    """
    text = content.read(MOST_DIGITS + 2).strip() if content is not None and entry.size <= MOST_DIGITS + 2 else b""
    if not text.isdigit():
        raise UserError(f"{entry.name!r} in {path} holds no class number; write a whole number from 0, such as 17")
    return int(text)
