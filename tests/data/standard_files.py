"""Writers of small data sets in the files that they are published in, byte by byte from their descriptions."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CARS = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012")
AIRCRAFT = ("707-320", "F/A-18", "Gulfstream IV")


def random_pixels(count: int, seed: int) -> np.ndarray:
    """uint8 [count,3,32,32]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def write_cifar10_binary(root: Path, per_file: int = 8, test: int = 4) -> Path:
    """root/cifar-10-batches-bin: five files of `per_file` records and one of `test`, labels 0, 1, 2, ..; returns root."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        count = test if name == "test_batch" else per_file
        records = [bytes([index % 10]) + pixels.tobytes() for index, pixels in enumerate(random_pixels(count, seed))]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join(f"class {label}" for label in range(10)) + "\n\n")
    return root


def write_cifar100_binary(root: Path, train: int = 40, test: int = 4) -> Path:
    """root/cifar-100-binary: fine labels 0, 7, 14, .. below 100, coarse labels 3, 4, .. below 20; returns root."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate({"train": train, "test": test}.items()):
        records = [bytes([(3 + index) % 20, 7 * index % 100]) + pixels.tobytes()
                   for index, pixels in enumerate(random_pixels(count, seed))]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("".join(f"fine {label}\n" for label in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse {label}\n" for label in range(20)))
    return root


def write_svhn(root: Path, train: int = 30, extra: int = 12, test: int = 4) -> Path:
    """root/{train,extra,test}_32x32.mat with the digits 1, 2, .., 10, 1, ..; returns root."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": train, "extra": extra, "test": test}.items()):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": random_pixels(count, seed).transpose(2, 3, 1, 0), "y": labels},
                do_compression=True)
    return root


def write_photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)).save(path)


def write_cars(root: Path, train: int = 12, test: int = 6) -> Path:
    """root/cars_train, cars_test, devkit and cars_test_annos_withlabels.mat, classes 1, 2, 3, 1, ..; returns root."""
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([CARS], dtype=object)})
    for folder, count, name in (("cars_train", train, "devkit/cars_train_annos.mat"),
                                ("cars_test", test, "cars_test_annos_withlabels.mat")):
        entries = np.empty((1, count), dtype=[(field, object) for field in fields])
        for index in range(count):
            entries[0, index] = (np.uint8(1), np.uint8(2), np.uint8(30), np.uint8(20), np.uint8(index % 3 + 1),
                                 f"{index + 1:05d}.jpg")
            write_photograph(root / folder / f"{index + 1:05d}.jpg", index)
        savemat(root / name, {"annotations": entries})
    return root


def write_aircraft(root: Path, trainval: int = 12, test: int = 6) -> Path:
    """root/fgvc-aircraft-2013b/data: images, variants.txt and the two lists, variants in turn; returns root."""
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{variant}\n" for variant in AIRCRAFT))
    number = 34309
    for name, count in (("trainval", trainval), ("test", test)):
        lines = []
        for index in range(count):
            number += 1
            write_photograph(data / "images" / f"{number:07d}.jpg", number)
            lines.append(f"{number:07d} {AIRCRAFT[index % 3]}\n")
        (data / f"images_variant_{name}.txt").write_text("".join(lines))
    return root
