"""Anybody's MMDetection config: its backbone is put behind the guard, and nothing else of it changes."""

from typing import Any

from dada_det.errors import UserError
from dada_det.models.backbone import ARCHITECTURE, architecture_of, timm_features

GUARDED = ("DADAResNet", "DADATimm")
STRIDES = (4, 8, 16, 32)  # of the feature maps of a backbone
KEPT = ("frozen_stages", "norm_eval", "norm_cfg")  # of a ResNet's options, where a network of timm's takes its place
UNNAMED = "none"  # in the place of the backbone's file, where a checkpoint is going to fill the detector


def adopt(config: Any, backbone: str | None, name: str) -> None:
    """Puts the backbone of `config`, read from `name`, behind the guard, with the weights of the file `backbone`.

    A ResNet-50 becomes DADAResNet with its own options. Any other network makes place for one of timm's, with which the
    neck gets as many maps as it had, of the same strides. config.adopted says it in a clause. UserError where the file does
    not fit the config. Configs whose backbone is guarded already are left alone.
    """
    before = config.model.backbone
    kind = before.type
    if kind in GUARDED:
        return
    architecture = architecture_of(backbone) if backbone else ARCHITECTURE
    if kind == "ResNet":
        if architecture == ARCHITECTURE and (before.get("depth"), before.get("style", "pytorch")) != (50, "pytorch"):
            raise UserError(f"the backbone of {name} is a ResNet-{before.get('depth')} of style={before.get('style')!r}, "
                            "which a ResNet-50 of style='pytorch' does not fill; give a config of that, or the file of "
                            "another network of timm's")
        before.type, before.init_cfg = "DADAResNet", {"type": "Pretrained", "checkpoint": backbone or UNNAMED}
        config.adopted = "the config's ResNet is behind the guard as DADAResNet, all else is as it was"
    else:
        channels = config.model.get("neck", {}).get("in_channels")
        if architecture == ARCHITECTURE or not isinstance(channels, list):
            raise UserError(f"the backbone of {name} is a {kind}, and {backbone or 'no file'} cannot take its place: give "
                            "the file of a network of timm's (with its JSON) and a config with a neck, or one with a "
                            "ResNet-50")
        strides = STRIDES[-len(channels):]
        config.model.neck.in_channels = channels_at(architecture, strides)
        config.model.backbone = {"type": "DADATimm", "architecture": architecture, "strides": strides,
                                 **{key: before[key] for key in KEPT if key in before and key != "frozen_stages"},
                                 "init_cfg": {"type": "Pretrained", "checkpoint": backbone}}
        config.adopted = f"the config's {kind} made place for timm's {architecture}, all else is as it was"
    imports = config.get("custom_imports") or {"imports": [], "allow_failed_imports": False}
    config.custom_imports = {**imports, "imports": [*imports["imports"], "dada_det.engine.detection"]}
    config.custom_hooks = [*(config.get("custom_hooks") or []), {"type": "BackboneGuardHook"}]


def channels_at(architecture: str, strides: tuple[int, ...]) -> list[int]:
    """The channels of timm's maps at these strides; UserError where it lacks one."""
    maps = timm_features(architecture)
    if not set(strides) <= set(maps["strides"]):
        raise UserError(f"timm's {architecture} cannot be this detector's backbone, which gives maps at strides "
                        f"{', '.join(map(str, strides))}: its own are at {', '.join(map(str, maps['strides']))}; pretrain "
                        "another")
    return [maps["channels"][maps["strides"].index(stride)] for stride in strides]
