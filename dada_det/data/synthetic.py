"""The demo's data, made from numbers and written to disk in ImageNet's and COCO's own layouts.

    <out>/imagenet/{train,val}/<class>/*.JPEG                                  120 classes: shape x texture x hue
    <out>/coco/{train2017,val2017,test2017}/*.jpg, annotations/*.json          boxes and masks, COCO's 80 categories
    <out>/demo.json                                                            seed, counts, looks of each class

The same shapes and textures stand in both, so that a backbone pretrained on the one helps on the other. Each image has
a random stream of its own, (seed, split, index): training, validation and test share none, and equal seeds give equal
bytes.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dada_det.data import drawing
from dada_det.data.checks import coco_categories
from dada_det.data.drawing import Kind, Random
from dada_det.errors import UserError
from dada_det.files import make_folder, write_json

ROOT = "data/demo"
RECORD = "demo.json"
SPLITS = ("imagenet/train", "imagenet/val", "coco/train2017", "coco/val2017", "coco/test2017")
# Category k has hue k and two shape families with any texture: learnable from a few hundred images, not from one pixel.
CATEGORIES = ("stop sign", "banana", "broccoli", "frisbee", "umbrella", "sports ball", "vase", "kite")
SCENES = ((160, 128), (144, 144), (128, 160))  # width, height in pixels
OBJECT_SIZES = (30, 80)  # longer side in pixels
MAX_OVERLAP = 0.4  # of an earlier object's pixels that a later one may hide
MIN_VISIBLE = 25  # pixels; objects with fewer are left out of the annotations
QUALITY = 92


@dataclass(frozen=True)
class DemoSize:
    """How many images to write; `image_size` is the side of the square classification images in pixels."""

    classes: int = 120
    train_per_class: int = 12
    val_per_class: int = 2
    image_size: int = 96
    det_train: int = 160
    det_val: int = 60
    det_test: int = 16


@dataclass(frozen=True)
class Thing:
    """One visible object of a scene: mask bool [H,W]; the polygon (x, y in pixels) only where nothing hides a part."""

    category: str
    mask: np.ndarray
    polygon: list[float] | None


def ensure_demo_data(root: str | Path = ROOT) -> Path:
    """Returns `root`; writes the demo's data there at first use, whole or not at all."""
    root = Path(root)
    if not (root / RECORD).is_file():
        try:
            write_demo(root)
        except UserError:
            if not (root / RECORD).is_file():  # another process was faster: its data is the same
                raise
    return root


def write_demo(root: str | Path, seed: int = 0, size: DemoSize | None = None) -> None:
    """Writes the demo's data to the folder `root`.

    Raises:
        UserError: the folder is not empty or cannot be written.
    """
    root, size = Path(root), size or DemoSize()
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise UserError(f"{root} exists already; remove it or give another --out")
    make_folder(root.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
            _write(Path(temporary) / root.name, seed, size)
            os.replace(Path(temporary) / root.name, root)
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; give another --out") from error


def _write(root: Path, seed: int, size: DemoSize) -> None:
    total = size.classes * (size.train_per_class + size.val_per_class) + size.det_train + size.det_val + size.det_test
    progress = _Progress(total)
    for split, per_class in (("train", size.train_per_class), ("val", size.val_per_class)):
        _write_classes(root / "imagenet" / split, size, per_class, _streams(seed, f"imagenet/{split}"), progress)
    annotations = make_folder(root / "coco" / "annotations")
    for split, count, name in (("train2017", size.det_train, "instances_train2017.json"),
                               ("val2017", size.det_val, "instances_val2017.json"),
                               ("test2017", size.det_test, "image_info_test-dev2017.json")):
        content = _write_scenes(root / "coco" / split, count, _streams(seed, f"coco/{split}"), progress)
        if split == "test2017":  # the test server keeps these to itself
            del content["annotations"]
        write_json(annotations / name, content)
    looks = {class_name(label): asdict(kind) for label, kind in enumerate(drawing.KINDS[:size.classes])}
    write_json(root / RECORD, {"seed": seed, "size": asdict(size), "categories": CATEGORIES, "classes": looks})


def class_name(label: int) -> str:
    return f"n{label + 1:08d}"


def _streams(seed: int, split: str) -> Iterator[Random]:
    """One independent random stream for each image of a split."""
    return (np.random.default_rng([seed, SPLITS.index(split), index]) for index in itertools.count())


class _Progress:
    """Prints at every tenth of the images how many are written and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self) -> None:
        self.done += 1
        if self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            print(f"demo data: {self.done} of {self.total} images, {left:.0f} s left", flush=True)


def _write_classes(folder: Path, size: DemoSize, per_class: int, streams: Iterator[Random],
                   progress: _Progress) -> None:
    for label, kind in enumerate(drawing.KINDS[:size.classes]):
        inside = folder / class_name(label)
        inside.mkdir(parents=True)
        for number in range(per_class):
            image = draw_object(kind, size.image_size, next(streams))
            image.save(inside / f"{class_name(label)}_{number + 1}.JPEG", quality=QUALITY)
            progress.step()


def draw_object(kind: Kind, size: int, random: Random) -> Image.Image:
    """One object of a kind, half to nearly all of the size x size image wide, sometimes behind a bar."""
    canvas_HW3 = drawing.background(size, size, random)
    diameter = random.uniform(0.5, 0.85) * size
    centre = random.uniform(0.45 * diameter, size - 0.45 * diameter, 2)
    drawing.paint(canvas_HW3, kind, drawing.outline(kind, tuple(centre), diameter, random), random)
    if random.random() < 0.3:
        drawing.occlude(canvas_HW3, random)
    return drawing.to_image(canvas_HW3)


def _write_scenes(folder: Path, count: int, streams: Iterator[Random], progress: _Progress) -> dict[str, Any]:
    """Writes `count` scenes and returns their annotations in COCO's format."""
    folder.mkdir(parents=True)
    categories = coco_categories()
    ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    first = 100_000 * (1 + ("train2017", "val2017", "test2017").index(folder.name))  # no id in two splits
    for image_id in range(first, first + count):
        image, things = draw_scene(next(streams))
        name = f"{image_id:012d}.jpg"
        image.save(folder / name, quality=QUALITY)
        images.append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
        for thing in things:
            annotations.append({"id": first + len(annotations), "image_id": image_id,
                                "category_id": ids[thing.category], **describe(thing)})
        progress.step()
    return {"info": {"description": "synthetic scenes of dada_det"}, "licenses": [], "images": images,
            "annotations": annotations, "categories": categories}


def describe(thing: Thing) -> dict[str, Any]:
    """An object's segmentation (its polygon, or the run lengths of what is visible), area, bbox [x, y, w, h]."""
    rle = coco_mask.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    run_lengths = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    return {"segmentation": run_lengths if thing.polygon is None else [thing.polygon], "iscrowd": 0,
            "area": int(coco_mask.area(rle)), "bbox": [float(x) for x in coco_mask.toBbox(rle)]}


def draw_scene(random: Random) -> tuple[Image.Image, list[Thing]]:
    """One to four objects, later ones in front of earlier ones, and what remains visible of each."""
    width, height = SCENES[int(random.integers(len(SCENES)))]
    canvas_HW3 = drawing.background(width, height, random)
    placed: list[Thing] = []
    for _ in range(int(random.integers(1, 5))):
        category = int(random.integers(len(CATEGORIES)))
        kind = _kind_of(category, random)
        found = _place(kind, placed, width, height, random)
        if found is None:
            continue
        points_P2, mask = found
        drawing.paint(canvas_HW3, kind, points_P2, random)
        placed = [_hide(thing, mask) for thing in placed]
        inside = (points_P2 >= 0).all() and (points_P2 <= [width, height]).all()
        placed.append(Thing(CATEGORIES[category], mask, points_P2.ravel().tolist() if inside else None))
    return drawing.to_image(canvas_HW3), [thing for thing in placed if thing.mask.sum() >= MIN_VISIBLE]


def _kind_of(category: int, random: Random) -> Kind:
    shapes, textures = list(drawing.SHAPES), list(drawing.TEXTURES)
    shape = shapes[(category + 2 * int(random.integers(2))) % len(shapes)]
    return Kind(shape, textures[int(random.integers(len(textures)))], category)


def _place(kind: Kind, placed: list[Thing], width: int, height: int,
           random: Random) -> tuple[np.ndarray, np.ndarray] | None:
    """Outline [P,2] and mask [H,W] of an object that hides no earlier one too much; None after ten failures."""
    for _ in range(10):
        diameter = random.uniform(*OBJECT_SIZES)
        centre = (random.uniform(0.4 * diameter, width - 0.4 * diameter),
                  random.uniform(0.4 * diameter, height - 0.4 * diameter))
        points_P2 = drawing.outline(kind, centre, diameter, random).round(2)
        mask = rasterise(points_P2, width, height)
        if all((thing.mask & mask).sum() <= MAX_OVERLAP * thing.mask.sum() for thing in placed):
            return points_P2, mask
    return None


def rasterise(points_P2: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mask bool [H,W] that pycocotools makes of an outline, so that polygon, area and box agree."""
    return coco_mask.decode(coco_mask.frPyObjects([points_P2.ravel().tolist()], height, width))[..., 0].astype(bool)


def _hide(thing: Thing, mask: np.ndarray) -> Thing:
    if not (thing.mask & mask).any():
        return thing
    return Thing(thing.category, thing.mask & ~mask, None)


if __name__ == "__main__":
    from dada_det.commands.demo_data import main

    raise SystemExit(main())
