"""The backbone file between pretraining and detection: a flat ResNet-50 state dict, torchvision's keys without fc.

Beside NAME.pth lies NAME.json with what belongs to the weights: mean and std on the 0..255 scale, channel order,
classes, the policy's hash and the sha256 of the pth. Both are written whole; a pth without its JSON is taken for
torchvision's own. Another network of timm's has the keys of timm.create_model(architecture, num_classes=0), and its JSON
also says which channels and strides its feature maps have; the detectors of this project take ResNet-50 only.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.errors import UserError
from dada_det.files import read_json, sha256_of, write_json, write_torch
from dada_det.models.classifiers import build_classifier

ARCHITECTURE = "resnet50"
IMAGENET: dict[str, Any] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "channel_order": "RGB"}


def export_backbone(state_dict: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any],
                    architecture: str = ARCHITECTURE) -> None:
    """Writes `path` (NAME.pth) and NAME.json from the state dict of timm's or torchvision's resnet50, or another of timm's.

    `meta` must hold mean and std (3 numbers each, 0..255 scale), channel_order ("RGB"), classes and policy_sha256.
    The classifier's tensors (fc.* of a ResNet-50) are left out and floating tensors become float32 on the CPU. ValueError
    where it is no whole `architecture`.
    """
    if architecture == ARCHITECTURE:
        tensors = {name: _plain(tensor) for name, tensor in state_dict.items() if not name.startswith("fc.")}
        problem, features = _problem(tensors), {}
    else:
        names = _timm_names(architecture)
        tensors = {name: _plain(state_dict[name]) for name in names if name in state_dict}
        problem = f"lacks {(names - set(tensors)).pop()} of {architecture}" if names - set(tensors) else None
        features = {"library": "timm", "features": _timm_features(architecture)}
    if problem:
        raise ValueError(f"this state dict cannot be exported: it {problem}")
    missing = {"mean", "std", "channel_order", "classes", "policy_sha256"} - set(meta)
    if missing:
        raise ValueError(f"the backbone's meta lacks {', '.join(sorted(missing))}")
    path = Path(path)
    write_torch(path, lambda temporary: torch.save(tensors, temporary))
    write_json(path.with_suffix(".json"), {**meta, **features, "architecture": architecture, "sha256": sha256_of(path)})


def load_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone in `path` as (state dict: 318 tensors with torchvision's keys, meta: the JSON beside it).

    fc.* of torchvision's own files is dropped. UserError for a missing file, one that carries code, is no ResNet-50,
    holds only a part, has prefixed keys, sparse or meta tensors, another dtype or NaN, or does not belong to the JSON
    beside it.
    """
    path = Path(path)
    content = _read_tensors(path)
    nested = [name for name, value in content.items() if isinstance(value, Mapping)]
    if nested:
        raise UserError(f"the backbone {path} is a whole checkpoint (it holds {nested[0]!r}), not a flat state dict; "
                        "give the r50.pth that pretraining exports")
    tensors = {name: value for name, value in content.items() if not str(name).startswith("fc.")}
    if problem := _problem(tensors):
        if other := _other_architecture(path):
            raise UserError(f"the backbone {path} is timm's {other}, and the detectors here are built around ResNet-50; "
                            "pretrain one with classifier.name=resnet50")
        raise UserError(f"the backbone {path} {problem}; give the r50.pth that tools/pretrain_r50.sh exports")
    # Files from before torch 0.4.1 do not count batches; the count is used by no detector.
    return {name: tensors.get(name, torch.tensor(0)) for name in _shapes()}, _read_meta(path)


def load_timm_backbone(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backbone of another network of timm's as (state dict, meta).

    The state dict is whole for timm.create_model(meta["architecture"], num_classes=0); meta["features"] holds "channels" and
    "strides" of the feature maps that features_only=True gives. UserError where the file is missing, carries code, has no
    JSON of ours beside it or does not belong to it.
    """
    path = Path(path)
    tensors, beside = _read_tensors(path), path.with_suffix(".json")
    meta = read_json(beside, "backbone's meta file")
    if not isinstance(meta, dict) or meta.get("library") != "timm":
        raise UserError(f"{beside} does not describe a network of timm's (library: 'timm'); export the backbone again")
    return dict(tensors), _checked(meta, path)


def verify_export(model: nn.Module, path: str | Path, images_BCHW: Tensor, architecture: str = ARCHITECTURE) -> None:
    """Proves that `path` gives the same features as `model` (timm's `architecture`) for normalised float images.

    The file is loaded into a fresh network: for resnet50 torchvision's, an independent implementation. RuntimeError where
    they differ.
    """
    fresh, features = _fresh(path, architecture, images_BCHW)
    fresh.eval().to(images_BCHW.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected, found = model.forward_features(images_BCHW), features(images_BCHW)  # type: ignore[operator]
    model.train(was_training)
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        difference = float((expected - found).abs().max())
        raise RuntimeError(f"the exported backbone {path} differs from the trained model by {difference:.3g} in its "
                           "features")


def _fresh(path: str | Path, architecture: str, images_BCHW: Tensor) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network that holds the file's weights, and what turns images into its last feature map."""
    if architecture != ARCHITECTURE:
        network = build_classifier(architecture, num_classes=0, image_size=images_BCHW.shape[-1])
        network.load_state_dict(load_timm_backbone(path)[0])
        return network, network.forward_features  # type: ignore[return-value]
    from torchvision.models import resnet50  # takes seconds, and a search needs only IMAGENET from here

    network = resnet50(weights=None)
    network.load_state_dict({**network.state_dict(), **load_backbone(path)[0]})
    return network, nn.Sequential(*list(network.children())[:-2])  # without the average pooling and fc


def _timm_names(architecture: str) -> set[str]:
    with torch.device("meta"):
        return set(build_classifier(architecture, num_classes=0, image_size=224).state_dict())


def _timm_features(architecture: str) -> dict[str, list[int]]:
    """Channels and strides of the feature maps that timm's features_only gives."""
    import timm

    with torch.device("meta"):
        maps: Any = timm.create_model(architecture, pretrained=False, features_only=True).feature_info
    return {"channels": maps.channels(), "strides": maps.reduction()}


@cache
def _shapes() -> dict[str, torch.Size]:
    """Name and shape of every tensor of a ResNet-50 without fc."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in resnet50(weights=None).state_dict().items()
                if not name.startswith("fc.")}


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def _problem(tensors: Mapping[str, Any]) -> str | None:
    """What keeps `tensors` from being a whole float32 ResNet-50, as the end of a sentence; None where nothing does."""
    shapes = _shapes()
    prefixes = [str(name).removesuffix("conv1.weight") for name in tensors if str(name).endswith(".conv1.weight")]
    if strange := [prefix for prefix in prefixes if not re.fullmatch(r"layer\d+\.\d+\.", prefix)]:
        return f"has the prefix {min(strange, key=len)!r} before its keys"
    needed = [name for name in shapes if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in tensors]
    if len(missing) == len(needed):
        return "is no ResNet-50: it has none of its tensors"
    wrong = [f"the tensor {name}" for name in tensors if name not in shapes]
    wrong += [f"{name} of another shape" for name, shape in shapes.items()
              if name in tensors and (not isinstance(tensors[name], Tensor) or tensors[name].shape != shape)]
    if wrong:
        return f"is no ResNet-50: it has {wrong[0]}" + (f" and {len(wrong) - 1} more like it" if len(wrong) > 1 else "")
    if missing:
        return (f"holds only {len(needed) - len(missing)} of a ResNet-50's {len(needed)} tensors: {missing[0]} is "
                "missing")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            return f"holds a {'meta' if tensor.is_meta else 'sparse'} tensor and not a dense one ({name})"
    for name in needed:
        if tensors[name].dtype != torch.float32:
            return f"is {str(tensors[name].dtype).removeprefix('torch.')} and not float32 ({name})"
        if not tensors[name].isfinite().all():
            return f"holds NaN or infinite numbers ({name})"
    return None


def _read_tensors(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the backbone {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes torch's reader raise errors of many types
        if isinstance(error, UnpicklingError) and ("Unsupported" in str(error) or "blocked" in str(error)):
            raise UserError(f"the backbone {path} carries code in its pickle and is not opened; "
                            "give a file of plain tensors") from error
        raise UserError(f"the backbone {path} is damaged or no PyTorch file; give the r50.pth that pretraining "
                        "exports") from error
    if not isinstance(content, Mapping):
        raise UserError(f"the backbone {path} is no ResNet-50: it holds a {type(content).__name__}, no state dict; "
                        "give the r50.pth that pretraining exports")
    return content


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
    if not isinstance(meta, dict) or meta.get("architecture") != ARCHITECTURE:
        raise UserError(f"{beside} does not describe a ResNet-50 (architecture: {ARCHITECTURE!r}); export the backbone "
                        "again")
    return _checked(meta, path)


def _checked(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """`meta` where its numbers and its hash fit the weights in `path`, else UserError."""
    beside = path.with_suffix(".json")
    for name in ("mean", "std"):
        value = meta.get(name)
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(x, int | float) for x in value)):
            raise UserError(f"{beside} has no {name} of three numbers; export the backbone again")
    if meta.get("channel_order") not in ("RGB", "BGR"):
        raise UserError(f"{beside} has the channel order {meta.get('channel_order')!r}; it must be RGB or BGR")
    if meta.get("sha256") != sha256_of(path):
        raise UserError(f"{path} and {beside} do not belong together (the sha256 differs); export the backbone again")
    return meta


def _other_architecture(path: Path) -> str | None:
    """The network of timm's that the JSON beside `path` names, where there is one."""
    beside = path.with_suffix(".json")
    meta = read_json(beside, "backbone's meta file") if beside.is_file() else None
    return str(meta.get("architecture")) if isinstance(meta, dict) and meta.get("library") == "timm" else None
