"""Pretrained weights to start from, and how their images were prepared.

Read are timm's and torchvision's files and this project's r50.pth and checkpoints, as .pth or .safetensors, or timm's own by
name.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.errors import UserError
from dada_det.files import read_json, sha256_of
from dada_det.models.backbone import IMAGENET
from dada_det.models.tensors import read_tensors

TIMM = "timm"  # in the place of a file: what timm itself has trained
ADVICE = "give a state dict of timm's or torchvision's, or the r50.pth of a pretraining"
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # of training scripts' checkpoints, averages first
PREFIXES = ("module.", "_orig_mod.", "network.")  # of DistributedDataParallel, torch.compile and this project's training
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHECKPOINT = re.compile(r"(epoch|iter)_\d+\.pth")  # of this project's trainings
COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for some weights: (resized crop - mean) / std, of RGB channels in 0..255.

    Args:
        interpolation: one of INTERPOLATIONS.
        crop_share: share of the resized image's side that the central crop of a validation image shows.

    The defaults are those of this project's own training.
    """

    mean: tuple[float, ...] = tuple(IMAGENET["mean"])
    std: tuple[float, ...] = tuple(IMAGENET["std"])
    interpolation: str = "bilinear"
    crop_share: float = 224 / 256


# Files that say nowhere how their images were prepared, by name (which ends in the first digits of their sha256).
PUBLISHED = {"efficientnet-lite0-57934424.pth": Preprocessing((127.0,) * 3, (128.0,) * 3, "bicubic")}


def load_weights(network: nn.Module, path: str | Path) -> str:
    """Puts the tensors of the file `path` into `network`; returns what became of the classifier, "" where it fitted.

    If the file has no classifier or one for another number of classes, the new classifier starts from zeros (Big Transfer,
    ECCV 2020): timm's own initial weights for few classes are so large that the first steps spoil the other layers. (The
    classifier is timm's `classifier` of the network, else its last linear layers.) A file with other names but the network's
    tensors in its order is taken by order, and the sentence says so.

    Raises:
        UserError: any other tensor is missing, left over, of another shape, not dense or not finite; the sentence names it.
    """
    return put(network, dict(read_tensors(Path(path), "weights", ADVICE)), str(path))


def put(network: nn.Module, content: Mapping[str, Any], source: str) -> str:
    """load_weights of what a file holds; `source` names the file in messages."""
    wanted, heads = network.state_dict(), heads_of(network)
    found = unwrapped(content)
    said = []
    if renamed := by_order(found, wanted, heads):
        said.append("its tensors have other names than the network's and were taken in their order, "
                    f"{next(iter(found))} for {next(iter(renamed))} and so on")
        found = renamed
    head, theirs = ([name for name in names if name.startswith(heads)] for names in (wanted, found))
    if not (head and all(shape(found.get(name)) == shape(wanted[name]) for name in head)):
        if head:
            had = f"its classifier of {len(found[theirs[-1]])} classes" if theirs and shape(found[theirs[-1]]) else \
                "the classifier that it lacks"
            said.append(f"{had} was replaced by a new one of {len(wanted[head[-1]])} ({', '.join(head)})")
        elif theirs:
            said.append(f"its classifier was left out ({', '.join(theirs)})")
        found = {name: value for name, value in found.items() if name not in theirs} | \
            {name: torch.zeros_like(wanted[name]) for name in head}
    if problem := problem_of(found, wanted):
        raise UserError(f"the weights {source} do not fit the network: {problem}; {ADVICE} of this very network")
    network.load_state_dict({**wanted, **found})
    # mmengine's Runner calls timm's init_weights, which draws all weights anew, unless a network says that it has some.
    network.is_init = True  # type: ignore[assignment]
    return "; ".join(said)


def heads_of(network: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's tensors begin with."""
    config = getattr(network, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        linear = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
        names = tuple(name for name, layer in linear if layer.out_features == linear[-1][1].out_features)
    return tuple(f"{name}." for name in names)


def unwrapped(content: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict within a training script's checkpoint, without the prefixes of wrappers."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {str(name): value for name, value in content.items() if name != "n_averaged"}  # AveragedModel's counter
    while tensors and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in tensors)), "")):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def by_order(found: Mapping[str, Any], wanted: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, Any] | None:
    """The file's tensors under the network's names, where no name is shared and every place fits; None otherwise."""
    if not found or set(found) & set(wanted):
        return None
    theirs, ours = ([name for name in names if not name.endswith(COUNTER)] for names in (found, wanted))
    if len(theirs) != len(ours):
        return None
    pairs = list(zip(theirs, ours, strict=True))
    fits = all(one.rsplit(".")[-1] == other.rsplit(".")[-1]
               and (shape(found[one]) == shape(wanted[other]) or other.startswith(heads)) for one, other in pairs)
    return {other: found[one] for one, other in pairs} if fits else None


def shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def problem_of(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str | None:
    """What keeps `found` from being all of `wanted`, as a clause; None where nothing does."""
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTER)]
    if missing:
        return f"they lack {several(missing)}"
    if over := [name for name in found if name not in wanted]:
        return f"they have {several(over)}, which the network does not"
    for name, value in found.items():
        if shape(value) != shape(wanted[name]):
            return (f"{name} has the shape {shape(value)} and not {shape(wanted[name])}" if isinstance(value, Tensor)
                    else f"{name} is a {type(value).__name__} and no tensor")
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            return f"{name} is no dense tensor of real numbers"
        if value.is_floating_point() != wanted[name].is_floating_point():
            return f"{name} is {value.dtype} and not {wanted[name].dtype}"
        if not value.isfinite().all():
            return f"{name} holds NaN or infinite numbers"
    return None


def several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def start_from(network: nn.Module, weights: str | Path, name: str) -> None:
    """load_weights for a command: `weights` is a file or "timm", and what was done is said once.

    Args:
        name: of the network, as build_classifier takes it.

    Raises:
        UserError: as load_weights does, or timm's weights cannot be downloaded.
    """
    if str(weights) == TIMM:
        source = f"timm's weights of {timm_tag(name)}"
        replaced = put(network, timm_weights(name, fixed_size_of(network)), source)
    else:
        source, replaced = str(weights), load_weights(network, weights)
    say(f"weights  {name} starts from {source}" + (f": {replaced}" if replaced else ""))


@cache  # a comparison starts many times from the same weights
def say(sentence: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(sentence, flush=True)


def preprocessing_of(weights: str | Path | None, name: str) -> Preprocessing:
    """How the images of the network `name` are prepared that starts from `weights` (a file, "timm", or None).

    A file's own data config comes from NAME.json beside it, from the config.json of a download, from a checkpoint of this
    project's itself, from timm's or torchvision's entry for a file of that name; where none is known, timm's default for the
    network.

    Raises:
        UserError: the data config cannot be used.
    """
    if weights is None:
        return Preprocessing()
    if str(weights) == TIMM:
        return of_timm(timm_config(name))
    path = Path(weights)
    for beside in (path.with_suffix(".json"), path.with_name("config.json")):
        if beside.is_file() and isinstance(entry := read_json(beside, "meta file of the weights"), dict):
            if "pretrained_cfg" in entry:
                return of_timm(entry["pretrained_cfg"])
            if "mean" in entry:
                return of_meta(entry, beside)
    if CHECKPOINT.fullmatch(path.name) and (own := of_checkpoint(path)) is not None:
        return own
    if path.name in PUBLISHED:
        return PUBLISHED[path.name]
    import timm
    from torchvision.models import get_model_weights, list_models

    family = name.split(".")[0]
    if not timm.is_model(family):
        return Preprocessing()
    for tag in timm.list_pretrained(f"{family}.*"):
        config = timm.get_pretrained_cfg(tag)
        if config is not None and str(config.url).endswith(f"/{path.name}"):
            return of_timm(config.to_dict())
    for entry in get_model_weights(family) if family in list_models() else ():
        if entry.url.endswith(f"/{path.name}"):
            chosen = entry.transforms()
            return of_timm({"mean": chosen.mean, "std": chosen.std, "interpolation": chosen.interpolation.value,
                            "crop_pct": chosen.crop_size[0] / chosen.resize_size[0]})
    return of_timm(timm_config(name))


def of_checkpoint(path: Path) -> Preprocessing | None:
    """How the images were prepared of the training of this project that wrote `path`; None where it does not say, or has
    started from other weights and prepared them as those want it."""
    meta = read_tensors(path, "weights", ADVICE).get("meta")
    run = meta.get("identity") if isinstance(meta, Mapping) else None
    if not isinstance(run, Mapping) or run.get("weights"):
        return None
    own = {**run, **(run.get("data_preprocessor") or {})}
    return of_meta({**asdict(Preprocessing()), **{name: own[name] for name in asdict(Preprocessing())
                                                  if own.get(name) is not None}}, path)


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """timm's pretrained_cfg, with mean and std in 0..1.

    Raises:
        UserError: it lacks them.
    """
    if not isinstance(config, Mapping) or not all(isinstance(config.get(name), list | tuple) for name in ("mean", "std")):
        raise UserError("the pretrained_cfg in the config.json beside the weights has no mean and std; write those of the "
                        "RGB channels, in 0..1")
    scaled = {name: [round(255 * value, 6) for value in config[name]] for name in ("mean", "std")}
    interpolation = config.get("interpolation")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        interpolation = "bicubic"  # timm's "random" is a matter of its training
    return of_meta({**scaled, "interpolation": interpolation, "crop_share": config.get("crop_pct")}, "timm's data config")


def of_meta(meta: Mapping[str, Any], where: str | Path) -> Preprocessing:
    """The entries of r50.json, with mean and std in 0..255; what it lacks is this project's own."""
    entries = {name: meta[name] for name in asdict(Preprocessing()) if meta.get(name) is not None}
    for name in ("mean", "std"):
        value = entries.get(name)
        if not (isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)
                and (name == "mean" or min(value) > 0)):
            raise UserError(f"{where} has no {name} of three numbers; write those of the RGB channels, in 0..255")
        entries[name] = tuple(float(x) for x in value)
    if meta.get("channel_order", "RGB") != "RGB":
        raise UserError(f"{where} has the channel order {meta['channel_order']!r}; only weights for RGB images can be "
                        "started from")
    if entries.get("interpolation", "bilinear") not in INTERPOLATIONS:
        raise UserError(f"{where} has the interpolation {entries['interpolation']!r}; write one of "
                        f"{', '.join(INTERPOLATIONS)}")
    share = entries.get("crop_share", 1.0)
    if not (isinstance(share, int | float) and 0 < share <= 1):
        raise UserError(f"{where} has the crop share {share!r}; write a number in 0..1")
    return Preprocessing(**entries)


def identity_of(weights: str | Path | None, name: str) -> str | None:
    """What tells these weights from others, for a resumed run: timm's tag, or 12 digits of the file's sha256."""
    if weights is None:
        return None
    return timm_tag(name) if str(weights) == TIMM else sha256_of(weights)[:12]


def check_weights(weights: str | Path | None, name: str) -> None:
    """UserError where the file does not exist or timm has no weights of that network; before anything heavy."""
    if weights is None:
        return
    if str(weights) == TIMM:
        timm_config(name)
    elif not Path(weights).is_file():
        raise UserError(f"the weights {weights} do not exist; {ADVICE}, or `timm` for timm's own")


def timm_config(name: str) -> dict[str, Any]:
    import timm

    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        raise UserError(f"timm has no weights of {name}; give a file, or one of timm.list_pretrained()")
    return config.to_dict()


def timm_tag(name: str) -> str:
    config = timm_config(name)
    return ".".join(part for part in (config["architecture"], config.get("tag")) if part)


def timm_weights(name: str, image_size: int | None) -> dict[str, Tensor]:
    """The state dict of timm's own pretrained network; says where it comes from.

    Raises:
        UserError: it cannot be downloaded.
    """
    import timm

    config, tag = timm_config(name), timm_tag(name)
    hub = config.get("hf_hub_id")
    where = f"the Hugging Face hub ({hub})" if hub else config.get("url")
    if not where:
        raise UserError(f"timm has no weights of {tag}; give a file, or one of timm.list_pretrained()")
    say(f"weights  timm's {tag} from {where}, downloaded at the first use (licence: {config.get('license') or 'unknown'})")
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    hub_log = logging.getLogger("huggingface_hub")  # which says each of its five tries at a file
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=True, **size).state_dict()
    except Exception as error:  # the hub's client, its cache and the network raise errors of many types
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise UserError(f"timm's weights of {tag} cannot be fetched from {where} ({type(error).__name__}: {reason}); go "
                        "online, or give a file with --weights FILE") from error
    finally:
        hub_log.setLevel(level)


def fixed_size_of(network: nn.Module) -> int | None:
    """The side in pixels that a network of one size was built for."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return int(size[0]) if size is not None else None
