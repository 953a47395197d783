"""Images and annotations that do not fit together, through the commands: a sentence before the model is built, or a line."""

import json
import shutil

import pytest
from PIL import Image

from dada_det.commands import compare_backbones, search, test_det, train_det
from tests.engine.detect.test_detect_detection_commands import (
    MASK_RCNN,
    RETINANET,
    ROOT,
    TINY,
    edited,
    one_class,  # noqa: F401  a fixture
    run,
    says,
)
from tests.messages import assert_names


def turn(path):
    """Makes the file a photograph that stands upright only by its EXIF orientation; 64 x 48 px to who reads no EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(path, exif=exif)


def flat(content):
    for image in content["images"]:
        image["height"] = 48


@pytest.fixture
def no_detector(monkeypatch):
    """Fails where a detector is built."""
    from dada_det.engine.detect import run as detection_runs
    from dada_det.engine.search import detection as search_detection

    for module, name in ((detection_runs, "_runner"), (search_detection, "build_detector")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a detector was built"))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_every_command_refuses_images_of_another_size(split, backbone, one_class, tmp_path, capsys, no_detector):  # noqa: F811
    data = edited(one_class, tmp_path / "data", flat, split)
    for path in (data / split).iterdir():
        turn(path)
    sentence = "the image 0.jpg is 64 x 48 px in"
    flags = ["--data", data, "--work-dir", tmp_path / "w"]
    says(capsys, train_det.main, [RETINANET, "--backbone", backbone, *flags], sentence)
    says(capsys, compare_backbones.main, ["--backbones", f"a={backbone}", f"b={backbone}", "--detectors", RETINANET, *flags],
         sentence)
    if split == "val2017":
        says(capsys, test_det.main, [RETINANET, "none", "--backbone", backbone, *flags], sentence)
        return
    argv = ["--config", ROOT / "configs/debug/search_det.py", "--image-size", 64, "--batch-size", 3]
    says(capsys, search.main, [*argv, *flags], sentence)
    says(capsys, search.main, [*argv, *flags[2:], "--data", one_class, "--val-data",
                               data / "annotations/instances_train2017.json"], sentence)


def test_images_that_are_left_out_of_training_are_named(backbone, one_class, tmp_path, capsys):  # noqa: F811
    def small(content):
        content["images"][1]["height"] = 31
        content["annotations"][2]["ignore"] = 1

    data = edited(one_class, tmp_path / "data", small)
    Image.new("RGB", (64, 31)).save(data / "train2017/1.jpg")
    run(train_det.main, [RETINANET, "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w", *TINY])
    said = capsys.readouterr().out
    line = ("dropped 1 of 6 boxes: 1 marked ignore (images 3); left out 1 of 6 images that are under 32 px wide or high "
            "(min_size in filter_cfg): 1.jpg")
    assert said.count(line) == 1
    run(search.main, ["--config", ROOT / "configs/debug/search_det.py", "--image-size", 64, "--batch-size", 2, "--epochs", 1,
                      "--data", data, "--work-dir", tmp_path / "s"])
    assert capsys.readouterr().out.count(line) == 1


def test_the_only_image_with_a_box_does_not_decode(backbone, one_class, tmp_path, capsys, no_detector):  # noqa: F811
    def one_box(content):
        content["annotations"] = content["annotations"][:1]

    data = edited(one_class, tmp_path / "data", one_box)
    (data / "train2017/0.jpg").write_bytes(b"no image")
    argv = ["--data", data, "--work-dir", tmp_path / "w"]
    says(capsys, train_det.main, [RETINANET, "--backbone", backbone, *argv],
         "5 images without annotations", "0.jpg")
    says(capsys, search.main, ["--config", ROOT / "configs/debug/search_det.py", *argv], "0.jpg", "whole file")


def test_masks_are_demanded_of_what_validates_too(backbone, one_class, tmp_path, capsys, no_detector):  # noqa: F811
    data = edited(one_class, tmp_path / "data", lambda content: content["annotations"][0].update(segmentation=[]), "val2017")
    for main, argv in ((train_det.main, [MASK_RCNN]), (test_det.main, [MASK_RCNN, "none"])):
        says(capsys, main, [*argv, "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w"],
             "instances_val2017.json", "1 annotations", "segmentation", "mask_rcnn")


def test_an_evaluation_says_what_it_counts_and_training_would_not(backbone, one_class, tmp_path, capsys):  # noqa: F811
    data = edited(one_class, tmp_path / "data", lambda content: content["annotations"][0].update(ignore=1), "val2017")
    run(test_det.main, [RETINANET, "none", "--backbone", backbone, "--data", data, "--work-dir", tmp_path / "w", *TINY])
    assert_names(capsys.readouterr().out, "1 of 4 boxes", "1 marked ignore", "images 1")


def test_huge_and_negative_ids_train_and_test(backbone, one_class, tmp_path):  # noqa: F811
    def rename(content):
        content["categories"][0]["id"] = 0
        for number, image in enumerate(content["images"]):
            image["id"] = 2**53 - 2 + number
        for number, entry in enumerate(content["annotations"]):
            entry.update(id=-number, image_id=2**53 - 2 + number, category_id=0)

    data = shutil.copytree(edited(one_class, tmp_path / "a", rename), tmp_path / "b")
    data = edited(data, tmp_path / "data", rename, "val2017")
    flags = ["--backbone", backbone, "--data", data, *TINY, "model.test_cfg.score_thr=0.0"]
    run(train_det.main, [RETINANET, "--work-dir", tmp_path / "w", *flags])
    run(test_det.main, [RETINANET, "none", "--work-dir", tmp_path / "w", *flags])
    assert json.loads((tmp_path / "w/metrics.json").read_text())["bbox"]["AP"] >= 0
