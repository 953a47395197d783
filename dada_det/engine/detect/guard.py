"""Backbones with the load guard: MMDetection's ResNet-50 and timm's networks. Importing this module registers them.

MMDetection loads a backbone with strict=False and starts from random numbers without a word. Here training refuses to
start unless every tensor came from the file and the file's preprocessing is the detector's. Configs name this module
under custom_imports, so MMDetection's own tools/train.py is guarded too.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dada_det.engine.detect.adopt import FACTS, STRIDES, facts_in
from dada_det.engine.runtime import mmcv_ops
from dada_det.errors import UserError
from dada_det.files import sha256_of
from dada_det.models.backbone import load_backbone, timm_features

mmcv_ops.install()  # before mmdet.models, which imports mmcv.ops
# mmdet tells on every import which optional packages it does not find.
warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
with contextlib.redirect_stdout(io.StringIO()):
    from mmdet import datasets, evaluation  # noqa: F401
    from mmdet.models.backbones import ResNet
    from mmdet.registry import MODELS


class Guarded(BaseModule):
    """A backbone all of whose weights come from init_cfg=dict(type='Pretrained', checkpoint=FILE).

    init_weights() raises UserError if FILE lacks a tensor. The first training step raises it if BackboneGuardHook has not
    compared FILE's preprocessing with the detector's.
    """

    meta: dict[str, Any] | None = None  # what belongs to the weights (models/backbone.py), once they are loaded
    sha256 = ""  # of their file
    preprocessing_checked = False

    def init_weights(self) -> None:
        path = (self.init_cfg or {}).get("checkpoint") if isinstance(self.init_cfg, dict) else None
        if not path:
            raise UserError(f"{type(self).__name__} needs init_cfg=dict(type='Pretrained', checkpoint=FILE) with FILE a "
                            "backbone that tools/pretrain_r50.sh exported")
        weights, meta = load_backbone(path)
        self.fill(weights, meta, path)
        self.meta, self.sha256 = meta, sha256_of(path)
        self._is_init = True

    def fill(self, weights: dict[str, Tensor], meta: dict[str, Any], path: str) -> None:
        """Loads the file's weights.

        Raises:
            UserError: the weights are of another network.
        """
        raise NotImplementedError

    def demand_checked(self) -> None:
        if self.training and not self.preprocessing_checked:
            raise UserError("nobody compared the backbone file's mean, std and channel order with the detector's; add "
                            "custom_hooks=[dict(type='BackboneGuardHook')] to the config")


@MODELS.register_module()
class DADAResNet(Guarded, ResNet):
    """MMDetection's ResNet-50 (its options), Guarded."""

    def fill(self, weights: dict[str, Tensor], meta: dict[str, Any], path: str) -> None:
        if self.style != "pytorch":
            raise UserError(f"DADAResNet has style={self.style!r}, but {path} was trained with the strides of "
                            "style='pytorch'; set model.backbone.style to it")
        if meta.get("library") == "timm":
            raise UserError(f"the backbone {path} is timm's {meta['architecture']}, and DADAResNet is a ResNet-50; "
                            "tools/train_det.py --backbone builds the detector around it")
        try:
            self.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise UserError(f"the detector's backbone is no plain ResNet-50, so {path} does not fill it; make it "
                            "DADAResNet with depth=50") from error

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        self.demand_checked()
        return super().forward(images_BCHW)


@MODELS.register_module()
class DADATimm(Guarded):
    """A network of timm's, its feature maps at `strides`, Guarded; options as MMDetection's ResNet has them.

    Args:
        architecture: timm's name.
        strides: of the maps that the neck takes.
        frozen_stages: so many of the stages that end at STRIDES, as a ResNet's do, keep the file's weights and statistics,
            whichever of them give maps to the neck; what comes before them, too.
        norm_eval: BatchNorm keeps the file's statistics.
        norm_cfg: type SyncBN makes BatchNorm that; requires_grad=False keeps its scales and shifts. Other normalisation
            layers stay as the network has them.
    """

    def __init__(self, architecture: str, frozen_stages: int = -1, norm_eval: bool = False,
                 norm_cfg: dict[str, Any] | None = None, init_cfg: dict[str, Any] | None = None,
                 strides: Sequence[int] = STRIDES) -> None:
        super().__init__(init_cfg)
        self.architecture, self.frozen_stages, self.norm_eval = architecture, frozen_stages, norm_eval
        self.maps = feature_maps(architecture, strides)
        norm_cfg = norm_cfg or {}
        if norm_cfg.get("type") == "SyncBN":
            from timm.layers import convert_sync_batchnorm

            self.maps = convert_sync_batchnorm(self.maps)
        if not norm_cfg.get("requires_grad", True):
            for module in self.batch_norms():
                module.requires_grad_(False)
        for module in self.frozen():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
        self.train()

    def fill(self, weights: dict[str, Tensor], meta: dict[str, Any], path: str) -> None:
        if meta.get("architecture") != self.architecture:
            raise UserError(f"the backbone {path} is a {meta.get('architecture', 'resnet50')}, and the detector is built "
                            f"around {self.architecture}; give a file of that network")
        # The network here has no classifier and no layer behind the last map.
        names = self.maps.model.state_dict()
        self.maps.model.load_state_dict({name: weights[name] for name in names}, strict=True)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        self.demand_checked()
        return tuple(self.maps(images_BCHW))

    def train(self, mode: bool = True) -> "DADATimm":
        super().train(mode)
        for module in [*self.frozen(), *(self.batch_norms() if self.norm_eval else [])]:
            if not list(module.children()):  # a module with parts also holds some that learn
                module.eval()
        return self

    def batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def frozen(self) -> list[nn.Module]:
        """The modules up to the end of stage `frozen_stages`, in the order in which timm's networks run them."""
        if self.frozen_stages < 1:
            return []
        ends = {entry["reduction"]: entry["module"] for entry in reversed(self.maps.feature_info.info)
                if entry["reduction"] <= STRIDES[self.frozen_stages - 1]}
        if not ends:  # its first map is of a later stage
            return []
        stage = ends[max(ends)]
        names = [name for name, _ in self.maps.model.named_modules()]
        last = [place for place, name in enumerate(names) if f"{name}.".startswith(f"{stage}.")]
        if not last:
            raise UserError(f"timm's {self.architecture} does not tell where its stages end, so none can be frozen; add "
                            "--cfg-options model.backbone.frozen_stages=-1")
        return list(self.maps.model.modules())[:last[-1] + 1]


def feature_maps(architecture: str, strides: Sequence[int] = STRIDES) -> Any:
    """timm's network without what comes after its last feature map; gives float [B,C,H/s,W/s] for each s of `strides`.

    Raises:
        UserError: the network has no such maps, or takes images of one size only.
    """
    import timm  # takes seconds

    def build() -> Any:
        own = timm_features(architecture)["strides"]
        if not set(strides) <= set(own):
            raise ValueError(f"its maps have the strides {', '.join(map(str, own))}")
        return timm.create_model(architecture, pretrained=False, features_only=True, feature_cls="getter",
                                 out_indices=[own.index(stride) for stride in strides])

    try:
        with torch.device("meta"):
            network = build().eval()
            for height, width in ((96, 160), (128, 64)):
                shapes = [tuple(found.shape[2:]) for found in network(torch.zeros(1, 3, height, width))]
                if shapes != [(height // stride, width // stride) for stride in strides]:
                    raise ValueError(f"its maps of {height} x {width} px are {shapes}")
    except Exception as error:  # networks built for one size, or without maps, raise errors of many types
        why = str(error).strip() or type(error).__name__
        raise UserError(f"timm's {architecture} cannot be a detector's backbone, which gives maps at strides "
                        f"{', '.join(map(str, strides))} for images of any size ({why}); pretrain another") from error
    return build()


@HOOKS.register_module()
class BackboneGuardHook(Hook):
    """Lets training start only with a Guarded backbone whose file's preprocessing equals the detector's.

    Every checkpoint tells the hash of that file and, of its JSON, what a test has to know (adopt.facts_in). One that is
    resumed, or loaded by load_from, replaces all weights, and has to be of a detector that began with the same.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        check_preprocessing(_detector(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        backbone = _detector(runner).backbone
        checkpoint["meta"]["backbone_sha256"] = getattr(backbone, "sha256", "")
        checkpoint["meta"][FACTS] = facts_in(getattr(backbone, "meta", None) or {})

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        backbone = _detector(runner).backbone
        if not isinstance(backbone, Guarded) or backbone.meta is None:  # a test, which takes all weights from the checkpoint
            return
        tensors = checkpoint.get("state_dict", checkpoint)
        replaced = any(name.removeprefix("module.").startswith("backbone.") for name in tensors)
        if replaced and (checkpoint.get("meta") or {}).get("backbone_sha256") != backbone.sha256:
            raise UserError(f"the checkpoint {runner._load_from} would replace the weights of the backbone "
                            f"{backbone.init_cfg['checkpoint']} by those of a detector that did not begin with them; "
                            "leave it out, or give the backbone that it began with")


@HOOKS.register_module()
class LearningRateNote(Hook):
    """Prints one line at the start where auto_scale_lr has changed the learning rate, linear in the total batch.

    mmengine multiplies by batch / base_batch_size (Goyal et al., arXiv:1706.02677) and says so in the log file only.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def before_train(self, runner: Runner) -> None:
        scaling = runner.auto_scale_lr or {}
        batch = runner.world_size * runner.cfg.train_dataloader.batch_size
        if scaling.get("enable") and batch != scaling["base_batch_size"] and is_main_process():
            group = runner.optim_wrapper.param_groups[0]  # as the optimiser has it: after a resume that of the checkpoint
            rate = group["lr"] if runner.iter else group.get("initial_lr", group["lr"])  # a warm-up begins far below
            print(f"{self.stage}  learning rate {rate:.4g}: the config's {runner.cfg.optim_wrapper.optimizer.lr:g} is "
                  f"for {scaling['base_batch_size']} images a step and this run has {batch} "
                  "(--cfg-options auto_scale_lr.enable=False keeps it)", flush=True)


def _detector(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def check_preprocessing(detector: nn.Module) -> None:
    """Raises UserError unless the backbone is Guarded and loaded, and file and detector normalise images in the same way."""
    backbone: Any = detector.backbone
    preprocessor: Any = detector.data_preprocessor
    if not isinstance(backbone, Guarded) or backbone.meta is None:
        raise UserError("the detector's backbone was not loaded through DADAResNet; set model.backbone.type to it")
    # mmcv decodes BGR, so the network sees RGB exactly where the preprocessor converts.
    used: dict[str, Any] = {"channel_order": "RGB" if preprocessor._channel_conversion else "BGR"}
    for name in ("mean", "std"):
        used[name] = getattr(preprocessor, name).flatten().tolist() if preprocessor._enable_normalize else None
    for name, value in used.items():
        expected = backbone.meta[name]
        if not (value == expected or (isinstance(value, list) and all(map(_close, value, expected)))):
            raise UserError(f"the detector's data_preprocessor has {name} {value}, but the backbone "
                            f"{backbone.init_cfg['checkpoint']} was trained with {expected}; make them equal")
    backbone.preprocessing_checked = True


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-4)
