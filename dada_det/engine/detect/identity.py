"""What a detector's training must share with the one that it resumes."""

from typing import Any

from mmengine.config import Config

from dada_det.augment.named import policy_key, resolve_dict, resolve_policy
from dada_det.engine.detect.config import dicts_in
from dada_det.engine.runtime.identity import Identity, plain
from dada_det.files import sha256_of

# What may change on the way, or stands elsewhere in the identity: by name, wherever in the loader's config it is.
LOADER_FREE = ("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "timeout", "batch_size", "ann_file",
               "data_prefix", "data_root", "metainfo", "lazy_init", "serialize_data", "backend_args", "file_client_args")


def identity_of(config: Config, processes: int) -> Identity:
    """Of a config that is ready to train but for broken images: what the weights depend on, hashes for files.

    How long it trains and how often it validates and saves is free; a schedule that follows from the length is not.
    """
    model, loader = config.model.to_dict(), config.train_dataloader.to_dict()
    model.pop("test_cfg", None)
    backbone = model["backbone"]["init_cfg"].pop("checkpoint")
    hooks = [hook for hook in config.get("custom_hooks", []) if hook["type"] != "PolicyEpochHook"]
    steps = [entry for entry in dicts_in([loader["dataset"], hooks]) if entry.get("type") == "ApplyPolicy"]
    files = [entry["ann_file"] for entry in dicts_in(loader["dataset"]) if "ann_file" in entry]
    scaling = config.get("auto_scale_lr") or {}
    return plain({
        "backbone": sha256_of(backbone)[:12],
        "policy": [_policy(step["policy"], step.get("seed", 0)) for step in steps],
        "annotations": [sha256_of(file)[:12] for file in files],
        "batch_size": (loader.get("batch_size") or 1) * processes,
        "scaled_from": scaling.get("base_batch_size") if scaling.get("enable") else None,
        **{name: config.get(name) for name in ("optim_wrapper", "param_scheduler", "randomness")},
        "custom_hooks": _kept(hooks),  # one of them may have a pipeline of its own, as RTMDet's has
        "loop": config.train_cfg.get("type") or config.train_cfg.get("by_epoch"),
        "train_dataloader": _kept(loader),
        "model": model})


def _kept(value: Any) -> Any:
    """The config of a loader, or of hooks, without LOADER_FREE and the policies."""
    if isinstance(value, dict):
        return {name: _kept(entry) for name, entry in value.items() if name not in LOADER_FREE}
    if isinstance(value, list | tuple):
        return [_kept(entry) for entry in value if not (isinstance(entry, dict) and entry.get("type") == "ApplyPolicy")]
    return value


def _policy(policy: Any, seed: int) -> str:
    """The policy's key: not the file's path, whose content may be another one at a resume."""
    return policy_key(resolve_dict(policy, "ApplyPolicy's policy")[0] if isinstance(policy, dict) else
                      resolve_policy(str(policy), seed))[:12]
