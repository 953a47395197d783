"""tools/predict.py: what it finds is what tools/test_det.py finds; pictures, the JSON, and one sentence for each mistake."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import load
from PIL import Image
from pycocotools import mask as coco_mask

from dada_det.commands import predict, test_det
from dada_det.commands.predict import pictures_of
from dada_det.commands.train_det import detector_config
from dada_det.data.checks import coco_categories
from dada_det.errors import UserError
from tests.engine.detect.test_detect_detection_commands import FEW, MASK_RCNN, TINY, write_coco
from tests.messages import assert_names, refused

OPTIONS = [*TINY, *FEW]
NAMES = ("cup", "saucer")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), [{"id": 7 * (n + 1), "name": name} for n, name in enumerate(NAMES)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN of random weights whose random boxes have scores around 1/3."""
    from mmengine.registry import init_default_scope

    from dada_det.engine.detect import config as change
    from dada_det.engine.detect import guard  # noqa: F401

    from mmdet.registry import MODELS  # isort: skip

    config = detector_config(Namespace(config=MASK_RCNN, cfg_options=OPTIONS[1:], backbone=None, data=None, work_dir=None))
    change.use_classes(config, NAMES)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    path = tmp_path_factory.mktemp("checkpoint") / "epoch_1.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": NAMES}}}, path)
    return path


def run(*argv: object) -> int:
    return predict.main([str(part) for part in argv])


def test_what_it_finds_is_what_the_evaluation_finds(coco: Path, checkpoint: Path, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture) -> None:
    assert test_det.main([MASK_RCNN, str(checkpoint), "--data", str(coco), "--work-dir", str(tmp_path / "t"), "--out",
                          str(tmp_path / "all.pkl"), *OPTIONS]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert run(MASK_RCNN, checkpoint, coco / "val2017", "--out", out, "--score", 0, *OPTIONS) == 0
    said = capsys.readouterr().out
    assert_names(said, "4 pictures", "predictions.json", out, "20 objects", "score 0")
    found = json.loads((out / "predictions.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "saucer"}]
    for image, expected in zip(found["images"], load(tmp_path / "all.pkl"), strict=True):
        assert (image["width"], image["height"]) == (64, 64) and Path(image["file_name"]).name == f"{image['id'] - 1}.jpg"
        here = [entry for entry in found["annotations"] if entry["image_id"] == image["id"]]
        instances = expected["pred_instances"]
        order = instances["scores"].argsort(descending=True)
        boxes = instances["bboxes"][order]
        boxes[:, 2:] -= boxes[:, :2]
        assert np.allclose([entry["bbox"] for entry in here], boxes, atol=0.02)
        assert np.allclose([entry["score"] for entry in here], instances["scores"][order], atol=1e-4)
        assert [entry["category_id"] for entry in here] == [int(label) + 1 for label in instances["labels"][order]]
        for entry in here:
            assert coco_mask.decode(entry["segmentation"]).shape == (64, 64)
        painted = np.asarray(Image.open(out / Path(image["file_name"]).name).convert("RGB"), int)
        assert np.abs(painted - np.asarray(Image.open(image["file_name"]), int)).max() > 50


def test_a_broken_image_is_named_and_a_high_score_shows_nothing(coco: Path, checkpoint: Path, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    shutil.copy(coco / "val2017/0.jpg", photos / "deep/upright.jpg")
    Image.new("L", (40, 30), 90).save(photos / "grey.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    assert run(MASK_RCNN, checkpoint, photos, "--out", tmp_path / "out", "--score", 1, *OPTIONS) == 0
    said = capsys.readouterr().out
    assert_names(said, f"{photos}/broken.jpg")
    assert "2 pictures" in said and "; 1 did not decode and were passed over" in said
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert found["annotations"] == [] and [image["width"] for image in found["images"]] == [64, 40]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*g")) == ["grey.png", "upright.jpg"]
    assert run(MASK_RCNN, checkpoint, photos / "broken.jpg", "--out", tmp_path / "none", *OPTIONS) == 2
    assert "none of the 1 images decodes" in capsys.readouterr().err


def test_names_of_pictures(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/b/1.jpg", "c/1.jpg", "c/x.tif", "c/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    out = tmp_path / "out"
    assert pictures_of([str(tmp_path / "a"), str(tmp_path / "c"), str(tmp_path / "c/1.jpg")], out) == [
        (tmp_path / "a/1.jpg", "1.jpg"), (tmp_path / "a/b/1.jpg", "b/1.jpg"), (tmp_path / "c/1.jpg", "1-2.jpg"),
        (tmp_path / "c/x.tif", "x.tif.jpg")]
    assert pictures_of([str(tmp_path / "*/1.jpg")], out) == [
        (tmp_path / "a/1.jpg", "1.jpg"), (tmp_path / "c/1.jpg", "1-2.jpg")]
    with pytest.raises(UserError, match="would write over the image"):
        pictures_of([str(tmp_path / "a")], tmp_path / "a")
    with pytest.raises(UserError, match="nowhere is no image, no folder"):
        pictures_of([str(tmp_path / "nowhere")], out)


def test_data_sets_side_by_side_in_the_config_are_no_obstacle(checkpoint: Path, coco: Path, tmp_path: Path) -> None:
    config = tmp_path / "mask_rcnn.py"
    config.write_text(f"""_base_ = {MASK_RCNN!r}
one = dict(_base_.val_dataloader.dataset)
val_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=[one, one]))
test_dataloader = val_dataloader
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
""")
    assert run(config, checkpoint, coco / "val2017/0.jpg", "--out", tmp_path / "out", "--score", 0) == 0
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]) == 5


def test_no_picture_is_written_over_another_image(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    first, second = tmp_path / "a/1.jpg", tmp_path / "b/1.jpg"
    for texts in ([first, second], [tmp_path / "a", second]):
        with refused("--out", tmp_path / "b", second):
            pictures_of(list(map(str, texts)), tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    with refused("--out", tmp_path / "link", second):
        pictures_of([str(first), str(second)], tmp_path / "link")


def test_pictures_of_an_earlier_run_are_no_images(tmp_path: Path) -> None:
    for name in ("1.jpg", "deep/2.jpg", "found/1.jpg", "found/deep/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert pictures_of([str(tmp_path)], tmp_path / "found") == [
        (tmp_path / "1.jpg", "1.jpg"), (tmp_path / "deep/2.jpg", "deep/2.jpg")]
    assert pictures_of([str(tmp_path / "deep")], tmp_path) == [(tmp_path / "deep/2.jpg", "2.jpg")]  # its parent is not
    (tmp_path / "only/found").mkdir(parents=True)
    (tmp_path / "only/found/1.jpg").write_bytes(b"")
    with refused(tmp_path / "only", "no folder that holds one"):
        pictures_of([str(tmp_path / "only")], tmp_path / "only/found")


def test_mistakes_get_one_sentence(coco: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": {}}, tmp_path / "nameless.pth")
    torch.save({"state_dict": {}, "meta": {"dataset_meta": None}}, tmp_path / "none.pth")
    panoptic = [f"mmdet::{name}.py" for name in ("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic",
                                                 "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco")]
    cases = [*(((name, checkpoint, coco), "(num_stuff_classes), and") for name in panoptic),
             ((MASK_RCNN, tmp_path / "none.pth", coco), "does not name its categories"),
             ((MASK_RCNN, "no.pth", coco), "the checkpoint no.pth does not exist"),
             ((MASK_RCNN, tmp_path / "nameless.pth", coco), "does not name its categories"),
             ((MASK_RCNN.replace("mask_rcnn", "retinanet"), checkpoint, coco), "does not fit the detector"),
             (("configs/search_imagenet.py", checkpoint, coco), "is no detector's config")]
    for argv, sentence in cases:
        assert run(*argv, "--out", tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err


def test_cocos_own_categories_keep_their_ids() -> None:
    from dada_det.engine.detect.predict import category_ids

    known = coco_categories()
    assert category_ids([category["name"] for category in known])[-1] == 90
    assert category_ids(["person"]) == [1]
