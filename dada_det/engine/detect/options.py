"""Checks --cfg-options of a detector: whether something reads each key, and whether each value has a possible type.

A key that the config has is fine. A new key must be an argument of the class that its dict builds (`type`), or of what reads
that dict (READERS). Dicts that are not known here, such as model.test_cfg, take any key that is not nearly one of theirs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, root
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from dada_det.errors import UserError
from dada_det.keys import arguments_of, nearest, unknown

NEARLY = 0.85  # similarity from which a new key counts as misspelt: nms_pree beside nms_pre
GIVEN = "--cfg-options"
ALWAYS = ("type", "_scope_", "_delete_")
TOP = ("compile", "model_wrapper_cfg", "find_unused_parameters", "sync_bn", "custom_imports", "tta_model", "tta_pipeline",
       "activation_checkpointing", "efficient_conv_bn_eval", "detect_anomalous_params", "runner_type", "work_dir",
       "data_root", "demo", "backbone_command")  # of a config beside the Runner's arguments
HOOKS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint", "visualization")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# The last name of a dict without a type -> what takes its entries.
READERS: dict[str, Callable[..., Any] | tuple[str, ...]] = {
    "randomness": Runner.set_randomness, "log_processor": LogProcessor, "auto_scale_lr": ("enable", "base_batch_size"),
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    "mp_cfg": ("mp_start_method", "opencv_num_threads"), "filter_cfg": ("filter_empty_gt", "min_size"),
    "paramwise_cfg": ("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
                      "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "num_layers", "decay_rate",
                      "decay_type", "layer_decay"),
    "clip_grad": ("max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value")}
BESIDE: dict[str, tuple[str, ...]] = {  # what an entry may hold beside the arguments of its class
    "optim_wrapper": ("constructor", "paramwise_cfg"), "param_scheduler": ("convert_to_iter_based",),
    "train_cfg": ("by_epoch",),
    "checkpoint": ("keep", "steps")}


def check_options(before: Config, after: Config, options: Mapping[str, Any]) -> None:
    """Raises UserError for the first misspelt one of `options`, which have turned the config `before` into `after`."""
    top = _readers_of([], {}, ())[0]
    for name, value in options.items():
        parts = name.split(".")
        if parts[0] in before and parts[0] not in top:
            raise UserError(f"{GIVEN} gives {name}, and {parts[0]} is a variable of {before.filename}, which has been read; "
                            "give the entries that were made of it")
        old: Any = before.to_dict()
        for depth, key in enumerate(parts):
            if isinstance(old, list | tuple):
                old = old[int(key)]
            elif isinstance(old, Mapping) and key in old:
                old = old[key]
            else:  # new, or inside None, which becomes a dict
                _demand_known(key, parts[:depth], old or {}, _at(after.to_dict(), parts[:depth]), options)
                old = None
        _demand_type(name, old, value)


def _demand_known(key: str, path: list[str], old: Mapping[str, Any], new: Mapping[str, Any],
                  options: Iterable[str]) -> None:
    """UserError where nothing reads `key` of the dict at `path`, which was `old` and is `new`."""
    known, closed = _readers_of(path, new, options)
    prefix = "".join(f"{part}." for part in path)
    if key in known or key in ALWAYS:
        return
    if closed or nearest(key, [*known, *old], NEARLY):
        raise unknown(key, [*known, *old], GIVEN, prefix)


def _readers_of(path: list[str], entries: Mapping[str, Any], options: Iterable[str]) -> tuple[list[str], bool]:
    """The entries that a dict of a config may have, and whether there are no others."""
    if not path:
        return [*arguments_of(Runner)[0], *TOP], True
    last = next(part for part in reversed(path) if not part.isdigit())
    if last in LOADERS:
        return [*arguments_of(DataLoader)[0], "num_batch_per_epoch"], True
    if path == ["default_hooks"]:  # a hook of any name, which its type makes one
        return [*HOOKS, *(name.split(".")[1] for name in options if name.startswith("default_hooks.") and
                          name.endswith(".type"))], True
    kind = entries.get("type")
    if kind is None:
        reader = READERS.get(last)
        if reader is None:
            return [], False
        return (list(reader), True) if isinstance(reader, tuple) else (arguments_of(reader)[0], True)
    built = kind if callable(kind) else _registered(kind)
    if built is None:
        return [], False
    names, closed = arguments_of(built)
    return [*names, *BESIDE.get(last, ()), *(["priority"] if path[0].endswith("_hooks") else [])], closed


def _registered(kind: str) -> Callable[..., Any] | None:
    """What mmdet's or mmengine's registries have under that name."""
    import mmdet.registry

    import dada_det.engine.detect.guard  # noqa: F401  fills them

    registries = [registry for registry in (*vars(mmdet.registry).values(), *vars(root).values())
                  if isinstance(registry, Registry)]
    # mmdet's come first: some of its classes have the names of mmcv's.
    found = (registry.get(kind) for registry in sorted(registries, key=lambda registry: registry.scope != "mmdet"))
    return next((built for built in found if built is not None), None)


def _demand_type(name: str, old: Any, value: Any) -> None:
    """UserError where `value` cannot take the place of `old`: a word that of a dict, a number or a yes or no."""
    if isinstance(old, dict) and not isinstance(value, dict | None):
        raise UserError(f"{GIVEN} gives {value!r} for {name}, which is a dict; give its entries, as in "
                        f"{name}.{next(iter(old), 'x')}=value")
    if isinstance(old, bool) and isinstance(value, str):
        raise UserError(f"{GIVEN} gives {value!r} for {name}, which is {old}; give True or False")
    if isinstance(old, int | float) and isinstance(value, str):
        raise UserError(f"{GIVEN} gives {value!r} for {name}, which is {old}; give a number")


def _at(config: Any, path: list[str]) -> Any:
    for key in path:
        config = config[int(key)] if isinstance(config, list | tuple) else config[key]
    return config
