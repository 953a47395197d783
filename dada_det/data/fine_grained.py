"""Stanford Cars and FGVC-Aircraft as they are unpacked.

Layouts: torchvision.datasets.StanfordCars (Krause et al., 3DRR 2013) and FGVCAircraft (Maji et al., arXiv:1306.5151, by
variant). The 20 px at the bottom of an aircraft's photograph, which name its author, stay, as in torchvision.
"""

import os
from pathlib import Path

import numpy as np

from dada_det.data.folders import ImageList
from dada_det.data.matlab import read_matlab
from dada_det.errors import UserError

CARS_ADVICE = "unpack Stanford Cars again"
AIRCRAFT_ADVICE = "unpack FGVC-Aircraft again"
CARS_FILES = {"train": ("cars_train", "devkit/cars_train_annos.mat"), "val": ("cars_test", "cars_test_annos_withlabels.mat")}
AIRCRAFT_LABELS = {"train": "images_variant_trainval.txt", "val": "images_variant_test.txt"}


def scan_cars(root: Path, split: str) -> ImageList:
    (names,) = read_matlab(root / "devkit" / "cars_meta.mat", ("class_names",), CARS_ADVICE)
    classes = tuple(str(name) for name in np.atleast_1d(names))
    folder, annotations = CARS_FILES[split]
    path = root / annotations
    (entries,) = read_matlab(path, ("annotations",), CARS_ADVICE)
    entries = np.atleast_1d(entries)
    lacking = [field for field in ("fname", "class") if field not in (entries.dtype.names or ())]
    if lacking:
        raise UserError(f"the annotations in {path} have no field {lacking[0]!r}; {CARS_ADVICE}")
    labels = [int(entry["class"]) for entry in entries]
    strangers = [label for label in labels if not 1 <= label <= len(classes)]
    if strangers:
        raise UserError(f"{path} has the class {strangers[0]}, and there are {len(classes)}; {CARS_ADVICE}")
    files = tuple(str(entry["fname"]) for entry in entries)
    return _present(ImageList(root / folder, classes, files, tuple(label - 1 for label in labels)), CARS_ADVICE)


def scan_aircraft(root: Path, split: str) -> ImageList:
    classes = tuple(_lines(root / "variants.txt"))
    label_of = {name: label for label, name in enumerate(classes)}
    path = root / AIRCRAFT_LABELS[split]
    files, labels = [], []
    for line in _lines(path):
        name, _, variant = line.partition(" ")
        if variant not in label_of:
            raise UserError(f"{path} has the line {line!r}, which is no image and variant of variants.txt; "
                            f"{AIRCRAFT_ADVICE}")
        files.append(f"{name}.jpg")
        labels.append(label_of[variant])
    return _present(ImageList(root / "images", classes, tuple(files), tuple(labels)), AIRCRAFT_ADVICE)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; {AIRCRAFT_ADVICE}") from error


def _present(images: ImageList, advice: str) -> ImageList:
    """`images`, all of which must lie in their folder."""
    try:
        present = set(os.listdir(images.root))
    except OSError as error:
        raise UserError(f"cannot read {images.root}: {error.strerror}; {advice}") from error
    missing = [name for name in images.files if name not in present]
    if missing or not images.files:
        raise UserError(f"{images.root} lacks {len(missing)} of the {len(images)} images that its labels name"
                        f"{', such as ' + missing[0] if missing else ''}; {advice}")
    return images
