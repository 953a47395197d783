"""Annotations, folders and classes that a detector's config gives are used or refused; data sets inside others are found."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict

from dada_det.commands.detector_data import data_layout, demand_classes, demand_evaluators, demand_nothing_given, leaves_of
from dada_det.data.checks import CocoLayout, check_coco
from tests.engine.detect.test_detect_detection_commands import write_coco
from tests.messages import refused

CONFIG = Path(__file__).resolve().parents[2] / "configs/debug/faster_rcnn.py"
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 7, "name": "crystal"}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """COCO's layout with six training and four validation images, and beside it two.json of two training images."""
    write_coco(tmp_path / "coco", CATEGORIES)
    content = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text())
    content["images"], content["annotations"] = content["images"][:2], content["annotations"][:2]
    (tmp_path / "two.json").write_text(json.dumps(content))
    return tmp_path


def config_of(root: Path, **changes: Any) -> Config:
    config = Config.fromfile(CONFIG, import_custom_modules=False, format_python_code=False)
    config.merge_from_dict(changes)
    config.work_dir = str(root / "w")
    return config


def layout_of(root: Path, config: Config, parts: tuple[str, ...] = ("train", "val"), data: str | None = "coco",
              options: tuple[str, ...] = ()) -> CocoLayout:
    return data_layout(Namespace(data=data and str(root / data), cfg_options=options), config, parts)


def test_nothing_given_is_cocos_layout(root: Path) -> None:
    layout, coco = layout_of(root, config_of(root)), root / "coco"
    assert layout.part("train") == (coco / "annotations/instances_train2017.json", coco / "train2017")
    assert layout.part("val") == (coco / "annotations/instances_val2017.json", coco / "val2017")
    assert layout.part("test") == (coco / "annotations/image_info_test-dev2017.json", coco / "test2017")


@pytest.mark.parametrize("file", ["two.json", "annotations/two.json"])
@pytest.mark.parametrize("data", ["coco", None])
def test_a_file_that_is_given_is_used(file: str, data: str | None, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from here or below the data's folder, which --data or the config names; the images are the layout's."""
    monkeypatch.chdir(root)
    if "/" in file:
        shutil.copy("two.json", f"coco/{file}")
    config = config_of(root, **{"train_dataloader.dataset.ann_file": file, "demo": False, "data_root": "coco",
                                "train_dataloader.dataset.data_root": "coco", "val_dataloader.dataset.data_root": "coco"})
    annotations, images = layout_of(root, config, data=data).part("train")
    assert annotations.samefile("coco/annotations/two.json" if "/" in file else "two.json")
    assert images.samefile("coco/train2017") and len(check_coco(annotations, images).pictures) == 2


def test_a_folder_that_is_given_is_used(root: Path) -> None:
    shutil.copytree(root / "coco/train2017", root / "coco/others")
    config = config_of(root, **{"train_dataloader.dataset.data_prefix.img": "others/"})
    assert layout_of(root, config).part("train")[1] == root / "coco/others"


def test_data_that_is_in_no_layout_of_cocos_needs_no_folder(root: Path) -> None:
    """As MMDetection's tutorials have it: data_root, a file and a folder for each loader."""
    own = root / "balloon"
    for part in ("train", "val"):
        shutil.copytree(root / f"coco/{part}2017", own / part)
        shutil.copy(root / f"coco/annotations/instances_{part}2017.json", own / part / "annotation_coco.json")
    given = {f"{part}_dataloader.dataset.{name}": value for part in ("train", "val") for name, value in (
        ("data_root", str(own)), ("ann_file", f"{part}/annotation_coco.json"), ("data_prefix.img", f"{part}/"))}
    layout = layout_of(root, config_of(root, **given, demo=False, data_root=None), data=None)
    assert layout.part("val") == (own / "val/annotation_coco.json", own / "val") and layout.test_images is None


def test_an_empty_folder_is_the_data_root_itself(root: Path) -> None:
    """As MMDetection reads data_prefix=dict(img=""): the file names begin at data_root."""
    own = root / "own"
    (own / "annotations").mkdir(parents=True)
    given: dict[str, Any] = {}
    for part in ("train", "val"):
        shutil.copytree(root / f"coco/{part}2017", own / part)
        content = json.loads((root / f"coco/annotations/instances_{part}2017.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{part}/{image['file_name']}"
        (own / f"annotations/my_{part}.json").write_text(json.dumps(content))
        given |= {f"{part}_dataloader.dataset.{name}": value for name, value in (
            ("data_root", str(own)), ("ann_file", f"annotations/my_{part}.json"), ("data_prefix.img", ""))}
    for data in (None, "own"):
        layout = layout_of(root, config_of(root, **given, demo=False, data_root=None), data=data)
        assert layout.part("train") == (own / "annotations/my_train.json", own) and layout.part("val")[1] == own
        assert len(check_coco(*layout.part("train")).pictures) == 6


@pytest.mark.parametrize("name", ["ann_file", "data_prefix.img"])
def test_what_is_given_and_not_there_is_refused(name: str, root: Path) -> None:
    config = config_of(root, **{f"train_dataloader.dataset.{name}": "nowhere"})
    with refused(f"train_dataloader.dataset.{name}", "nowhere", root / "coco"):
        layout_of(root, config)


def test_a_data_root_beside_data_is_refused(root: Path) -> None:
    with refused("--cfg-options", "data_root", "--data"):
        layout_of(root, config_of(root), options=("train_dataloader.dataset.data_root=x",))


def test_the_test_takes_its_own_file_or_that_of_validation(root: Path) -> None:
    for part in ("val", "test"):
        config = config_of(root, **{f"{part}_dataloader.dataset.ann_file": str(root / "two.json"),
                                    f"{part}_dataloader.dataset.data_prefix.img": "train2017_all/"})
        shutil.copytree(root / "coco/train2017", root / "coco/train2017_all", dirs_exist_ok=True)
        assert layout_of(root, config, ("test",)).part("val") == (root / "two.json", root / "coco/train2017_all")


def wrapped(config: Config, part: str, *kinds: str) -> Config:
    for kind in kinds:
        inner = config[f"{part}_dataloader"]["dataset"]
        more = {"times": 2} if kind == "RepeatDataset" else {"oversample_thr": 0.1}
        config[f"{part}_dataloader"]["dataset"] = ConfigDict(type=kind, dataset=inner, **more)
    return config


def concatenated(config: Config, part: str, *files: str, times: int = 1) -> Config:
    leaf = config[f"{part}_dataloader"]["dataset"]
    leaves = [ConfigDict({**leaf, "ann_file": file}) for file in files]
    if times > 1:
        leaves[0] = ConfigDict(type="RepeatDataset", times=times, dataset=leaves[0])
    config[f"{part}_dataloader"]["dataset"] = ConfigDict(type="ConcatDataset", datasets=leaves)
    return config


@pytest.mark.parametrize("kinds", [("RepeatDataset",), ("ClassBalancedDataset",), ("RepeatDataset", "ClassBalancedDataset")])
def test_wrappers_stay_in_training_and_leave_validation(kinds: tuple[str, ...], root: Path) -> None:
    config = config_of(root, **{"train_dataloader.dataset.ann_file": str(root / "two.json")})
    for part in ("train", "val", "test"):
        wrapped(config, part, *kinds)
    layout = layout_of(root, config)
    assert layout.train_annotations == root / "two.json"
    assert config.train_dataloader.dataset.type == kinds[-1] and leaves_of(config, "train")[0].type == "CocoDataset"
    assert config.val_dataloader.dataset.type == config.test_dataloader.dataset.type == "CocoDataset"


def test_data_sets_side_by_side_become_one_file(root: Path) -> None:
    config = concatenated(config_of(root), "train", str(root / "two.json"), "annotations/instances_train2017.json", times=3)
    concatenated(config, "val", "annotations/instances_val2017.json", str(root / "coco/annotations/more.json"))
    wrapped(config, "val", "RepeatDataset")
    wrapped(config, "train", "ClassBalancedDataset")
    write_coco(root / "more", CATEGORIES, seed=5)
    shutil.copy(root / "more/annotations/instances_val2017.json", root / "coco/annotations/more.json")
    layout = layout_of(root, config)
    train, val = (check_coco(*layout.part(part)) for part in ("train", "val"))
    assert len(train.pictures) == train.annotations == 3 * 2 + 6 and len(val.pictures) == 8
    assert val.categories == ("cell", "crystal")
    content = json.loads(layout.part("train")[0].read_text())
    by_image = {entry["image_id"]: entry["bbox"] for entry in content["annotations"]}
    original = json.loads((root / "coco/annotations/instances_train2017.json").read_text())
    pairs = zip(original["images"], original["annotations"], strict=True)
    boxes = {image["file_name"]: entry["bbox"] for image, entry in pairs}
    assert all(by_image[image["id"]] == boxes[image["file_name"]] for image in content["images"])
    assert config.train_dataloader.dataset.type == "ClassBalancedDataset"
    assert config.train_dataloader.dataset.dataset.type == config.val_dataloader.dataset.type == "CocoDataset"
    assert layout_of(root, config_of(root)).part("train") != layout.part("train")


def test_data_sets_that_cannot_be_one_are_refused(root: Path) -> None:
    config = concatenated(config_of(root), "train", str(root / "two.json"), "annotations/instances_train2017.json")
    config.train_dataloader.dataset.datasets[0].filter_cfg = {"filter_empty_gt": False}
    with refused("ConcatDataset", "train_dataloader"):
        layout_of(root, config)
    content = json.loads((root / "two.json").read_text())
    (root / "two.json").write_text(json.dumps({**content, "categories": CATEGORIES[::-1]}))
    config = concatenated(config_of(root), "train", str(root / "two.json"), "annotations/instances_train2017.json")
    with refused("train_dataloader", "categories"):
        layout_of(root, config)


@pytest.mark.parametrize(("given", "options", "names"), [
    ({"train_dataloader.dataset.metainfo.classes": ("cell",)}, (),
     ("train_dataloader.dataset.metainfo.classes is cell", "a.json", "cell, crystal")),
    ({"val_dataloader.dataset.metainfo.classes": ("crystal", "cell")}, (), ("val_dataloader.dataset.metainfo.classes",
                                                                            "crystal, cell", "a.json")),
    ({"model.roi_head.bbox_head.num_classes": 5}, (), ("model.roi_head.bbox_head.num_classes", "5", "a.json", "2")),
    ({}, ("model.roi_head.bbox_head.num_classes=80",), ("model.roi_head.bbox_head.num_classes=80", "a.json", "2 categories",
                                                        "leave it out"))])
def test_other_classes_than_the_files_are_refused(given: dict[str, Any], options: tuple[str, ...],
                                                  names: tuple[str, ...], root: Path) -> None:
    with refused(*names):
        demand_classes(config_of(root, **given), ("cell", "crystal"), options, Path("a.json"))


def test_the_files_own_classes_may_be_given(root: Path) -> None:
    given = {f"{part}_dataloader.dataset.metainfo.classes": ("cell", "crystal") for part in ("train", "val", "test")}
    config = config_of(root, **given, **{"model.roi_head.bbox_head.num_classes": 2})
    demand_classes(config, ("cell", "crystal"), ("model.roi_head.bbox_head.num_classes=2",), Path("a.json"))


def test_an_evaluators_file_is_that_of_its_images_or_refused(root: Path) -> None:
    layout = layout_of(root, config_of(root))
    annotations = str(root / "coco/annotations/instances_val2017.json")
    demand_evaluators(config_of(root), ("val",), layout)
    demand_evaluators(config_of(root, **{"val_evaluator.ann_file": annotations}), ("val", "test"), layout)
    config = config_of(root)
    config.val_evaluator = [config.val_evaluator, {"type": "DumpDetResults", "out_file_path": "x.pkl"}]
    demand_evaluators(config, ("val",), layout)
    config.val_evaluator[0].ann_file = str(root / "two.json")
    with refused("val_evaluator.ann_file", root / "two.json", annotations):
        demand_evaluators(config, ("val",), layout)


def test_a_comparison_takes_its_data_from_the_flag_alone(root: Path) -> None:
    demand_nothing_given(config_of(root), ("train", "val"), "every run trains on --data")
    for config in (config_of(root, **{"val_dataloader.dataset.ann_file": "a.json"}),
                   concatenated(config_of(root), "val", "annotations/instances_val2017.json", "a.json")):
        with refused("val_dataloader", "--data"):
            demand_nothing_given(config, ("train", "val"), "every run trains on --data")
