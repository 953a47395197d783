"""The load guard: training starts only from a whole file whose preprocessing is the detector's."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torchvision.models import resnet50

from dada_det.data.checks import CocoLayout
from dada_det.engine import detection, detector_config
from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET, export_backbone

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
META = {**IMAGENET, "classes": [], "policy_sha256": None}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(5)
    model = resnet50(weights=None)
    model.train()(torch.randn(2, 3, 64, 64))  # BatchNorm statistics that no fresh network has
    return model.state_dict()


@pytest.fixture(scope="module")
def backbone_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "r50.pth"
    export_backbone(weights, path, META)
    return path


def detector(path, name="retinanet", **changes):
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    config = Config.fromfile(CONFIGS / "debug" / f"{name}.py")
    config.merge_from_dict({"model.backbone.init_cfg.checkpoint": str(path), **changes})
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(config.model)


@pytest.fixture(scope="module")
def loaded(backbone_file):
    model = detector(backbone_file)
    model.init_weights()
    return model


@pytest.mark.parametrize("name", DETECTORS)
def test_every_backbone_tensor_is_the_file_s(name, backbone_file, weights):
    model = detector(backbone_file, name)
    model.init_weights()
    loaded = model.backbone.state_dict()
    assert len(loaded) == 318
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)
    detection.check_preprocessing(model)


def test_a_part_of_a_backbone_is_refused(weights, tmp_path):
    torch.save({"conv1.weight": weights["conv1.weight"]}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="holds only 1 of a ResNet-50's 265 tensors"):
        detection.DADAResNet(50, init_cfg={"type": "Pretrained", "checkpoint": tmp_path / "part.pth"}).init_weights()


def test_no_file_at_all_is_refused():
    with pytest.raises(UserError, match="DADAResNet needs init_cfg"):
        detection.DADAResNet(depth=50).init_weights()


def test_another_stride_or_depth_is_refused(backbone_file):
    init = {"type": "Pretrained", "checkpoint": str(backbone_file)}
    with pytest.raises(UserError, match=r"style='caffe'.* set model.backbone.style"):
        detection.DADAResNet(depth=50, style="caffe", init_cfg=init).init_weights()
    with pytest.raises(UserError, match="the detector's backbone is no plain ResNet-50"):
        detection.DADAResNet(depth=34, init_cfg=init).init_weights()


@pytest.mark.parametrize(("change", "message"), [
    ({"mean": [0.0, 0.0, 0.0]}, r"has mean \[0.0, 0.0, 0.0\], but the backbone .* was trained with \[123.675"),
    ({"std": [1.0, 1.0, 1.0]}, r"has std \[1.0, 1.0, 1.0\]"),
    ({"bgr_to_rgb": False}, "has channel_order BGR, but the backbone .* was trained with RGB"),
    ({"mean": None, "std": None}, "has mean None, but the backbone"),
])
def test_other_preprocessing_is_refused(change, message, loaded, monkeypatch):
    from mmdet.models import DetDataPreprocessor

    options = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "bgr_to_rgb": True}
    monkeypatch.setitem(loaded._modules, "data_preprocessor", DetDataPreprocessor(**{**options, **change}))
    with pytest.raises(UserError, match=message):
        detection.check_preprocessing(loaded)


def test_training_starts_only_after_the_hook_has_compared(loaded):
    from mmengine.registry import HOOKS

    loaded.backbone.preprocessing_checked = False
    loaded.train()
    with pytest.raises(UserError, match="nobody compared the backbone file's mean, std and channel order"):
        loaded.backbone(torch.zeros(2, 3, 64, 64))
    loaded.eval()
    assert len(loaded.backbone(torch.zeros(1, 3, 64, 64))) == 4  # testing needs no comparison
    runner = object.__new__(Runner)
    runner.model = loaded
    HOOKS.build({"type": "BackboneGuardHook"}).before_train(runner)
    loaded.train()
    assert len(loaded.backbone(torch.zeros(2, 3, 64, 64))) == 4


def test_plain_resnet_is_refused_by_the_guard(backbone_file):
    model = detector(backbone_file, **{"model.backbone.type": "ResNet"})
    with pytest.raises(UserError, match="was not loaded through DADAResNet"):
        detection.check_preprocessing(model)


@pytest.mark.parametrize("name", DETECTORS)
def test_twins_differ_in_the_weights_only(name):
    twins = []
    for twin in ("dada", "baseline"):
        config = Config.fromfile(CONFIGS / f"{name}_r50_{twin}.py", import_custom_modules=False).to_dict()
        assert config["train_cfg"]["max_epochs"] == 12
        assert config["auto_scale_lr"]["base_batch_size"] == 16
        assert config["train_dataloader"]["batch_size"] == 2
        path = config["model"]["backbone"]["init_cfg"].pop("checkpoint")
        assert path == config.pop("backbone")
        assert str(Path(path).parent) in config.pop("backbone_command")
        twins.append((path, config))
    assert [path for path, _ in twins] == ["work_dirs/pretrain_r50/r50.pth", "work_dirs/pretrain_r50_none/r50.pth"]
    assert twins[0][1] == twins[1][1]


@pytest.mark.parametrize(("name", "folder"), [(name, name.replace("_rcnn", "-rcnn")) for name in DETECTORS])
def test_one_x_configs_are_mmdetection_s_but_for_the_backbone(name, folder, tmp_path):
    (tmp_path / "theirs.py").write_text(f"_base_ = 'mmdet::{name}/{folder}_r50_fpn_1x_coco.py'")
    ours, theirs = (Config.fromfile(path, import_custom_modules=False).to_dict()
                    for path in (CONFIGS / f"{name}_r50_dada.py", tmp_path / "theirs.py"))
    assert ours["model"]["backbone"].pop("type") == "DADAResNet"
    for config in (ours, theirs):
        assert config["model"]["backbone"].pop("init_cfg")["type"] == "Pretrained"
    assert theirs["model"]["backbone"].pop("type") == "ResNet"
    assert {key: ours[key] for key in theirs} == theirs


def test_data_decides_every_head_s_classes():
    config = Config.fromfile(CONFIGS / "mask_rcnn_r50_dada.py", import_custom_modules=False)
    layout = CocoLayout(*(Path(part) for part in ("t.json", "t", "v.json", "v")), None, None)
    detector_config.use_data(config, layout, ("cell", "nucleus"))
    assert config.model.roi_head.bbox_head.num_classes == config.model.roi_head.mask_head.num_classes == 2
    train, test = config.train_dataloader.dataset, config.test_dataloader.dataset
    assert (train.ann_file, train.data_prefix, train.data_root) == ("t.json", {"img": "t"}, "")
    assert (test.ann_file, test.data_prefix) == ("v.json", {"img": "v"})
    assert train.metainfo.classes == ("cell", "nucleus")
    assert len(set(train.metainfo.palette)) == 2
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == "v.json"


def test_a_part_that_is_not_there_leaves_its_dataloader_alone():
    config = Config.fromfile(CONFIGS / "retinanet_r50_dada.py", import_custom_modules=False)
    before = config.train_dataloader.dataset.ann_file
    detector_config.use_data(config, CocoLayout(None, None, Path("v.json"), Path("v"), None, None), ("cell",))
    assert config.train_dataloader.dataset.ann_file == before
    assert config.test_dataloader.dataset.ann_file == config.test_evaluator.ann_file == "v.json"
