"""Puts the backbone of any MMDetection config behind the guard, and changes nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dada_det.errors import UserError
from dada_det.files import read_json
from dada_det.models.backbone import ARCHITECTURE, check_preparation, named_architecture, timm_features

GUARDED = ("DADAResNet", "DADATimm")
STRIDES = (4, 8, 16, 32)  # of the feature maps of a backbone
KEPT = ("frozen_stages", "norm_eval", "norm_cfg")  # of a ResNet's options, where a network of timm's takes its place
UNNAMED = "none"  # in the place of the backbone's file, where a checkpoint is going to fill the detector
FACTS = "backbone"  # in a checkpoint's meta: facts_in of the backbone's file with which its detector began
NAMED = ("architecture", "library", "mean", "std", "channel_order")


def facts_in(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a detector has to know of its backbone's meta (models/backbone.py): the network, mean, std, channel order."""
    return {name: meta[name] for name in NAMED if name in meta}


def facts_beside(path: str | Path) -> dict[str, Any]:
    """facts_in of the JSON beside a backbone file; a ResNet-50's where there is none.

    Raises:
        UserError: the JSON lacks them.
    """
    beside = Path(path).with_suffix(".json")
    if not beside.is_file():
        return {"architecture": ARCHITECTURE}
    meta = read_json(beside, "backbone's meta file")
    named_architecture(meta, str(beside))
    check_preparation(meta, str(beside))
    return facts_in(meta)


def facts_of_checkpoint(path: str, backbone: str | None) -> dict[str, Any] | None:
    """What a detector's checkpoint says of the backbone with which it began; None where it does not say.

    Raises:
        UserError: it says what cannot be, or the file `backbone` is of another network or of images prepared otherwise.
    """
    from dada_det.engine.runtime.checkpoint import check_checkpoint

    facts = (check_checkpoint(path).get("meta") or {}).get(FACTS)
    if not facts:
        return None
    facts = {"architecture": ARCHITECTURE, **facts} if isinstance(facts, dict) else {}
    where = f"the checkpoint {path}"
    named_architecture(facts, where)
    check_preparation(facts, where)
    for name, value in (facts_beside(backbone) if backbone else {}).items():
        if value != facts.get(name):
            raise UserError(f"{where} began with a backbone whose {name} is {facts.get(name)}, and that of --backbone "
                            f"{backbone} is {value}; leave --backbone out, as the checkpoint tells all of it")
    return facts


def adopt(config: Any, backbone: str | None, name: str, facts: dict[str, Any] | None = None) -> None:
    """Puts the backbone of a config behind the guard, with the weights of a file.

    A ResNet-50 becomes DADAResNet with its own options. Any other network is replaced by one of timm's; the neck gets as
    many maps as before, of the same strides. A backbone that is guarded already stays.

    Args:
        config: is changed. config.adopted says how, in a clause.
        backbone: the file of the weights.
        name: what the config was read from.
        facts: of the backbone that a checkpoint holds (facts_of_checkpoint), if that will fill the detector. They are kept
            in config.backbone_facts for use_backbone (config.py).

    Raises:
        UserError: the file does not fit the config.
    """
    before = config.model.backbone
    kind = before.type
    if facts:
        config.backbone_facts = facts
    if kind in GUARDED:
        return
    facts = facts or (facts_beside(backbone) if backbone else {})
    architecture = facts.get("architecture", ARCHITECTURE)
    if kind == "ResNet":
        if architecture == ARCHITECTURE and (before.get("depth"), before.get("style", "pytorch")) != (50, "pytorch"):
            raise UserError(f"the backbone of {name} is a ResNet-{before.get('depth')} of style={before.get('style')!r}, "
                            "which a ResNet-50 of style='pytorch' does not fill; give a config of that, or the file of "
                            "another network of timm's")
        before.type, before.init_cfg = "DADAResNet", {"type": "Pretrained", "checkpoint": backbone or UNNAMED}
        config.adopted = "the config's ResNet is behind the guard as DADAResNet, all else is as it was"
    else:
        channels = neck_channels(config.model)
        if architecture == ARCHITECTURE or not channels:
            raise UserError(f"the backbone of {name} is a {kind}, and {backbone or 'no file'} cannot take its place: give "
                            "the file of a network of timm's (with its JSON) and a config with a neck, or one with a "
                            "ResNet-50")
        strides = STRIDES[-len(channels):]
        use_neck_channels(config.model, channels_at(architecture, strides))
        config.model.backbone = {"type": "DADATimm", "architecture": architecture, "strides": strides,
                                 **{key: before[key] for key in KEPT if key in before and key != "frozen_stages"},
                                 "init_cfg": {"type": "Pretrained", "checkpoint": backbone or UNNAMED}}
        config.adopted = f"the config's {kind} made place for timm's {architecture}, all else is as it was"
    imports = config.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    config.custom_imports = {**imports, "imports": [*imports["imports"], "dada_det.engine.detection"]}
    config.custom_hooks = [*(config.get("custom_hooks") or []), {"type": "BackboneGuardHook"}]


def neck_channels(model: Any) -> list[int]:
    """The channels of the maps that the neck takes from the backbone; [] where there is none, or one that does not list
    them in the backbone's order, as YOLOV3Neck begins with the last map."""
    channels = _first_neck(model).get("in_channels")
    if isinstance(channels, int):
        return [channels]
    if not isinstance(channels, list) or not channels:
        return []
    # Every map is wider than the one before, but for a few networks of timm's, and then the first and the last are.
    timms = model["backbone"]["type"] == "DADATimm"
    return list(channels) if (channels[0] <= channels[-1] if timms else channels == sorted(channels)) else []


def use_neck_channels(model: Any, channels: list[int]) -> None:
    """Makes the neck, which has neck_channels, take maps of other channels."""
    neck = _first_neck(model)
    neck["in_channels"] = channels[0] if isinstance(neck["in_channels"], int) else channels


def _first_neck(model: Any) -> Any:
    """The neck, or the first of several, one behind the other; {} where there is none."""
    neck = model.get("neck") or {}
    return neck[0] if isinstance(neck, list) else neck


def channels_at(architecture: str, strides: tuple[int, ...]) -> list[int]:
    """The channels of timm's maps at these strides.

    Raises:
        UserError: the network has no map of one of the strides.
    """
    maps = timm_features(architecture)
    if not set(strides) <= set(maps["strides"]):
        raise UserError(f"timm's {architecture} cannot be this detector's backbone, which gives maps at strides "
                        f"{', '.join(map(str, strides))}: its own are at {', '.join(map(str, maps['strides']))}; pretrain "
                        "another")
    return [maps["channels"][maps["strides"].index(stride)] for stride in strides]
