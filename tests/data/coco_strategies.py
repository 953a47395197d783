"""Small COCO files of every kind that the format allows, detections for them, and how many of them a test looks at."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
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
