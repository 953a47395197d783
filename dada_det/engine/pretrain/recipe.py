"""How pretraining optimises: the config's plain keys as mmengine's optimiser wrapper, schedulers, hooks and visualiser.

A batch may be computed in parts (`accumulation`); schedules and averages count updates of the weights, not parts.
"""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook, ParamSchedulerHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from dada_det.engine.pretrain import classifier  # noqa: F401 (registers BFloat16OptimWrapper)
from dada_det.engine.pretrain.data import parts_of
from dada_det.errors import UserError
from dada_det.keys import arguments_of, nearest, unknown

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@HOOKS.register_module()
class SchedulePerUpdate(ParamSchedulerHook):
    """Steps the schedulers after each update of the weights, which `parts` training steps make together."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if (runner.iter + 1) % self.parts == 0:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


@HOOKS.register_module()
class AverageWeights(EMAHook):
    """mmengine's EMAHook, once an update, and with buffers that are the same on every rank.

    While it validates, and in `state_dict` of every checkpoint, the average stands in the place of the weights.
    """

    def __init__(self, parts: int, **options: Any) -> None:
        super().__init__(**options)
        self.parts = parts

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if (runner.iter + 1) % self.parts == 0:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        # As SyncBuffersHook does for the weights: each rank has averaged the BatchNorm statistics of its own images.
        all_reduce_params(self.ema_model.module.buffers(), op="mean")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay:
    """timm's parameter groups for fine-tuning.

    Each layer learns `layer_decay` times as fast as the one after it, and the classifier at optimizer.lr. Biases and
    normalisation layers have no weight decay."""

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any]) -> None:
        self.wrapper, self.layer_decay = optim_wrapper_cfg, paramwise_cfg["layer_decay"]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        from timm.optim import param_groups_layer_decay

        wrapper = dict(self.wrapper)
        options = wrapper.pop("optimizer")
        unwrapped: Any = model.module if is_model_wrapper(model) else model
        network = unwrapped.network
        kept = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        groups = param_groups_layer_decay(network, options.get("weight_decay", 0.0), kept, layer_decay=self.layer_decay)
        for group in groups:
            group["lr"] = options["lr"] * group.pop("lr_scale")
        return OPTIM_WRAPPERS.build({**wrapper, "optimizer": OPTIMIZERS.build({**options, "params": groups})})


def optimizer(config: Config) -> dict[str, Any]:
    """The optimiser wrapper: autocast to config.precision, one update for `accumulation` parts of a batch.

    Entries of the config: clip_grad, the norm that no update's gradient exceeds; layer_decay, see LayerDecay; precision.

    precision "auto": bfloat16 on a GPU that has it, float16 on an older one, float32 on the CPU.

    Raises:
        UserError: the device cannot compute in config.precision.
    """
    if config.optimizer.get("type") == "Lamb" and OPTIMIZERS.get("Lamb") is None:
        from timm.optim import Lamb

        OPTIMIZERS.register_module(module=Lamb)
    kind = config.optimizer.get("type")
    if not isinstance(kind, str) or OPTIMIZERS.get(kind) is None:
        raise UserError(f"optimizer.type is {kind!r}, which torch.optim does not have; write "
                        f"{nearest(str(kind), OPTIMIZERS.module_dict) or 'SGD'}")
    wrapper: dict[str, Any] = {"type": "OptimWrapper", "optimizer": dict(config.optimizer),
                               "accumulative_counts": parts_of(config)}
    if config.get("paramwise_cfg"):
        wrapper["paramwise_cfg"] = dict(config.paramwise_cfg)
    if config.get("layer_decay"):
        if config.get("paramwise_cfg") or not 0 < config.layer_decay <= 1:
            raise UserError(f"layer_decay is {config.layer_decay}; write a number in 0..1, and paramwise_cfg = dict(), as "
                            "it takes the place of that")
        wrapper |= {"constructor": "LayerDecay", "paramwise_cfg": {"layer_decay": config.layer_decay}}
    if config.get("clip_grad"):
        wrapper["clip_grad"] = {"max_norm": config.clip_grad}
    precision = precision_of(config)
    if precision == "bfloat16":
        wrapper["type"] = "BFloat16OptimWrapper"
    elif precision == "float16":
        wrapper.update(type="AmpOptimWrapper", dtype="float16")
    return wrapper


def precision_of(config: Config) -> str:
    if config.precision not in PRECISIONS:
        raise UserError(f"precision is {config.precision!r}; write one of {', '.join(PRECISIONS)}")
    on_gpu = torch.cuda.is_available()
    if config.precision == "float16" and not on_gpu:
        raise UserError("precision = 'float16' needs a GPU, and there is none here; write precision = 'bfloat16' or "
                        "'float32'")
    if config.precision != "auto":
        return config.precision
    if not on_gpu:
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def scale_lr(config: Config) -> dict[str, Any]:
    """The Runner's auto_scale_lr; it counts the images of one step, which is one part of a batch."""
    return {"enable": config.auto_scale_lr.enable,
            "base_batch_size": config.auto_scale_lr.base_batch_size / parts_of(config)}


def schedule(config: Config, updates_per_epoch: int) -> list[dict[str, Any]]:
    """A linear warm-up over at most a tenth of the updates, then the cosine to zero, or drops to a tenth.

    The warm-up rises from warmup_from x optimizer.lr, at least one part in updates, to optimizer.lr after warmup_epochs.
    lr_drops: the shares of the training after which the rate falls to a tenth; None for the cosine.
    """
    updates = config.epochs * updates_per_epoch
    warmup = min(round(config.get("warmup_epochs", 0) * updates_per_epoch), updates // 10)
    drops = config.get("lr_drops")
    if drops:
        rest = {"type": "MultiStepLR", "by_epoch": False, "gamma": 0.1,
                "milestones": [round(share * updates) for share in drops]}
    else:
        rest = {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warmup, "end": updates, "T_max": updates - warmup}
    if warmup == 0:
        return [rest]
    start = max(config.get("warmup_from", 0.0), 1 / (warmup + 1))
    # mmengine ends a scheduler before its `end`: with one more the rate is optimizer.lr at update `warmup`.
    return [{"type": "LinearLR", "by_epoch": False, "begin": 0, "end": warmup + 1, "start_factor": start}, rest]


def averaging(config: Config) -> list[dict[str, Any]]:
    """The hook that averages the weights, where the config has `ema` (arguments of ExponentialMovingAverage)."""
    if not config.get("ema"):
        return []
    average = MODELS.get(kind := config.ema.get("ema_type", "ExponentialMovingAverage"))
    if average is None:
        raise UserError(f"ema.ema_type is {kind!r}, which mmengine does not have; write "
                        f"{nearest(str(kind), MODELS.module_dict) or 'ExponentialMovingAverage'}")
    known = dict.fromkeys([*arguments_of(EMAHook)[0], *arguments_of(average)[0][1:]])  # but for the model
    for name in config.ema:
        if name not in known:
            raise unknown(name, known, "the config", "ema.")
    return [{"type": "AverageWeights", "parts": parts_of(config), **config.ema}]
