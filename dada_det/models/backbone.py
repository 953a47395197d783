"""The backbone file between pretraining and detection: a flat ResNet-50 state dict, torchvision's keys without fc.

Beside NAME.pth lies NAME.json with what belongs to the weights: mean and std on the 0..255 scale, channel order,
classes, the policy's hash and the sha256 of the pth. Both are written whole; a pth without its JSON is taken for
torchvision's own. Another network of timm's has the keys of timm.create_model(architecture, num_classes=0), and its JSON
also says which channels and strides its feature maps have, from which the detectors take their necks.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.devices import float32_arithmetic
from dada_det.errors import UserError
from dada_det.files import read_json, sha256_of, write_json, write_torch
from dada_det.models.classifiers import build_classifier, has_fixed_size
from dada_det.models.tensors import read_tensors

ARCHITECTURE = "resnet50"
IMAGENET: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "channel_order": "RGB"}


def export_backbone(state_dict: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any],
                    architecture: str = ARCHITECTURE) -> None:
    """Writes `path` (NAME.pth) and NAME.json from the state dict of timm's or torchvision's resnet50, or another of timm's.

    `meta` must hold mean and std (3 numbers each, 0..255 scale), channel_order ("RGB"), classes and policy_sha256. The
    classifier's tensors (fc.* of a ResNet-50) are left out and floating tensors become float32 on the CPU.

    Raises:
        ValueError: the state dict is no whole `architecture`.
    """
    if architecture == ARCHITECTURE:
        tensors = {name: _plain(tensor) for name, tensor in state_dict.items() if not name.startswith("fc.")}
        features = {}
    else:
        tensors = {name: _plain(state_dict[name]) for name in _expected(architecture) if name in state_dict}
        features = {"library": "timm", "features": timm_features(architecture)}
    problem = _problem(tensors, architecture)
    if problem:
        raise ValueError(f"this state dict cannot be exported: it {problem}")
    missing = {"mean", "std", "channel_order", "classes", "policy_sha256"} - set(meta)
    if missing:
        raise ValueError(f"the backbone's meta lacks {', '.join(sorted(missing))}")
    path = Path(path)
    write_torch(path, lambda temporary: torch.save(tensors, temporary))
    write_json(path.with_suffix(".json"), {**meta, **features, "architecture": architecture, "sha256": sha256_of(path)})


def load_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone in `path` as (state dict, meta: the JSON beside it).

    The state dict holds a ResNet-50's 318 tensors with torchvision's keys (fc.* of torchvision's own files is dropped), or,
    where meta["library"] is "timm", those of timm.create_model(meta["architecture"], num_classes=0).

    Raises:
        UserError: the file is missing, carries code, holds a part of its network or another network, has prefixed keys,
            sparse or meta tensors, another dtype or NaN, or does not belong to the JSON beside it.
    """
    path = Path(path)
    content = read_tensors(path, "backbone", "give the r50.pth that pretraining exports")
    architecture = architecture_of(path)
    nested = [name for name, value in content.items() if isinstance(value, Mapping)]
    if nested:
        raise UserError(f"the backbone {path} is a whole checkpoint (it holds {nested[0]!r}), not a flat state dict; "
                        "give the r50.pth that pretraining exports")
    if architecture != ARCHITECTURE:
        if problem := _problem(content, architecture):
            raise UserError(f"the backbone {path} {problem}; give the file that tools/pretrain_r50.sh exported")
        return dict(content), _read_meta(path)
    tensors = {name: value for name, value in content.items() if not str(name).startswith("fc.")}
    if problem := _problem(tensors, ARCHITECTURE):
        raise UserError(f"the backbone {path} {problem}; give the r50.pth that tools/pretrain_r50.sh exports")
    # Files from before torch 0.4.1 do not count batches; the count is used by no detector.
    return {name: tensors.get(name, torch.tensor(0)) for name in _expected(ARCHITECTURE)}, _read_meta(path)


def architecture_of(path: str | Path) -> str:
    """The network whose weights `path` holds, as the JSON beside it says: ResNet-50, or timm's name of another.

    Raises:
        UserError: the JSON names a network that timm does not have.
    """
    beside = Path(path).with_suffix(".json")
    return named_architecture(read_json(beside, "backbone's meta file"), str(beside)) if beside.is_file() else ARCHITECTURE


def named_architecture(meta: Any, where: str) -> str:
    """The network that a backbone's `meta`, read from `where`, names.

    Raises:
        UserError: timm has no such network.
    """
    name = meta.get("architecture") if isinstance(meta, dict) else None
    if name == ARCHITECTURE:
        return ARCHITECTURE
    import timm  # takes seconds, and most files are of a ResNet-50

    # A name of a built-in network: timm would fetch what "hf-hub:.." or "local-dir:.." name.
    if not (isinstance(name, str) and meta.get("library") == "timm" and timm.is_model(name)):
        raise UserError(f"{where} describes neither a ResNet-50 (architecture: {ARCHITECTURE!r}) nor another network of "
                        "timm's; export the backbone again")
    return name


def check_preparation(meta: Mapping[str, Any], where: str) -> None:
    """UserError unless `meta`, read from `where`, says how images are prepared: mean, std and channel order."""
    for name in ("mean", "std"):
        value = meta.get(name)
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(x, int | float) for x in value)):
            raise UserError(f"{where} has no {name} of three numbers; export the backbone again")
    if meta.get("channel_order") not in ("RGB", "BGR"):
        raise UserError(f"{where} has the channel order {meta.get('channel_order')!r}; it must be RGB or BGR")


def verify_export(model: nn.Module, path: str | Path, images_BCHW: Tensor, architecture: str = ARCHITECTURE) -> None:
    """Proves that `path` gives the same features as `model` (timm's `architecture`) for normalised float images.

    The file is loaded into a fresh network: for resnet50 torchvision's, an independent implementation. Both compute in
    float32, whatever the training did: in TF32 two memory formats differ by more than a wrong weight.

    Raises:
        RuntimeError: the features differ; the message holds the largest difference.
    """
    fresh, features = _fresh(path, architecture, images_BCHW)
    fresh.eval().to(images_BCHW.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), float32_arithmetic():
        expected, found = model.forward_features(images_BCHW), features(images_BCHW)  # type: ignore[operator]
    model.train(was_training)
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        difference = float((expected - found).abs().max())
        raise RuntimeError(f"the exported backbone {path} differs from the trained model by up to {difference:.3g} in its "
                           f"features, which reach {float(expected.abs().max()):.3g}")


def _fresh(path: str | Path, architecture: str, images_BCHW: Tensor) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network that holds the file's weights, and what turns images into its last feature map."""
    if architecture != ARCHITECTURE:
        network = build_classifier(architecture, num_classes=0, image_size=images_BCHW.shape[-1])
        network.load_state_dict(load_backbone(path)[0])
        return network, network.forward_features  # type: ignore[return-value]
    from torchvision.models import resnet50  # takes seconds, and a search needs only IMAGENET from here

    network = resnet50(weights=None)
    network.load_state_dict({**network.state_dict(), **load_backbone(path)[0]})
    return network, nn.Sequential(*list(network.children())[:-2])  # without the average pooling and fc


@cache
def timm_features(architecture: str) -> dict[str, list[int]]:
    """"channels" and "strides" of the feature maps that timm's features_only gives."""
    import timm

    with torch.device("meta"):
        maps: Any = timm.create_model(architecture, pretrained=False, features_only=True).feature_info
    return {"channels": maps.channels(), "strides": maps.reduction()}


@cache
def _expected(architecture: str) -> dict[str, Tensor]:
    """Every tensor of the network without its classifier, with shape and dtype and on the meta device."""
    with torch.device("meta"):
        if architecture != ARCHITECTURE:
            return build_classifier(architecture, num_classes=0, image_size=224).state_dict()
        from torchvision.models import resnet50

        return {name: tensor for name, tensor in resnet50(weights=None).state_dict().items() if not name.startswith("fc.")}


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def _problem(tensors: Mapping[str, Any], architecture: str) -> str | None:
    """What keeps `tensors` from being the whole network, as the end of a sentence; None where nothing does."""
    expected, title = _expected(architecture), "ResNet-50" if architecture == ARCHITECTURE else architecture
    if architecture == ARCHITECTURE:
        prefixes = [str(name).removesuffix("conv1.weight") for name in tensors if str(name).endswith(".conv1.weight")]
        if strange := [prefix for prefix in prefixes if not re.fullmatch(r"layer\d+\.\d+\.", prefix)]:
            return f"has the prefix {min(strange, key=len)!r} before its keys"
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in tensors]
    if len(missing) == len(needed):
        return f"is no {title}: it has none of its tensors"
    wrong = [f"the tensor {name}" for name in tensors if name not in expected]
    # Where a network is built for one size, its position embedding is that of its own images.
    any_size = architecture == ARCHITECTURE or not has_fixed_size(architecture)
    wrong += [f"{name} of another shape" for name, tensor in expected.items()
              if name in tensors and (not isinstance(tensors[name], Tensor)
                                      or (any_size and tensors[name].shape != tensor.shape))]
    if wrong:
        return f"is no {title}: it has {wrong[0]}" + (f" and {len(wrong) - 1} more like it" if len(wrong) > 1 else "")
    if missing:
        return f"holds only {len(needed) - len(missing)} of a {title}'s {len(needed)} tensors: {missing[0]} is missing"
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"holds a {'meta' if tensor.is_meta else 'sparse'} tensor and not a dense one ({name})"
    for name in needed:
        found, wanted = (str(tensor.dtype).removeprefix("torch.") for tensor in (tensors[name], expected[name]))
        if found != wanted:
            return f"is {found} and not {wanted} ({name})"
        if not tensors[name].isfinite().all():
            return f"holds NaN or infinite numbers ({name})"
    return None


@cache  # a backbone is read twice, before the heavy imports and by the detector, and needs one warning
def _warn_without_meta(path: Path) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"warning: {path} has no {path.stem}.json beside it: taken as trained on RGB images with ImageNet's mean "
              "and std", file=sys.stderr)


def _read_meta(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        _warn_without_meta(path)
        return dict(IMAGENET)
    meta = read_json(beside, "backbone's meta file")
    if meta["architecture"] != ARCHITECTURE and meta.get("features") != timm_features(meta["architecture"]):
        raise UserError(f"{beside} has other feature maps than timm's {meta['architecture']}, which has "
                        f"{timm_features(meta['architecture'])}; export the backbone again")
    check_preparation(meta, str(beside))
    if meta.get("sha256") != sha256_of(path):
        raise UserError(f"{path} and {beside} do not belong together (the sha256 differs); export the backbone again")
    return meta
