"""Stanford Cars and FGVC-Aircraft in their own layouts, and the sentence that each mistake gets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dada_det.data.splits import scan_split
from tests.conftest import write_noise
from tests.data.standard_files import AIRCRAFT, CARS, write_aircraft, write_cars
from tests.messages import refused


def test_cars_are_labelled_from_their_matlab_files(tmp_path: Path) -> None:
    write_cars(tmp_path / "stanford_cars")
    for root in (tmp_path, tmp_path / "stanford_cars"):
        train = scan_split(root, "train")
        assert train.classes == CARS and train.labels == (0, 1, 2) * 4
        assert train.files[:2] == ("00001.jpg", "00002.jpg") and train.path(11).is_file()
        val = scan_split(root, "val", train.classes)
        assert val.classes == CARS and val.labels == (0, 1, 2) * 2 and val.files[5] == "00006.jpg"
        assert train.root == tmp_path / "stanford_cars" / "cars_train"
        assert val.path(0) == tmp_path / "stanford_cars" / "cars_test" / "00001.jpg"


def test_a_single_car(tmp_path: Path) -> None:
    train = scan_split(write_cars(tmp_path, train=1), "train")
    assert train.files == ("00001.jpg",) and train.labels == (0,)


def test_aircraft_are_labelled_by_variant(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    for root in (tmp_path, tmp_path / "fgvc-aircraft-2013b"):
        train, val = scan_split(root, "train"), scan_split(root, "val")
        assert train.classes == val.classes == AIRCRAFT
        assert train.labels == (0, 1, 2) * 4 and val.labels == (0, 1, 2) * 2
        assert train.files[0] == "0034310.jpg" and not set(train.files) & set(val.files)
        assert all(images.path(index).is_file() for images in (train, val) for index in range(len(images)))


def test_folders_of_classes_come_first(tmp_path: Path) -> None:
    write_cars(tmp_path)
    write_noise(tmp_path / "train", classes=2, images=2, side=8, spread=10)
    assert scan_split(tmp_path, "train").classes == ("class0", "class1")


def remove_label(root: Path) -> None:
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": np.array([("00001.jpg",)], dtype=[("fname", object)])})


def change_class(root: Path) -> None:
    entries = np.array([(9, "00001.jpg")], dtype=[("class", object), ("fname", object)])
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": entries})


CARS_MISTAKES: dict[tuple[str, ...], Callable[[Path], None]] = {
    ("cars_test_annos_withlabels.mat", "No such file", "unpack Stanford Cars"):
        lambda root: (root / "cars_test_annos_withlabels.mat").unlink(),
    ("devkit/cars_meta.mat", "No such file"): lambda root: (root / "devkit" / "cars_meta.mat").unlink(),
    ("cars_meta.mat", "level 5", "unpack Stanford Cars"):
        lambda root: (root / "devkit" / "cars_meta.mat").write_bytes(b"nothing"),
    ("cars_test_annos_withlabels.mat", "'class'", "unpack Stanford Cars"): remove_label,
    ("cars_test_annos_withlabels.mat", "class 9", "3", "unpack Stanford Cars"): change_class,
    ("cars_test", "1 of the 6", "00002.jpg", "unpack Stanford Cars"):
        lambda root: (root / "cars_test" / "00002.jpg").unlink(),
    ("cars_test", "No such file", "unpack Stanford Cars"): lambda root: (root / "cars_test").rename(root / "gone"),
}


@pytest.mark.parametrize("names", CARS_MISTAKES)
def test_mistakes_in_cars(names: tuple[str, ...], tmp_path: Path) -> None:
    CARS_MISTAKES[names](write_cars(tmp_path))
    with refused(*names):
        scan_split(tmp_path, "val")


AIRCRAFT_MISTAKES: dict[tuple[str, ...], Callable[[Path], object]] = {
    ("images_variant_test.txt", "No such file", "unpack FGVC-Aircraft"):
        lambda data: (data / "images_variant_test.txt").unlink(),
    ("images_variant_test.txt", "'0034310 Cessna 172'", "variants.txt", "unpack FGVC-Aircraft"):
        lambda data: (data / "images_variant_test.txt").write_text("0034310 Cessna 172\n"),
    ("images_variant_test.txt", "'0034310'", "variants.txt", "unpack FGVC-Aircraft"):
        lambda data: (data / "images_variant_test.txt").write_text("0034310\n"),
    ("data/images", "1 of the 1", "1.jpg", "unpack FGVC-Aircraft"):
        lambda data: (data / "images_variant_test.txt").write_text("1 F/A-18\n"),
    ("data/images", "0 of the 0", "unpack FGVC-Aircraft"):
        lambda data: (data / "images_variant_test.txt").write_text("\n"),
    ("variants.txt", "utf-8", "unpack FGVC-Aircraft"): lambda data: (data / "variants.txt").write_bytes(b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("names", AIRCRAFT_MISTAKES)
def test_mistakes_in_aircraft(names: tuple[str, ...], tmp_path: Path) -> None:
    AIRCRAFT_MISTAKES[names](write_aircraft(tmp_path) / "fgvc-aircraft-2013b" / "data")
    with refused(*names):
        scan_split(tmp_path, "val")


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    with refused(tmp_path, "train/<class>/", "Stanford Cars", "FGVC-Aircraft", "--data"):
        scan_split(tmp_path, "train")
    with refused(tmp_path, "val/<class>/", "--val-data"):
        scan_split(tmp_path, "val")
