"""Small COCO files of every kind that the format allows, detections for them, and how many of them a test looks at."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

EVERYDAY = settings(max_examples=30, derandomize=True, deadline=None, database=None)
THOROUGH = settings(max_examples=300, deadline=None, database=None)
# of a test that runs its property as `examples(given(..)(property))()`
examples = pytest.mark.parametrize("examples", [pytest.param(EVERYDAY, id="30"),
                                                pytest.param(THOROUGH, id="300", marks=pytest.mark.slow)])

WHOLE = st.one_of(st.integers(-3, 3), st.integers(2**53 - 2, 2**53 + 2), st.integers(-2**53 - 2, 2 - 2**53),
                  st.integers(2**63 - 2, 2**64 + 2), st.integers())


@dataclass(frozen=True)
class Case:
    """A file and detections, in COCO's formats, with ids 1, 2, 3, ..; and the same two under other ids, else equal."""

    content: dict[str, Any]
    results: list[dict[str, Any]]
    other_content: dict[str, Any]
    other_results: list[dict[str, Any]]


def ids(count: int) -> st.SearchStrategy[list[int]]:
    """`count` different whole numbers, in no order."""
    return st.lists(WHOLE, min_size=count, max_size=count, unique=True)


def segmentation(kind: str, x: float, y: float, w: float, h: float, height: int, width: int) -> Any:
    """A box's segmentation as COCO allows it: one polygon, two, an RLE with counts that are compressed or not, or none."""
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    if kind in ("", "[]"):
        return None if kind == "" else []
    if kind == "polygon":
        return [corners]
    if kind == "polygons":
        return [[x, y, x + w, y, x, y + h], [x + w, y + h, x + w, y, x, y + h]]
    rle = coco_mask.merge(coco_mask.frPyObjects([corners], height, width))
    if kind == "compressed":
        return {"size": [height, width], "counts": rle["counts"].decode()}
    pixels = coco_mask.decode(rle).ravel(order="F")
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(pixels)) + 1, [pixels.size]])).tolist()
    return {"size": [height, width], "counts": [0, *runs] if pixels[0] else runs}


MASKS = ("polygon", "polygons", "compressed", "uncompressed")


@st.composite
def files(draw: st.DrawFn, masks: tuple[str, ...] = MASKS) -> dict[str, Any]:
    """A legal annotation file with ids 1, 2, 3, ..; lists in any order, image k in `k.png`."""
    images = [{"id": number, "file_name": f"{number}.png", "width": draw(st.integers(32, 150)),
               "height": draw(st.integers(32, 150))} for number in range(1, draw(st.integers(1, 4)) + 1)]
    categories = [{"id": number, "name": f"c{number}"} for number in range(1, draw(st.integers(1, 3)) + 1)]
    annotations = []
    for number in range(1, draw(st.integers(1, 12)) + 1):
        image = draw(st.sampled_from(images))
        w, h = (draw(st.integers(4, 4 * image[side])) / 4 for side in ("width", "height"))
        x, y = (draw(st.integers(0, int(4 * (image[side] - length)))) / 4 for side, length in (("width", w), ("height", h)))
        w = draw(st.sampled_from([w, w, w, w, 0.5]))
        x += draw(st.sampled_from([0, 0, 0, 0, -w / 2, -w, image["width"]]))
        area = draw(st.one_of(st.just(w * h), st.sampled_from([1, 0.5, 1024, 1025.5, 9216, 1e5])))
        entry = {"id": number, "image_id": image["id"], "category_id": draw(st.sampled_from(categories))["id"],
                 "bbox": [x, y, w, h], "area": area, "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
                 "segmentation": segmentation(draw(st.sampled_from(masks)), x, y, w, h, image["height"], image["width"])}
        ignore = draw(st.sampled_from([None, None, 0, 1]))
        annotations.append(entry if ignore is None else {**entry, "ignore": ignore})
    return {"images": draw(st.permutations(images)), "categories": draw(st.permutations(categories)),
            "annotations": draw(st.permutations(annotations))}


@st.composite
def detections(draw: st.DrawFn, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections near the objects and elsewhere, with equal scores among them and at times more than 100 on one image."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    found = []
    for entry in content["annotations"]:
        found += [(entry["image_id"], entry["category_id"], np.array(entry["bbox"]) + random.normal(0, 4, 4).round(1))
                  for _ in range(draw(st.integers(0, 3)))]
        if draw(st.booleans()):
            found.append((entry["image_id"], entry["category_id"], entry["bbox"]))
    if draw(st.integers(0, 3)) == 0:
        image, category = draw(st.sampled_from(content["images"])), draw(st.sampled_from(content["categories"]))
        found += [(image["id"], category["id"], random.uniform(0, 120, 4).round(1))
                  for _ in range(draw(st.integers(95, 130)))]
    levels, results = draw(st.sampled_from([3, 20, 10**6])), []
    for image_id, category_id, box in found:
        width, height = sizes[image_id]
        x, y = (float(min(max(0, box[axis]), side - 1)) for axis, side in ((0, width), (1, height)))
        w, h = float(min(max(1, box[2]), width - x)), float(min(max(1, box[3]), height - y))
        results.append({"image_id": image_id, "category_id": category_id, "bbox": [x, y, w, h],
                        "score": int(random.integers(levels + 1)) / levels,
                        "segmentation": segmentation("compressed", x, y, w, h, height, width)})
    return [results[place] for place in random.permutation(len(results))]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    content = draw(files())
    results = draw(detections(content))
    images, categories = (sorted(draw(ids(len(content[part])))) for part in ("images", "categories"))
    return Case(content, results, *renamed(content, results, images, categories, draw(ids(len(content["annotations"])))))


def renamed(content: dict[str, Any], results: list[dict[str, Any]], images: list[int], categories: list[int],
            annotations: list[int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies in which the ids 1, 2, .. are the first, second, .. of the lists; these keep the order of equal scores."""
    content, results = copy.deepcopy((content, results))
    for image in content["images"]:
        image["id"] = images[image["id"] - 1]
    for category in content["categories"]:
        category["id"] = categories[category["id"] - 1]
    for entry in [*content["annotations"], *results]:
        entry |= {"image_id": images[entry["image_id"] - 1], "category_id": categories[entry["category_id"] - 1]}
    for entry in content["annotations"]:
        entry["id"] = annotations[entry["id"] - 1]
    return content, results


def write(root: Path, content: Any, pictures: list[dict[str, Any]], split: str = "train") -> tuple[Path, Path]:
    """root in COCO's layout: `content` as its annotation file, and a PNG of each of `pictures`, entries of its images."""
    folder, annotations = root / split, root / "annotations"
    for made in (folder, annotations):
        made.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        Image.new("L", (picture["width"], picture["height"]), 100).save(folder / picture["file_name"], compress_level=1)
    file = annotations / f"instances_{split}.json"
    file.write_text(json.dumps(content))
    return file, folder


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([-1, 0, 2**53, 10**400, -10**400]),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.5, -0.5, 1e-300, 1e9, -1e9, 1e300]), st.text(max_size=5),
    st.sampled_from(["", "..", "../0.png", "/etc/passwd", "a\0b", "a\nb", "\ud800", "x" * 300]),
    st.just([]), st.just({}), st.just([[]]), st.just([{}]), st.lists(st.integers(-2, 9), max_size=8),
    st.just({"size": [1, 1], "counts": "1"}))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) inside a JSON value."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [place for key, child in inner for place in [(value, key), *places(child)]]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a legal file, the same with one to three values replaced or removed at random), which may be legal as well."""
    content = draw(files())
    changed = copy.deepcopy(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        found = places(changed)
        numbers = [(container, key) for container, key in found if type(container[key]) in (int, float)]
        if not found:
            break
        container, key = draw(st.sampled_from(numbers if numbers and draw(st.sampled_from([True, True, False])) else found))
        if draw(st.integers(0, 9)) == 9:
            del container[key]
        else:
            container[key] = draw(near(container[key]))
    return content, changed


def near(value: Any) -> st.SearchStrategy[Any]:
    """Another value: of a number mostly one near by, so that many files come close to being legal, or are."""
    if type(value) not in (int, float):
        return VALUES
    return st.one_of(st.sampled_from([value + 1, value - 1, -value, 2 * value, float(value), value + 0.5, 0, 1, 2, 10_000]),
                     st.floats(-200, 200), VALUES)


def far(entry: dict[str, Any], by: float) -> list[list[float]]:
    """A polygon whose first corner is at `by`."""
    x, y, w, h = entry["bbox"]
    return [[by, y, x + w, y, x + w, y + h]]


def rle_with(content: dict[str, Any], entry: dict[str, Any], size: Any = None, counts: Any = None) -> dict[str, Any]:
    image = next(image for image in content["images"] if image["id"] == entry["image_id"])
    height, width = image["height"], image["width"]
    return {"size": size(height, width) if size else [height, width],
            "counts": [height * width] if counts is None else counts}


# name -> what breaks one annotation of a legal file, given the file and the annotation; a part of the sentence it gets
BROKEN_ANNOTATIONS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "far polygon": (lambda c, e: e.update(segmentation=far(e, 1e9)), "coordinate"),
    "NaN polygon": (lambda c, e: e.update(segmentation=far(e, math.nan)), "coordinate"),
    "infinite polygon": (lambda c, e: e.update(segmentation=far(e, -math.inf)), "coordinate"),
    "endless polygon": (lambda c, e: e.update(segmentation=[[0, 0, 9000, 0] * 999]), "px of outline"),
    "huge number": (lambda c, e: e.update(segmentation=far(e, 10**400)), "coordinate"),
    "swapped size": (lambda c, e: e.update(segmentation=rle_with(c, e, lambda h, w: [w, h + (w == h)])), "RLE of the size"),
    "huge size": (lambda c, e: e.update(segmentation=rle_with(c, e, lambda h, w: [10**6, 10**6])), "RLE of the size"),
    "too many pixels": (lambda c, e: e.update(segmentation=rle_with(c, e, counts=[5, 10**9])), "counts cover"),
    "too few pixels": (lambda c, e: e.update(segmentation=rle_with(c, e, counts=[5])), "counts cover"),
    "no pixels": (lambda c, e: e.update(segmentation=rle_with(c, e, counts=[])), "counts cover 0"),
    "negative run": (lambda c, e: e.update(segmentation=rle_with(c, e, counts=[-5, 9])), "do not decode"),
    "broken runs": (lambda c, e: e.update(segmentation=rle_with(c, e, counts=[5, None])), "do not decode"),
    "no text": (lambda c, e: e.update(segmentation=rle_with(c, e, counts="é")), "do not decode"),
    "cut text": (lambda c, e: e.update(segmentation=rle_with(c, e, counts="o" * 5)), "do not decode"),
    "long text": (lambda c, e: e.update(segmentation=rle_with(c, e, counts="1" * 999_999)), "do not decode"),
    "empty text": (lambda c, e: e.update(segmentation=rle_with(c, e, counts="")), "do not decode"),
    "two points": (lambda c, e: e.update(segmentation=[[1, 2, 3, 4]]), "neither a list of polygons"),
    "NaN box": (lambda c, e: e.update(bbox=[math.nan, 1, 5, 5]), "four finite numbers"),
    "huge box": (lambda c, e: e.update(bbox=[1, 1, 10**400, 5]), "four finite numbers"),
    "three numbers": (lambda c, e: e.update(bbox=[1, 1, 5]), "four finite numbers"),
    "infinite area": (lambda c, e: e.update(area=math.inf), "area"),
    "no area": (lambda c, e: e.pop("area"), "area"),
    "crowd of two": (lambda c, e: e.update(iscrowd=2), "iscrowd"),
    "no id": (lambda c, e: e.pop("id"), "id"),
    "other image": (lambda c, e: e.update(image_id=-7), "belongs to image -7"),
    "other category": (lambda c, e: e.update(category_id=[]), "has category []"),
}
