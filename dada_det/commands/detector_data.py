"""Where a detector's images and annotations are: as the config says, else in --data.

An entry counts as given if it differs from MMDetection's own COCO configs. Data sets inside RepeatDataset,
ClassBalancedDataset and the like are found. Those of a ConcatDataset become one, whose file is written to the work_dir.
"""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.data.checks import CocoLayout, check_coco, find_annotations, find_coco
from dada_det.data.coco_instances import CocoSummary
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, write_text

DEFAULT_FILES = ("annotations/instances_train2017.json", "annotations/instances_val2017.json",
                 "annotations/image_info_test-dev2017.json")
DEFAULT_FOLDERS = ("train2017", "val2017", "test2017")
WHERE = ("ann_file", "data_root", "data_prefix", "metainfo")  # in which the data sets of a ConcatDataset may differ
COCO_CLASSES = 80  # num_classes of MMDetection's own configs
Place = tuple[Path, Path]  # annotation file, folder of its images


def data_layout(args: Namespace, config: Any, parts: Sequence[str]) -> CocoLayout:
    """Where the `parts` of "train", "val" and "test" are; "test" takes the place of "val" and also finds test-dev's images.

    Looked for in this order: what the config gives, --data, the config's data_root, the demo's data (written at first use).
    The config's loaders get single data sets (`use_single`), and its work_dir the file of a ConcatDataset.

    Raises:
        UserError: something given is not there, or cannot be used.
    """
    if not args.data and config.get("demo"):
        from dada_det.data.synthetic import ensure_demo_data

        ensure_demo_data()
    if args.data and any(option.partition("=")[0].endswith("data_root") for option in args.cfg_options):
        raise UserError(f"--cfg-options gives a data_root, whose place --data {args.data} takes; leave one of them out")
    root = args.data or config.get("data_root")
    found = find_coco(root, ()) if root and (Path(root).is_dir() or not parts) else None
    places: dict[str, Place] = {}
    for part in parts:
        # A config gives its validation images to the test, too, but an option gives them to one alone.
        loader = "val" if part == "test" and not any(map(is_given, leaves_of(config, part))) else part
        places["val" if part == "test" else part] = place_of(args, config, loader)
    for part in ("train", "val", "test"):
        use_single(config, part)
    train, val = places.get("train", (None, None)), places.get("val", (None, None))
    return CocoLayout(train[0], train[1], val[0], val[1], found.test_annotations if found else None,
                      found.test_images if found else None)


def place_of(args: Namespace, config: Any, part: str) -> Place:
    """The annotation file and the image folder of a loader's data set."""
    leaves = leaves_of(config, part)
    split = "train" if part == "train" else "val"
    places = [_place(leaf, args.data or leaf.get("data_root") or config.get("data_root"), split, part) for leaf in leaves]
    if len(places) == 1:
        return places[0]
    different = [leaf for leaf in leaves if _kind(leaf) != _kind(leaves[0])]
    if different:
        raise UserError(f"the data sets of the ConcatDataset of {part}_dataloader differ in more than their files; give "
                        "them the same type, pipeline and filter_cfg")
    return merged(places, make_folder(Path(config.work_dir) / "data"), part)


def leaves_of(config: Any, part: str) -> list[Any]:
    """The data sets inside the wrappers of a loader's, one where there is no ConcatDataset; in training one as often as
    RepeatDataset inside a ConcatDataset says."""
    def inside(dataset: Any, times: int) -> list[Any]:
        if "datasets" in dataset:
            return [leaf for part_of_it in dataset["datasets"] for leaf in inside(part_of_it, times)]
        if "dataset" not in dataset:
            return [dataset] * times
        if dataset.get("type") != "RepeatDataset":
            raise UserError(f"{part}_dataloader has a {dataset.get('type')} inside a ConcatDataset; put it around that one")
        return inside(dataset["dataset"], times * (int(dataset.get("times", 1)) if part == "train" else 1))

    outer = config[f"{part}_dataloader"]["dataset"]
    while "dataset" in outer:
        outer = outer["dataset"]
    return inside(outer, 1)


def use_single(config: Any, part: str) -> None:
    """Puts the first data set of a ConcatDataset in its place; validation and tests lose every other wrapper, too, as an
    image that comes twice would count twice."""
    first = leaves_of(config, part)[0]
    loader = config[f"{part}_dataloader"]
    outer = loader if part == "train" else None
    while outer is not None and "dataset" in outer["dataset"]:
        outer = outer["dataset"]
    (loader if outer is None else outer)["dataset"] = first


def is_given(leaf: Any) -> bool:
    """Whether a data set of the config says itself where its annotations or images are."""
    return bool(_given_file(leaf) or _given_folder(leaf))


def demand_nothing_given(config: Any, parts: Sequence[str], instead: str) -> None:
    """UserError where a data set of the config says itself where it is, or there are several; `instead` is what is used."""
    for part in parts:
        leaves = leaves_of(config, part)
        if len(leaves) > 1 or is_given(leaves[0]):
            raise UserError(f"{config.filename or 'the config'} gives data of its own for {part}_dataloader, and {instead}; "
                            "leave it out")


def merged(places: Sequence[Place], folder: Path, part: str) -> Place:
    """One annotation file, in `folder`, for all images of `places`, numbered anew.

    Raises:
        UserError: categories differ.
    """
    root = Path(os.path.commonpath([images.resolve() for _, images in places]))
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": None}
    for annotations, images in places:
        check_coco(annotations, images)
        one = read_json(annotations, "annotation file")
        if content["categories"] not in (None, one["categories"]):
            raise UserError(f"{places[0][0]} and {annotations} of {part}_dataloader list different categories; give all the "
                            "same list in the same order")
        content["categories"] = one["categories"]
        numbers: dict[int, int] = {}
        for image in one["images"]:
            numbers[image["id"]] = len(content["images"]) + 1
            content["images"].append({**image, "id": numbers[image["id"]],
                                      "file_name": os.path.relpath(images.resolve() / image["file_name"], root)})
        first = len(content["annotations"]) + 1
        content["annotations"] += [{**entry, "id": number, "image_id": numbers[entry["image_id"]]}
                                   for number, entry in enumerate(one["annotations"], first)]
    text = json.dumps(content)
    path = folder / f"{part}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write_text(path, text)
    return path, root


def demand_classes(config: Any, categories: Sequence[str], options: Sequence[str], annotations: Path) -> None:
    """UserError where the config or `options` give other classes, or another number of them, than the annotations have."""
    for part in ("train", "val", "test"):
        for leaf in leaves_of(config, part):
            given = (leaf.get("metainfo") or {}).get("classes", categories)
            if list([given] if isinstance(given, str) else given) != list(categories):
                raise UserError(f"{part}_dataloader.dataset.metainfo.classes is {_some(given)}, and {annotations} lists "
                                f"{_some(categories)}; give a file of those categories alone, in that order")
    demand_class_numbers(config["model"], len(categories), options, annotations)


def demand_class_numbers(model: Any, classes: int, options: Sequence[str], annotations: Path) -> None:
    """UserError where the model's config or `options` give num_classes that is not the number of categories.

    COCO_CLASSES in the file stands for no number given. Heads whose classes are others than the data's may have any number,
    but one that is to name stuff (sky, grass) beside things has nothing to learn it from.
    """
    from dada_det.engine.detect.config import CLASS_NUMBERS, OTHER_HEADS

    refuse_stuff(model, f"{annotations} has objects alone")
    for option in options:
        name, _, value = option.partition("=")
        parts = name.split(".")
        if (parts[0] == "model" and parts[-1] in CLASS_NUMBERS and not set(parts) & set(OTHER_HEADS)
                and value.strip() != str(classes)):
            raise UserError(f"--cfg-options gives {option}, and {annotations} lists {classes} categories; leave it out, or "
                            "give a file of so many")
    for place, number in _class_numbers(model, "model"):
        if number not in (classes, COCO_CLASSES):
            raise UserError(f"{place} is {number}, and {annotations} lists {classes} categories; make it that number, or "
                            "give a file of so many")


def refuse_stuff(model: Any, why: str) -> None:
    """UserError where a head of the model is to name stuff (sky, grass) beside things, and `why` that cannot be."""
    from dada_det.engine.detect.config import dicts_in

    for entry in dicts_in(model):
        if entry.get("num_stuff_classes"):
            raise UserError(f"the detector's {entry.get('type')} segments {entry['num_stuff_classes']} classes of stuff "
                            f"(num_stuff_classes), and {why}; give a config of instances, such as "
                            "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")


def demand_same_categories(one_file: Path | None, one: CocoSummary, other_file: Path | None, other: CocoSummary) -> None:
    """UserError where two annotation files list other categories, or the same in another order."""
    if (one.categories, one.category_ids) != (other.categories, other.category_ids):
        raise UserError(f"{one_file} and {other_file} list different categories; give both the same list in the same order")


def demand_evaluators(config: Any, parts: Sequence[str], layout: CocoLayout) -> None:
    """UserError where an evaluator's annotation file is given and is not that of the validation images."""
    for part in parts:
        evaluators = config[f"{part}_evaluator"]
        for evaluator in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
            file = evaluator.get("ann_file")
            if file and not str(file).endswith(DEFAULT_FILES) and not _same(Path(file), layout.val_annotations):
                raise UserError(f"{part}_evaluator.ann_file is {file}, and the images are those of "
                                f"{layout.val_annotations}; give {part}_dataloader.dataset.ann_file too, or leave it out")


def _place(leaf: Any, root: Any, split: str, part: str) -> Place:
    file, folder = _given_file(leaf), _given_folder(leaf)
    what = f"{part}_dataloader.dataset"
    if not (file and folder) and not root and not (file and Path(file).exists()):
        raise UserError(f"the config does not say where the data of {part}_dataloader is; give --data DIR")
    if not file and not folder:
        return find_coco(root, (split,)).part(split)
    annotations = _located(file, root, f"{what}.ann_file") if file else find_coco(root, (split,)).part(split)[0]
    if folder:
        return annotations, _located(folder, root, f"{what}.data_prefix.img")
    if file and (leaf.get("data_prefix") or {}).get("img") == "":  # as MMDetection reads it: below data_root
        return annotations, Path(root or "")
    try:
        return annotations, find_coco(root or "", (split,)).part(split)[1]
    except UserError:
        return find_annotations(annotations)


def _given_file(leaf: Any) -> str | None:
    file = leaf.get("ann_file")
    return None if not file or str(file) in DEFAULT_FILES else str(file)


def _given_folder(leaf: Any) -> str | None:
    folder = (leaf.get("data_prefix") or {}).get("img")
    return None if not folder or str(folder).rstrip("/") in DEFAULT_FOLDERS else str(folder)


def _located(path: str, root: Any, what: str) -> Path:
    """A path that is given: below the data's folder, or as it stands."""
    for candidate in ([Path(root, path)] if root else []) + [Path(path)]:
        if candidate.exists():
            return candidate
    raise UserError(f"{what} is {path}, which is neither below {root or 'a data folder'} nor a path from here; give one "
                    "that exists")


def _same(given: Path, used: Path | None) -> bool:
    return used is not None and given.resolve() == used.resolve()


def _kind(leaf: Any) -> dict[str, Any]:
    return {name: value for name, value in leaf.items() if name not in WHERE}


def _class_numbers(value: Any, place: str) -> list[tuple[str, int]]:
    """The numbers of categories inside the model's config and where they are; heads of other classes are left out."""
    from dada_det.engine.detect.config import CLASS_NUMBERS, OTHER_HEADS

    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = [(f"{place}.{name}", value[name]) for name in CLASS_NUMBERS if name in value] if isinstance(value, dict) else []
    return found + [number for key, entry in entries if key not in OTHER_HEADS
                    for number in _class_numbers(entry, f"{place}.{key}")]


def _some(names: Any) -> str:
    names = [names] if isinstance(names, str) else list(names)
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
