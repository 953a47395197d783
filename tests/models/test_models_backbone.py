"""The backbone file: what is written is what was trained, and every file that is not whole is refused by name."""

import copy
import json
import os
import re

import pytest
import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import resnet18, resnet50

from dada_det.devices import float32_arithmetic
from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET, export_backbone, load_backbone, verify_export
from tests.messages import assert_names, refused

META = {**IMAGENET, "classes": ["n01440764", "n02102040"], "policy_sha256": None}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """timm's resnet50 with weights and BatchNorm statistics that differ from every fresh one."""
    torch.manual_seed(3)
    model = timm.create_model("resnet50", pretrained=False, num_classes=2)
    model.train()(torch.randn(4, 3, 64, 64))
    return model


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "r50.pth"
    export_backbone(trained.state_dict(), path, META)
    return path


def test_exported_file_is_flat_float32_without_classifier(trained, exported):
    tensors = torch.load(exported, weights_only=True)
    assert set(tensors) == {name for name in resnet50().state_dict() if not name.startswith("fc.")}
    assert len(tensors) == 318
    assert all(torch.equal(tensors[name], trained.state_dict()[name]) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}


def test_a_safetensors_file_is_read(exported, tmp_path):
    from safetensors.torch import save_file

    expected, _ = load_backbone(exported)
    save_file(expected, tmp_path / "r50.safetensors")
    tensors, meta = load_backbone(tmp_path / "r50.safetensors")
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert meta["mean"] == IMAGENET["mean"]  # no JSON beside it: torchvision's own
    (tmp_path / "r50.safetensors").write_bytes(b"\x08\x00\x00")
    with refused(tmp_path / "r50.safetensors", "damaged", "r50.pth"):
        load_backbone(tmp_path / "r50.safetensors")


def test_json_beside_it_says_what_belongs_to_the_weights(exported):
    weights, meta = load_backbone(exported)
    assert meta == json.loads(exported.with_suffix(".json").read_text())
    assert {**META, "architecture": "resnet50"}.items() <= meta.items()
    assert re.fullmatch("[0-9a-f]{64}", meta["sha256"])
    assert torch.equal(weights["bn1.running_mean"], torch.load(exported, weights_only=True)["bn1.running_mean"])


def test_exported_features_are_those_of_the_trained_model(trained, exported):
    images = torch.randn(2, 3, 64, 64)
    verify_export(trained, exported, images)
    assert trained.training
    other = timm.create_model("resnet50", pretrained=False, num_classes=2)
    with pytest.raises(RuntimeError, match=r"differs from the trained model by up to \d.* in its features, which reach"):
        verify_export(other, exported, images)


class TF32(TorchFunctionMode):
    """Convolutions as a GPU computes them while cuDNN may use TF32: their operands rounded to eleven bits."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and torch.backends.cudnn.allow_tf32:
            args = (*(rounded(operand) for operand in args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


def rounded(tensor):
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_an_export_is_verified_in_float32_on_a_gpu_that_trains_in_tf32(trained, exported):
    """In TF32 two memory formats of the same weights differ by more than the tolerance, which ended trainings."""
    model, images = copy.deepcopy(trained).to(memory_format=torch.channels_last), torch.randn(2, 3, 64, 64)
    with TF32(), torch.no_grad():
        verify_export(model, exported, images)
        assert torch.backends.cudnn.allow_tf32
        for features in (model.eval().forward_features(images), trained.eval().forward_features(images)):
            assert not torch.allclose(features, in_float32(trained, images), rtol=1e-3,
                                      atol=1e-4 * float(features.abs().max()))
    trained.train()


def in_float32(model, images):
    with float32_arithmetic():
        return model.forward_features(images)


def test_half_precision_and_channels_last_models_are_exported_as_plain_float32(trained, tmp_path):
    state = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor
             for name, tensor in trained.state_dict().items()}
    state["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    export_backbone(state, tmp_path / "r50.pth", META)
    weights = load_backbone(tmp_path / "r50.pth")[0]
    assert weights["conv1.weight"].dtype == torch.float32
    assert weights["conv1.weight"].is_contiguous()


def test_what_is_no_resnet50_is_not_exported(trained, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported: it is no ResNet-50"):
        export_backbone(resnet18().state_dict(), tmp_path / "r50.pth", META)
    with refused("channel_order, classes, policy_sha256", error=ValueError):
        export_backbone(trained.state_dict(), tmp_path / "r50.pth", {name: META[name] for name in ("mean", "std")})
    assert not list(tmp_path.iterdir())


def test_torchvision_file_without_json_is_taken_as_imagenet_with_one_warning_line(tmp_path, capsys):
    path = tmp_path / "resnet50-0676ba61.pth"
    state = resnet50().state_dict()  # as old torchvision files are: with fc, without batch counts
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    weights, meta = load_backbone(path)
    load_backbone(path)
    assert meta == IMAGENET
    assert len(weights) == 318
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert_names(warning, path, "RGB", "ImageNet's mean and std")


class Payload:
    def __reduce__(self):
        return os.system, ("echo executed",)


DAMAGED = {
    "is no ResNet-50: it has none of its tensors": lambda state: {"weight": torch.zeros(1)},
    "is no ResNet-50: it has the tensor layer3.6.conv1.weight":
        lambda state: {**state, "layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)},
    "is no ResNet-50: it has conv1.weight of another shape":
        lambda state: {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
    "holds only 1 of a ResNet-50's 265 tensors: bn1.weight is missing":
        lambda state: {"conv1.weight": state["conv1.weight"]},
    "has the prefix 'backbone.' before its keys":
        lambda state: {f"backbone.{name}": value for name, value in state.items()},
    "has the prefix 'module.backbone.' before its keys":
        lambda state: {f"module.backbone.{name}": value for name, value in state.items()},
    "has the prefix 'layers.' before its keys":
        lambda state: {f"layers.{name}": value for name, value in reversed(state.items())},
    "holds a sparse tensor and not a dense one (conv1.weight)":
        lambda state: {**state, "conv1.weight": state["conv1.weight"].to_sparse()},
    "holds a meta tensor and not a dense one (bn1.num_batches_tracked)":
        lambda state: {**state, "bn1.num_batches_tracked": torch.tensor(0, device="meta")},
    "is float16 and not float32":
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    "holds NaN or infinite numbers (bn1.bias)": lambda state: {**state, "bn1.bias": torch.full((64,), float("nan"))},
    "is a whole checkpoint (it holds 'state_dict')": lambda state: {"state_dict": state, "meta": {}},
    "holds a list and no state dict": lambda state: list(state.values())[:1],
    "carries code in its pickle and is not opened": lambda state: {**state, "conv1.weight": Payload()},
}


@pytest.mark.parametrize("message", DAMAGED)
def test_each_bad_file_gets_its_sentence(message, exported, tmp_path, capfd):
    path = tmp_path / "bad.pth"
    torch.save(DAMAGED[message](torch.load(exported, weights_only=True)), path)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_backbone(path)
    assert str(path) in str(error.value)
    assert "executed" not in capfd.readouterr().out


def test_missing_truncated_and_foreign_files(exported, tmp_path):
    with pytest.raises(UserError, match=r"cannot read the backbone .*No such file"):
        load_backbone(tmp_path / "none.pth")
    for name, content in {"short.pth": exported.read_bytes()[:100_000], "text.pth": b"hello", "empty.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is damaged or no PyTorch file"):
            load_backbone(tmp_path / name)


@pytest.mark.parametrize(("change", "message"), [
    ({"sha256": "0" * 64}, "do not belong together"),
    ({"mean": [1, 2]}, "has no mean of three numbers"),
    ({"std": None}, "has no std of three numbers"),
    ({"channel_order": "GBR"}, "has the channel order 'GBR'"),
    ({"architecture": "resnet101"}, "architecture: 'resnet50'"),
    ({"architecture": None}, "describes neither a ResNet-50"),
    ({"architecture": "hf-hub:someone/network", "library": "timm"}, "describes neither a ResNet-50"),
    ({"architecture": "local-dir:somewhere", "library": "timm"}, "describes neither a ResNet-50"),
])
def test_json_that_does_not_fit_is_refused(change, message, exported, tmp_path):
    path = tmp_path / "r50.pth"
    os.link(exported, path)
    meta = json.loads(exported.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(UserError, match=message):
        load_backbone(path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        load_backbone(path)


@pytest.fixture
def convnext(tmp_path):
    """timm's smallest ConvNeXt and the file that it was exported to."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=5)
    export_backbone(model.state_dict(), tmp_path / "test_convnext.pth", META, "test_convnext")
    return model, tmp_path / "test_convnext.pth"


def test_another_network_is_exported_whole_without_its_classifier(convnext):
    model, path = convnext
    tensors, meta = load_backbone(path)
    assert set(model.state_dict()) - set(tensors) == {"head.fc.weight", "head.fc.bias"}
    timm.create_model("test_convnext", num_classes=0).load_state_dict(tensors)
    assert meta["features"] == {"channels": [24, 32, 48, 64], "strides": [4, 8, 16, 32]}
    verify_export(model, path, torch.randn(2, 3, 32, 32), "test_convnext")
    with pytest.raises(RuntimeError, match="differs from the trained model"):
        verify_export(timm.create_model("test_convnext", num_classes=5), path, torch.randn(2, 3, 32, 32), "test_convnext")


def test_a_network_built_for_one_size_is_verified_at_that_size(tmp_path):
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    export_backbone(model.state_dict(), tmp_path / "vit.pth", META, "test_vit")
    verify_export(model, tmp_path / "vit.pth", torch.randn(2, 3, 32, 32), "test_vit")
    assert load_backbone(tmp_path / "vit.pth")[1]["features"]["strides"] == [16, 16, 16]  # no pyramid


OTHER = {
    "is no test_convnext: it has none of its tensors": lambda state: {"weight": torch.zeros(1)},
    "is no test_convnext: it has the tensor head.fc.bias": lambda state: {**state, "head.fc.bias": torch.zeros(5)},
    "is no test_convnext: it has stem.0.weight of another shape":
        lambda state: {**state, "stem.0.weight": torch.zeros(24, 3, 3, 3)},
    "holds only 1 of a test_convnext's": lambda state: {"stem.0.weight": state["stem.0.weight"]},
    "is float16 and not float32": lambda state: {name: value.half() for name, value in state.items()},
    "holds NaN or infinite numbers (stem.0.bias)": lambda state: {**state, "stem.0.bias": torch.full((24,), torch.nan)},
    "is a whole checkpoint (it holds 'state_dict')": lambda state: {"state_dict": state},
    "carries code in its pickle and is not opened": lambda state: {**state, "stem.0.weight": Payload()},
}


@pytest.mark.parametrize("message", OTHER)
def test_each_bad_file_of_another_network_gets_its_sentence(message, convnext, capfd):
    path = convnext[1]
    torch.save(OTHER[message](torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError, match=re.escape(message)):
        load_backbone(path)
    assert "executed" not in capfd.readouterr().out


def test_files_of_other_networks_that_do_not_fit_are_refused(convnext, trained, tmp_path):
    path = convnext[1]
    with refused("test_convnext", error=ValueError):
        export_backbone(trained.state_dict(), tmp_path / "other.pth", META, "test_convnext")
    meta = json.loads(path.with_suffix(".json").read_text())
    for change, message in (({"sha256": "0" * 64}, "do not belong together"), ({"mean": None}, "has no mean"),
                            ({"features": {"channels": [1], "strides": [4]}}, "has other feature maps than timm's"),
                            ({"architecture": "test_resnet"}, "is no test_resnet"),
                            ({"library": "none"}, "describes neither a ResNet-50")):
        path.with_suffix(".json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(UserError, match=message):
            load_backbone(path)
