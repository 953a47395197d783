"""Detectors around timm's networks: the exported weights, every one, and the options that ResNet-50 has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from torch import nn

from dada_det.commands import test_det, train_det
from dada_det.data.synthetic import DemoSize, write_demo
from dada_det.engine.detect import config as detector_config
from dada_det.engine.detect import guard as detection
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET, export_backbone, load_backbone
from tests.messages import assert_names, refused

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2",
        "train_dataloader.dataset.pipeline.2.scale=(64,64)", "val_dataloader.dataset.pipeline.1.scale=(64,64)",
        "test_dataloader.dataset.pipeline.1.scale=(64,64)", "optim_wrapper.optimizer.type=SGD",
        "optim_wrapper.optimizer.lr=0.0"]
NETWORKS = ("resnet18", "mobilenetv3_small_050", "convnext_atto")
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
META = {**IMAGENET, "classes": [], "policy_sha256": None}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports a network of timm's, with BatchNorm statistics that no fresh one has, once."""
    folder = tmp_path_factory.mktemp("backbones")

    def export(name):
        path = folder / f"{name}.pth"
        if not path.exists():
            torch.manual_seed(5)
            size = {"img_size": 64} if "vit" in name or "swin" in name else {}
            network = timm.create_model(name, num_classes=3, **size)
            network.train()(torch.randn(2, 3, 64, 64))
            export_backbone(network.state_dict(), path, META, name)
        return path
    return export


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder, size=DemoSize(classes=1, train_per_class=1, val_per_class=1, det_train=4, det_val=2, det_test=1))
    return folder / "coco"


def says(capsys, main, argv, *names):
    assert main([str(part) for part in argv]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1, error
    assert_names(error[0], *names)


def config_of(path, name="debug/retinanet", **changes):
    config = Config.fromfile(ROOT / f"configs/{name}.py", import_custom_modules=False, format_python_code=False)
    config.merge_from_dict({"model.backbone.init_cfg.checkpoint": str(path), **changes})
    return config


def built(path, **changes):
    """The backbone of RetinaNet around the file's network, in training."""
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    config = config_of(path, "retinanet_r50_dada", **changes)
    detector_config.use_backbone(config)
    with DefaultScope.overwrite_default_scope("mmdet"):
        backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    backbone.preprocessing_checked = True
    return backbone.train()


@pytest.mark.parametrize(("network", "detector"), [
    pytest.param(network, detector, marks=[] if number == place else pytest.mark.slow)  # one of each in the quick tests
    for number, network in enumerate(NETWORKS) for place, detector in enumerate(DETECTORS)])
def test_a_step_of_each_detector_from_the_exported_weights(network, detector, export, scenes, tmp_path, capsys):
    """At a learning rate of zero the checkpoint holds the file's own weights."""
    path, config = export(network), str(ROOT / f"configs/debug/{detector}.py")
    flags = ["--backbone", str(path), "--data", str(scenes), "--work-dir", str(tmp_path), *TINY]
    assert train_det.main([config, *flags]) == 0
    checkpoint = (tmp_path / "last_checkpoint").read_text()
    found, exported = check_checkpoint(checkpoint)["state_dict"], load_backbone(path)[0]
    backbone = {name.removeprefix("backbone.maps.model."): value for name, value in found.items()
                if name.startswith("backbone.")}
    moved = {name for name, value in backbone.items() if not torch.equal(value, exported[name])}
    assert all("running_" in name or "num_batches" in name for name in moved)
    # What is not there lies behind the last map.
    assert all(name.startswith(("head.", "conv_head.")) for name in set(exported) - set(backbone))
    channels = json.loads(path.with_suffix(".json").read_text())["features"]["channels"][-4:]
    assert found["neck.lateral_convs.0.conv.weight"].shape[1] == channels[detector == "retinanet"]
    if detector == "mask_rcnn":
        assert test_det.main([config, checkpoint, *flags]) == 0
        assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["bbox", "segm"]
        metrics = (tmp_path / "metrics.json").read_text()
        (tmp_path / "metrics.json").unlink()
        assert test_det.main([config, checkpoint, "--data", str(scenes), "--work-dir", str(tmp_path), *TINY]) == 0
        assert (tmp_path / "metrics.json").read_text() == metrics  # the checkpoint tells which network it holds
        other = export("resnet18" if network != "resnet18" else "convnext_atto")
        says(capsys, test_det.main, [config, checkpoint, "--backbone", other, "--data", scenes, "--work-dir", tmp_path],
             f"began with a backbone whose architecture is {network}")


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_are_those_of_timms_own_network(network, export):
    backbone = built(export(network)).eval()
    theirs = timm.create_model(network, num_classes=0).eval()
    theirs.load_state_dict(load_backbone(export(network))[0])
    images = torch.randn(2, 3, 96, 160)
    maps = backbone(images)
    assert [tuple(found.shape[2:]) for found in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    expected = theirs.forward_intermediates(images, indices=4, intermediates_only=True)
    for found, wanted in zip(maps, expected, strict=True):
        assert torch.equal(found, wanted)


def learning(backbone):
    return {name.removeprefix("maps.model.") for name, value in backbone.named_parameters() if value.requires_grad}


def test_frozen_stages_keep_their_weights_and_statistics(export):
    """MMDetection's default, frozen_stages=1 and norm_eval=True, freezes what it freezes in its own ResNet."""
    backbone = built(export("resnet18"))
    assert backbone.frozen_stages == 1
    names = set(timm.create_model("resnet18", num_classes=0).state_dict())
    assert {name for name in names if name.startswith(("layer2", "layer3", "layer4")) and "running" not in name
            and "num_batches" not in name} == learning(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())  # norm_eval=True
    backbone = built(export("resnet18"), **{"model.backbone.norm_eval": False})
    backbone(torch.randn(2, 3, 64, 64))
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(("maps.model.layer2", "maps.model.layer3", "maps.model.layer4")) for name in moved)
    convnext = learning(built(export("convnext_atto"), **{"model.backbone.frozen_stages": 2}))
    assert convnext and all(name.startswith(("stages.2", "stages.3")) for name in convnext)
    everything = built(export("convnext_atto"), **{"model.backbone.frozen_stages": -1})
    assert len(learning(everything)) == len(list(everything.parameters()))


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32), (32,)])
def test_the_frozen_stages_are_the_same_whichever_maps_the_neck_takes(strides):
    """DINO's takes three and YOLOF's the last, and both configs have frozen_stages=1."""
    names = learning(detection.DADATimm("resnet18", frozen_stages=1, strides=strides))
    assert {name.partition(".")[0] for name in names} == {"layer2", "layer3", "layer4"}


def test_batch_norm_variants(export):
    sync = built(export("resnet18"), **{"model.backbone.norm_cfg.type": "SyncBN", "model.backbone.norm_eval": False})
    norms = [module for module in sync.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20 and all(isinstance(module, nn.SyncBatchNorm) for module in norms)
    exported = load_backbone(export("resnet18"))[0]
    assert all(torch.equal(value, exported[name.removeprefix("maps.model.")]) for name, value in sync.state_dict().items())
    frozen = built(export("resnet18"), **{"model.backbone.norm_cfg.requires_grad": False})
    assert not any("bn" in name or "downsample.1" in name for name in learning(frozen))
    assert "layer4.1.conv2.weight" in learning(frozen)


@pytest.mark.slow
def test_sync_bn_in_processes_without_a_gpu_is_refused_once(export, scenes, tmp_path):
    command = [sys.executable, ROOT / "tools/train_det.py", ROOT / "configs/debug/retinanet.py", "--backbone",
               export("resnet18"), "--data", scenes, "--work-dir", tmp_path, "--gpus", "2", *TINY,
               "model.backbone.norm_cfg.type=SyncBN"]
    done = subprocess.run(list(map(str, command)), env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    (error,) = errors
    assert_names(error, "SyncBN", "GPUs")


@pytest.mark.parametrize("change", ["model.backbone.norm_cfg.type=SyncBN", "model.backbone.norm_cfg.requires_grad=False"])
def test_a_detector_trains_with_each_variant_in_one_process(change, export, scenes, tmp_path):
    """SyncBN is plain BatchNorm there; a frozen one keeps its scales at any learning rate."""
    path = export("resnet18")
    flags = ["--backbone", str(path), "--data", str(scenes), "--work-dir", str(tmp_path), *TINY, change,
             "optim_wrapper.optimizer.lr=0.01"]
    assert train_det.main([str(ROOT / "configs/debug/retinanet.py"), *flags]) == 0
    found = check_checkpoint((tmp_path / "last_checkpoint").read_text())["state_dict"]
    exported = load_backbone(path)[0]
    assert not torch.equal(found["backbone.maps.model.layer4.0.conv1.weight"], exported["layer4.0.conv1.weight"])
    kept = torch.equal(found["backbone.maps.model.layer4.0.bn1.weight"], exported["layer4.0.bn1.weight"])
    assert kept == ("requires_grad" in change)


@pytest.mark.parametrize(("network", "names"), [
    ("test_vit", ("detector", "strides 16, 16, 16", "pretrain another")),
    ("hrnet_w18_small", ("stages", "--cfg-options model.backbone.frozen_stages=-1")),
])
def test_a_network_that_does_not_fit_is_refused_in_one_sentence(network, names, export):
    with refused(f"timm's {network}", *names):
        built(export(network))
    if network == "hrnet_w18_small":
        assert len(built(export(network), **{"model.backbone.frozen_stages": -1})(torch.randn(1, 3, 64, 64))) == 4


def test_a_resnet_of_its_own_kind_is_not_replaced(export):
    config = config_of(export("resnet18"), "debug/retinanet", **{"model.backbone.dcn": {"type": "DCN"}})
    with refused("retinanet.py", "ResNet", "dcn", "resnet18"):
        detector_config.use_backbone(config)


def test_the_guard_names_another_network(export):
    init = {"type": "Pretrained", "checkpoint": str(export("resnet18"))}
    with refused("resnet18", "DADAResNet", "tools/train_det.py --backbone"):
        detection.DADAResNet(50, init_cfg=init).init_weights()
    with refused("resnet18", "convnext_atto"):
        detection.DADATimm("convnext_atto", init_cfg=init).init_weights()
    with pytest.raises(UserError, match="DADATimm needs init_cfg"):
        detection.DADATimm("resnet18").init_weights()
    backbone = detection.DADATimm("resnet18", init_cfg=init)
    backbone.init_weights()
    with refused("mean, std and channel order", "BackboneGuardHook"):
        backbone(torch.zeros(2, 3, 64, 64))


def test_preprocessing_of_another_network_is_compared_too(export, scenes, tmp_path, capsys):
    path = Path(export("resnet18"))
    argv = [ROOT / "configs/debug/retinanet.py", "--backbone", path, "--data", scenes, "--work-dir", tmp_path,
            "--cfg-options", "model.data_preprocessor.bgr_to_rgb=False"]
    says(capsys, train_det.main, argv, "has channel_order BGR, but the backbone")
