"""The load guard: training starts only from a whole file whose preprocessing is the detector's."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torchvision.models import resnet50

from dada_det.engine.detect import guard as detection
from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET, export_backbone
from tests.messages import refused

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
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
    with refused(tmp_path / "part.pth", "1 of a ResNet-50's 265"):
        detection.DADAResNet(50, init_cfg={"type": "Pretrained", "checkpoint": tmp_path / "part.pth"}).init_weights()


def test_no_file_at_all_is_refused():
    with pytest.raises(UserError, match="DADAResNet needs init_cfg"):
        detection.DADAResNet(depth=50).init_weights()


def test_another_stride_or_depth_is_refused(backbone_file):
    init = {"type": "Pretrained", "checkpoint": str(backbone_file)}
    with refused("style='caffe'", "model.backbone.style"):
        detection.DADAResNet(depth=50, style="caffe", init_cfg=init).init_weights()
    with refused("ResNet-50"):
        detection.DADAResNet(depth=34, init_cfg=init).init_weights()


@pytest.mark.parametrize(("change", "names"), [
    ({"mean": [0.0, 0.0, 0.0]}, ("mean [0.0, 0.0, 0.0]", re.compile(r"trained with \[123\.675"))),
    ({"std": [1.0, 1.0, 1.0]}, ("std [1.0, 1.0, 1.0]",)),
    ({"bgr_to_rgb": False}, ("channel_order BGR", "RGB")),
    ({"mean": None, "std": None}, ("mean None",)),
])
def test_other_preprocessing_is_refused(change, names, loaded, monkeypatch):
    from mmdet.models import DetDataPreprocessor

    options = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "bgr_to_rgb": True}
    monkeypatch.setitem(loaded._modules, "data_preprocessor", DetDataPreprocessor(**{**options, **change}))
    with refused(*names):
        detection.check_preprocessing(loaded)


def test_training_starts_only_after_the_hook_has_compared(loaded):
    from mmengine.registry import HOOKS

    loaded.backbone.preprocessing_checked = False
    loaded.train()
    with refused("mean, std and channel order", "BackboneGuardHook"):
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
