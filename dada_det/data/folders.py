"""Folders of images, <root>/<class>/**, or of tar shards, as lists of names and labels.

Plain Python, so that commands check early.
"""

import hashlib
import json
import os
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dada_det.data.tars import class_names, find_shards, read_shard
from dada_det.errors import UserError
from dada_det.untrusted import printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
IMAGENET_CLASSES = 1000
AUTO, NONE = "auto", "none"  # rules of groups (data/groups.py) that are no regular expression
SUBSETS = ("imagenet120",)
SUBSET_IMAGES = 50  # of each class of a subset, where a config does not say


@dataclass(frozen=True)
class ImageList:
    """Images of named classes: `files` are relative to `root` with forward slashes, `labels` index `classes`.

    For images in tar shards `files` are <shard>/<name in it>, and `offsets` and `sizes` say where in the shard the bytes of
    each are. Otherwise both are empty. (They are arrays: each loader process would get its own copy of a million pairs,
    page by page, as it counts references to them.) `passed_over` counts other files by their ending.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    passed_over: Counter[str] = field(default_factory=Counter, compare=False)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """The image's file; of an image in a shard the shard."""
        return self.root / (self.files[index].partition("/")[0] if self.offsets else self.files[index])

    def read(self, index: int) -> bytes:
        """The bytes of the image's file.

        Raises:
            OSError: they cannot be read.
        """
        if not self.offsets:
            return self.path(index).read_bytes()
        with open(self.path(index), "rb", buffering=0) as shard:
            data = os.pread(shard.fileno(), self.sizes[index], self.offsets[index])
        if len(data) < self.sizes[index]:
            raise OSError(f"{self.path(index)} ends in the middle of {self.files[index]}")
        return data

    def size(self, index: int) -> int:
        """The number of bytes of the image's file; -1 where it cannot be opened, such as a link to nothing."""
        try:
            return self.sizes[index] if self.offsets else self.path(index).stat().st_size
        except OSError:
            return -1

    def select(self, indices: Iterable[int]) -> "ImageList":
        """The images at `indices`, in that order, with the same classes."""
        indices = list(indices)
        offsets, sizes = (array("q", (values[i] for i in indices)) if values else values
                          for values in (self.offsets, self.sizes))
        return replace(self, files=tuple(self.files[i] for i in indices), labels=tuple(self.labels[i] for i in indices),
                       offsets=offsets, sizes=sizes)

    def by_class(self) -> list[list[int]]:
        """For each class the indices of its images, in the list's order."""
        members: list[list[int]] = [[] for _ in self.classes]
        for index, label in enumerate(self.labels):
            members[label].append(index)
        return members

    def names(self) -> list[str]:
        """The relative path of each image; of an image in a shard the name in it, without the shard's."""
        return [name.partition("/")[2] for name in self.files] if self.offsets else list(self.files)

    def hash(self) -> str:
        """SHA-256 (hexadecimal) over the images' relative names and sizes in bytes; no path of this machine enters."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.files):
            size = str(self.size(index))
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + size.encode() + b"\n")
        return digest.hexdigest()


def scan_folder(root: str | Path, classes: Sequence[str] | None = None) -> ImageList:
    """All images of <root>/<class>/**; classes and files sorted by name, hidden files and folders left out.

    Links are followed, to each folder once in a class. A link to nothing is an image that does not decode.

    If `root` holds no folders but *.tar, these are read as WebDataset's shards (data/tars.py), which must hold a label for
    each image. The list is then sorted by label and name, so that the same images train the same way.

    Args:
        classes: the names that the labels index. Each folder's name must be one of them; not all need to be there. None:
            the folders' own names.

    Raises:
        UserError: there is no such folder, no class folder, a class folder without images, a class that is not in
            `classes`, or a damaged shard.
    """
    root = Path(root)
    names = _class_folders(root)
    if not names:
        return _scan_shards(root, classes)
    label_of = _labels_of(root, names, classes)
    files: list[str] = []
    labels: list[int] = []
    passed_over: Counter[str] = Counter()
    for name in names:
        found, others = _images_below(root, name)
        if not found:
            raise UserError(f"the class folder {root / name} holds no image ({', '.join(IMAGE_SUFFIXES)})"
                            f"{', only ' + _counted(others) if others else ''}; add images or remove the folder")
        files += found
        labels += [label_of[name]] * len(found)
        passed_over += others
    return ImageList(root, tuple(label_of), tuple(files), tuple(labels), passed_over=passed_over)


def say_passed_over(images: ImageList, stage: str) -> None:
    """One line, headed by `stage`, about the files beside the images; of several processes the first prints it."""
    if images.passed_over and is_first_process():
        print(f"{stage}  {images.passed_over.total()} files in {images.root} are no images by their names and are passed "
              f"over: {_counted(images.passed_over)}", flush=True)


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun's


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {printable(ending) or 'without an ending'}" for ending, count in endings.most_common(5))


def _labels_of(root: Path, names: Sequence[str], classes: Sequence[str] | None) -> dict[str, int]:
    """The label of each of `classes`, by default of `names`, which must be among them."""
    label_of = {name: label for label, name in enumerate(names if classes is None else classes)}
    strangers = [name for name in names if name not in label_of]
    if strangers:
        raise UserError(f"{root} has {len(strangers)} classes that the training images lack, such as {strangers[0]!r}; "
                        "give a validation folder whose class folders have the names of the training classes")
    return label_of


def _scan_shards(root: Path, classes: Sequence[str] | None) -> ImageList:
    shards = find_shards(root)
    if not shards:
        raise UserError(f"the image folder {root} has no class folders; put the images at {root}/<class>/<image>, or tar "
                        "shards of images and labels there")
    names = class_names(root)
    passed_over: Counter[str] = Counter()
    images = [image for shard in shards for image in read_shard(shard, IMAGE_SUFFIXES, passed_over)]
    numbers = sorted({image.label for image in images})
    if names is not None and numbers[-1] >= len(names):
        raise UserError(f"the shards in {root} have the label {numbers[-1]}, and their classes.txt has {len(names)} lines; "
                        "give it one line for each class")
    name_of = {number: str(number) if names is None else names[number] for number in numbers}
    label_of = _labels_of(root, list(name_of.values()), classes)
    images.sort(key=lambda image: (image.label, image.name, image.shard))
    return ImageList(root, tuple(label_of), tuple(f"{image.shard}/{image.name}" for image in images),
                     tuple(label_of[name_of[image.label]] for image in images),
                     array("q", (image.offset for image in images)), array("q", (image.size for image in images)),
                     passed_over)


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"the image folder {root} does not exist; it should hold one folder of images for each class")
    entries = _entries(root)
    lost = next((entry for entry in entries if entry.is_symlink() and not os.path.exists(entry.path)), None)
    if lost is not None:
        raise UserError(f"{lost.path} is a link to nothing; mount or restore the folder that it points to, or remove it")
    above = {os.path.realpath(folder) for folder in (root, *root.absolute().parents)}
    return sorted(entry.name for entry in entries if _is_folder(entry) and os.path.realpath(entry.path) not in above)


def _images_below(root: Path, name: str) -> tuple[list[str], Counter[str]]:
    """(the images of a class, relative to `root` and sorted; how many other files there are of each ending)."""
    found: list[str] = []
    others: Counter[str] = Counter()
    seen = {os.path.realpath(root)}
    inside = [name]
    for folder in inside:  # which grows as it is walked through
        place = os.path.realpath(root / folder)
        if place in seen:
            continue
        seen.add(place)
        for entry in sorted(_entries(root / folder), key=lambda entry: entry.name):
            if _is_folder(entry):
                inside.append(f"{folder}/{entry.name}")
            elif not (entry.is_symlink() or entry.is_file()):
                continue  # a pipe or a socket, which would keep a reader waiting
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                found.append(f"{folder}/{entry.name}")
            else:
                others[os.path.splitext(entry.name)[1].lower()] += 1
    return sorted(found), others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without what is hidden."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; check its permissions") from error


def search_subset(images: ImageList, subset: str | None, subset_images: int, per_class: int | None, seed: int) -> ImageList:
    """The images that a search looks at.

    Args:
        subset: "imagenet120": of ImageNet's 1000 classes the 120 of imagenet120.json, labels 0..119; of other folders all
            classes. None: all classes.
        subset_images: what per_class=None means with "imagenet120" in a folder of as many classes as ImageNet.
        per_class: so many images of each class, drawn by `seed`, or all of a smaller class. None: all.
    """
    if subset is not None and subset not in SUBSETS:
        raise UserError(f"data.subset {subset!r} is unknown; it is one of {', '.join(SUBSETS)} or None (all classes)")
    chosen = list(range(len(images.classes)))
    if subset and len(chosen) >= IMAGENET_CLASSES:
        per_class = subset_images if per_class is None else per_class
        if len(chosen) == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", name) for name in images.classes):
            chosen = json.loads(Path(__file__).with_name("imagenet120.json").read_text(encoding="utf-8"))["classes"]
    if per_class is None:
        return images
    members = images.by_class()
    drawn = [sorted(_shuffled(members[old], seed, images.classes[old])[:per_class]) for old in chosen]
    labels = tuple(label for label, of_class in enumerate(drawn) for _ in of_class)
    return replace(images.select(index for of_class in drawn for index in of_class), labels=labels,
                   classes=tuple(images.classes[old] for old in chosen))


def offered_to_validate(images: ImageList, seed: int) -> list[list[int]]:
    """For each class its images in an order drawn by `seed`, in which groups.py gives them to the half that validates.

    Raises:
        UserError: a class has fewer than two images.
    """
    for name, members in zip(images.classes, images.by_class(), strict=True):
        if len(members) < 2:
            raise UserError(f"the class {name!r} in {images.root} has {len(members)} images, and one half of each class "
                            "validates: add images, remove the class, or give --val-data")
    return [_shuffled(members, seed, name) for name, members in zip(images.classes, images.by_class(), strict=True)]


def _shuffled(members: list[int], seed: int, name: str) -> list[int]:
    # One stream a class: another class that comes or goes changes nothing here. Bytes, as a name need not be UTF-8.
    return random.Random(f"{seed}/{name}".encode("utf-8", "surrogateescape")).sample(members, len(members))
