"""The parts of a classification data set, whatever its layout: to train on, to validate on, and the halves of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dada_det.data.fine_grained import scan_aircraft, scan_cars
from dada_det.data.folders import AUTO, SUBSET_IMAGES, ImageList, offered_to_validate, scan_folder, search_subset
from dada_det.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dada_det.data.groups import Groups


def train_and_val(root: str | Path, val_root: str | Path | None) -> tuple[ImageList, ImageList]:
    """The images of scan_split to train on, and those to validate on, or instead of them <val_root>/<class>/*."""
    train = scan_split(root, "train")
    return train, scan_folder(val_root, train.classes) if val_root else scan_split(root, "val", train.classes)


def search_lists(data: Mapping[str, Any], seed: int) -> tuple[ImageList, ImageList | None]:
    """The images of a search: the training images' subset, and those of val_root; None where halves are to be made.

    Args:
        data: root, and where they are given val_root, groups, subset, subset_images and images_per_class (search_subset),
            which counts for val_root too.

    Raises:
        UserError: there are no training images, or neither val_root nor groups makes two parts of them.
    """
    per_class = data.get("images_per_class")
    everything = scan_split(data["root"], "train")
    images = search_subset(everything, data.get("subset"), data.get("subset_images", SUBSET_IMAGES), per_class, seed)
    if data.get("val_root"):
        target = of_classes(scan_folder(data["val_root"], everything.classes), images.classes)
        return images, search_subset(target, None, 0, per_class, seed)
    halves(images, data.get("groups", AUTO), seed)
    return images, None


def of_classes(images: ImageList, classes: Sequence[str]) -> ImageList:
    """The images of `classes`, with labels that index these.

    Raises:
        UserError: there is no such image.
    """
    if tuple(classes) == images.classes:
        return images
    label_of = {name: label for label, name in enumerate(classes)}
    kept = [index for index, label in enumerate(images.labels) if images.classes[label] in label_of]
    if not kept:
        raise UserError(f"{images.root} has no image of the {len(classes)} classes that the search takes, such as "
                        f"{classes[0]!r}; give a folder with some of them, or data.subset=None, which takes all classes")
    return replace(images.select(kept), classes=tuple(classes),
                   labels=tuple(label_of[images.classes[images.labels[index]]] for index in kept))


def halves(images: ImageList, rule: str, seed: int,
           images_NCHW: "Tensor | None" = None) -> "tuple[list[int], list[int], Groups]":
    """(indices that train, indices that validate, the groups): halves of each class, of whole groups.

    Args:
        rule, images_NCHW: see groups_of.

    Raises:
        UserError: as groups_of does, and if a class does not make two halves.
    """
    from dada_det.data.groups import group_halves, groups_of  # imports torch, which --help does without

    groups = groups_of(images.names(), images.labels, rule, images_NCHW)
    return *group_halves(offered_to_validate(images, seed), groups.ids, images.classes), groups


def scan_split(root: str | Path, split: str, classes: Sequence[str] | None = None) -> ImageList:
    """The images of `split` ("train" or "val") below `root`, in the layout found there.

    Looked for in this order: <split>/<class>/*; Stanford Cars (cars_train, cars_test, devkit,
    cars_test_annos_withlabels.mat) in root or its folder stanford_cars; FGVC-Aircraft (data/images, data/variants.txt, ..)
    in root or its folder fgvc-aircraft-2013b. The last two validate on their test images.

    Args:
        classes: those of the training images, see scan_folder.

    Raises:
        UserError: there is none of them, or the one that is there is damaged.
    """
    root = Path(root)
    if (root / split).is_dir():
        return scan_folder(root / split, classes)
    for folder in (root, root / "stanford_cars"):
        if (folder / "cars_train").is_dir():
            return scan_cars(folder, split)
    for folder in (root, root / "fgvc-aircraft-2013b"):
        if (folder / "data" / "variants.txt").is_file():
            return scan_aircraft(folder / "data", split)
    if split == "train":
        raise UserError(f"{root} has no folder train/<class>/ (nor the files of Stanford Cars or FGVC-Aircraft); give the "
                        "folder that holds it with --data")
    raise UserError(f"{root} has no folder {split}/<class>/ to validate on; add it or give another one with --val-data")
