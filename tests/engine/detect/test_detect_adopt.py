"""MMDetection's own configs and anybody's: the backbone goes behind the guard, and nothing else changes."""

import copy
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from dada_det.commands import predict, test_det, train_det
from dada_det.commands.common import load_config
from dada_det.commands.train_det import detector_config
from dada_det.engine.detect.adopt import adopt, facts_beside, facts_of_checkpoint, neck_channels
from dada_det.engine.detect.config import follow_preprocessing, use_backbone
from dada_det.models.backbone import IMAGENET, export_backbone
from dada_det.models.classifiers import build_classifier
from tests.engine.detect.test_detect_detection_commands import write_coco
from tests.messages import assert_names, refused

ATSS = "mmdet::atss/atss_r50_fpn_1x_coco.py"
RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
# The ResNet-50 here was trained on images that were prepared otherwise than ImageNet's.
PREPARED = {"mean": [127.0] * 3, "std": [128.0] * 3, "channel_order": "RGB"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of a ResNet-50 and of timm's resnet18, as pretraining exports them."""
    folder, written = tmp_path_factory.mktemp("backbones"), {}
    for name in ("resnet50", "resnet18"):
        written[name] = str(folder / f"{name}.pth")
        export_backbone(build_classifier(name, 0, 224).state_dict(), written[name],
                        {**(PREPARED if name == "resnet50" else IMAGENET), "classes": [], "policy_sha256": None}, name)
    return written


def differing(before: object, after: object, place: str = "") -> set[str]:
    """The places at which two configs differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return set().union(*(differing(before.get(key), after.get(key), f"{place}.{key}".lstrip("."))
                             for key in {*before, *after}))
    return set() if before == after else {place}


@pytest.mark.parametrize("config", [
    ATSS, "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py"])
def test_a_resnet_is_put_behind_the_guard_and_nothing_else_changes(config: str, files: dict[str, str]) -> None:
    before, after = load_config(config), load_config(config)
    adopt(after, files["resnet50"], config)
    init = {place for place in differing(before.to_dict(), after.to_dict()) if place.startswith("model.backbone.init_cfg")}
    assert differing(before.to_dict(), after.to_dict()) - init == {"model.backbone.type", "custom_imports", "custom_hooks",
                                                                    "adopted"}
    assert after.model.backbone.type == "DADAResNet" and after.model.backbone.init_cfg.checkpoint == files["resnet50"]
    assert {"type": "BackboneGuardHook"} in after.custom_hooks
    assert "dada_det.engine.detection" in after.custom_imports["imports"]
    assert_names(after.adopted, "ResNet", "DADAResNet")


def test_timms_networks_take_the_place_of_a_resnet_and_of_others(files: dict[str, str]) -> None:
    dino = load_config("mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py")
    adopt(dino, files["resnet18"], "dino")
    use_backbone(dino)
    assert tuple(dino.model.backbone.strides) == (8, 16, 32) and dino.model.neck.in_channels == [128, 256, 512]
    rtmdet = load_config(RTMDET)
    adopt(rtmdet, files["resnet18"], "rtmdet")
    use_backbone(rtmdet)
    assert rtmdet.model.backbone.type == "DADATimm" and rtmdet.model.neck.in_channels == [128, 256, 512]
    assert_names(rtmdet.adopted, "CSPNeXt", "resnet18")


@pytest.mark.parametrize(("path", "channels", "strides"), [
    ("mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py", [64, 128, 256, 512], (4, 8, 16, 32)),
    ("mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py", 512, (32,))])
def test_a_neck_of_several_parts_or_of_one_map_takes_timms_networks(path: str, channels: object, strides: tuple[int, ...],
                                                                    files: dict[str, str]) -> None:
    config = load_config(path)
    behind = copy.deepcopy(config.model.neck[1:]) if isinstance(config.model.neck, list) else []
    adopt(config, files["resnet18"], path)
    use_backbone(config)
    first, *rest = config.model.neck if isinstance(config.model.neck, list) else [config.model.neck]
    assert first.in_channels == channels and tuple(config.model.backbone.strides) == strides and rest == behind
    other = load_config(path)
    other.model.backbone = {"type": "CSPNeXt"}
    adopt(other, files["resnet18"], path)
    first = other.model.neck[0] if rest else other.model.neck
    assert first.in_channels == channels and tuple(other.model.backbone.strides) == strides


@pytest.mark.parametrize("neck", [None, [], {"type": "SSDNeck", "in_channels": (512, 1024)},
                                  {"type": "YOLOV3Neck", "in_channels": [1024, 512, 256]}])
def test_a_neck_that_takes_no_list_of_maps_or_another_order_is_refused(neck: object, files: dict[str, str]) -> None:
    config = load_config(RTMDET)
    config.model.neck = neck
    with refused("rtmdet", "CSPNeXt", files["resnet18"], "neck"):
        adopt(config, files["resnet18"], "rtmdet")
    config = load_config("configs/retinanet_r50_dada.py")
    config.model.neck = neck
    config.model.backbone.init_cfg.checkpoint = files["resnet18"]
    with refused("retinanet_r50_dada.py", "another neck", "resnet18"):
        use_backbone(config)


def test_a_network_of_timms_that_narrows_on_the_way_keeps_its_neck() -> None:
    model = {"backbone": {"type": "DADATimm"}, "neck": {"type": "FPN", "in_channels": [24, 112, 96, 320]}}
    assert neck_channels(model) == [24, 112, 96, 320]


def test_mean_and_std_of_the_file_take_imagenets_place_and_no_others(files: dict[str, str], tmp_path: Path) -> None:
    facts = facts_beside(files["resnet50"])
    preprocessor = load_config(ATSS).model.data_preprocessor
    follow_preprocessing(preprocessor, facts)
    assert preprocessor.mean == [127.0] * 3 and preprocessor.std == [128.0] * 3 and preprocessor.bgr_to_rgb is True
    chosen = load_config(ATSS).model.data_preprocessor
    chosen.mean = [1.0, 2.0, 3.0]
    follow_preprocessing(chosen, facts)
    assert chosen.mean == [1.0, 2.0, 3.0] and chosen.std == IMAGENET["std"]
    unchanged = load_config(ATSS).model.data_preprocessor
    follow_preprocessing(unchanged, facts_beside(tmp_path / "none.pth"))
    assert unchanged.mean == IMAGENET["mean"]


def test_what_does_not_fit_is_refused_in_one_sentence(files: dict[str, str]) -> None:
    cases = [(RTMDET, files["resnet50"], {}, ("CSPNeXt", files["resnet50"])),
             (RTMDET, None, {}, ("CSPNeXt", "no file")),
             (ATSS, files["resnet50"], {"depth": 101}, ("ResNet-101", "ResNet-50 of style='pytorch'")),
             (ATSS, files["resnet50"], {"style": "caffe"}, ("ResNet-50", "style='caffe'"))]
    for path, file, changes, names in cases:
        config = load_config(path)
        config.model.backbone.update(changes)
        with refused(*names):
            adopt(config, file, path)
    guarded = load_config("configs/retinanet_r50_dada.py")
    before = guarded.to_dict()
    adopt(guarded, files["resnet50"], "guarded")
    assert guarded.to_dict() == before


@pytest.mark.parametrize(("facts", "names"), [
    ("dada", ("epoch_1.pth", "ResNet-50", "timm")),
    ({"architecture": "hf-hub:somebody/something", "library": "timm"}, ("epoch_1.pth", "ResNet-50", "timm")),
    ({"architecture": "resnet50", "mean": [0.0], "std": [1.0] * 3, "channel_order": "RGB"}, ("epoch_1.pth", "mean",
                                                                                             "three numbers")),
    ({"architecture": "resnet50", "mean": [0.0] * 3, "std": [1.0] * 3}, ("epoch_1.pth", "channel order None"))])
def test_what_a_checkpoint_says_of_its_backbone_is_not_believed_unseen(facts: object, names: tuple[str, ...],
                                                                       tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"backbone": facts}}, tmp_path / "epoch_1.pth")
    with refused(*names):
        facts_of_checkpoint(str(tmp_path / "epoch_1.pth"), None)


def test_a_checkpoint_that_says_nothing_of_its_backbone_is_taken(tmp_path: Path, files: dict[str, str]) -> None:
    torch.save({"state_dict": {}, "meta": {}}, tmp_path / "epoch_1.pth")
    assert facts_of_checkpoint(str(tmp_path / "epoch_1.pth"), files["resnet18"]) is None


def test_one_of_mmdetections_configs_trains_and_evaluates_by_its_name(files: dict[str, str], tmp_path: Path,
                                                                      capsys: pytest.CaptureFixture) -> None:
    data = write_coco(tmp_path / "coco", [{"id": 3, "name": "thing"}])
    scales = [f"{part}_dataloader.dataset.pipeline.{step}.scale=(64,64)"
              for part, step in (("train", 2), ("val", 1), ("test", 1))]
    loaders = [f"{part}_dataloader.{entry}" for part in ("train", "val", "test")
               for entry in ("num_workers=0", "persistent_workers=False")]
    options = ["--cfg-options", "train_cfg.max_epochs=1", *scales, *loaders]
    where = ["--data", str(data), "--work-dir", str(tmp_path / "w")]
    assert train_det.main([ATSS, "--backbone", files["resnet50"], *where, *options]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert_names(last, "atss_r50_fpn_1x_coco", tmp_path / "w/epoch_1.pth", "ResNet", "DADAResNet")
    trained = torch.load(tmp_path / "w/epoch_1.pth", weights_only=False)["state_dict"]  # of this test's own making
    file = torch.load(files["resnet50"], weights_only=True)
    assert torch.equal(trained["backbone.conv1.weight"], file["conv1.weight"])  # frozen_stages=1
    # Tests and pictures need no --backbone: the checkpoint tells how its images were prepared.
    checkpoint = str(tmp_path / "w/epoch_1.pth")
    config = detector_config(Namespace(config=ATSS, checkpoint=checkpoint, cfg_options=[], backbone=None, data=None,
                                       work_dir=None))
    use_backbone(config)
    assert (config.model.data_preprocessor.mean, config.model.data_preprocessor.std) == (PREPARED["mean"], PREPARED["std"])
    assert test_det.main([ATSS, checkpoint, *where, *options]) == 0
    assert predict.main([ATSS, checkpoint, str(data / "val2017"), "--out", str(tmp_path / "found"), *options]) == 0
    assert test_det.main([ATSS, checkpoint, "--backbone", files["resnet18"], *where, *options]) == 2
    assert_names(capsys.readouterr().err, "resnet50")
