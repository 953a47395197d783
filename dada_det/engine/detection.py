"""DADAResNet: MMDetection's ResNet-50 plus the load guard. Importing this module registers it in mmdet's MODELS.

MMDetection loads a backbone with strict=False and starts from random numbers without a word. Here training refuses to
start unless every tensor came from the file and the file's preprocessing is the detector's. Configs name this module
under custom_imports, so MMDetection's own tools/train.py is guarded too.
"""

import contextlib
import io
import math
import warnings
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dada_det.engine import mmcv_ops
from dada_det.errors import UserError
from dada_det.models.backbone import load_backbone

mmcv_ops.install()  # before mmdet.models, which imports mmcv.ops
# mmdet tells on every import which optional packages it does not find.
warnings.filterwarnings("ignore", message="faster_coco_eval is not installed")
with contextlib.redirect_stdout(io.StringIO()):
    from mmdet import datasets, evaluation  # noqa: F401
    from mmdet.models.backbones import ResNet
    from mmdet.registry import MODELS


@MODELS.register_module()
class DADAResNet(ResNet):
    """ResNet-50 whose weights come, all of them, from init_cfg=dict(type='Pretrained', checkpoint=FILE).

    UserError from init_weights() where FILE does not give every tensor, and from the first training step where nobody
    has compared FILE's preprocessing with the detector's (BackboneGuardHook does).
    """

    meta: dict[str, Any] | None = None  # what belongs to the weights (models/backbone.py), once they are loaded
    preprocessing_checked = False

    def init_weights(self) -> None:
        path = (self.init_cfg or {}).get("checkpoint") if isinstance(self.init_cfg, dict) else None
        if not path:
            raise UserError("DADAResNet needs init_cfg=dict(type='Pretrained', checkpoint=FILE) with FILE a backbone "
                            "that tools/pretrain_r50.sh exported")
        if self.style != "pytorch":
            raise UserError(f"DADAResNet has style={self.style!r}, but {path} was trained with the strides of "
                            "style='pytorch'; set model.backbone.style to it")
        weights, self.meta = load_backbone(path)
        try:
            self.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise UserError(f"the detector's backbone is no plain ResNet-50, so {path} does not fill it; make it "
                            "DADAResNet with depth=50") from error
        self._is_init = True

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        if self.training and not self.preprocessing_checked:
            raise UserError("nobody compared the backbone file's mean, std and channel order with the detector's; add "
                            "custom_hooks=[dict(type='BackboneGuardHook')] to the config")
        return super().forward(images_BCHW)


@HOOKS.register_module()
class BackboneGuardHook(Hook):
    """Lets training start only with a DADAResNet whose file's preprocessing equals the detector's."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        check_preprocessing(runner.model.module if is_model_wrapper(runner.model) else runner.model)


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
            given = runner.cfg.optim_wrapper.optimizer.lr
            print(f"{self.stage}  learning rate {given * batch / scaling['base_batch_size']:.4g}: the config's {given:g} is "
                  f"for {scaling['base_batch_size']} images a step and this run has {batch} "
                  "(--cfg-options auto_scale_lr.enable=False keeps it)", flush=True)


def check_preprocessing(detector: nn.Module) -> None:
    """UserError unless the detector's backbone is a loaded DADAResNet and both normalise images in the same way."""
    backbone: Any = detector.backbone
    preprocessor: Any = detector.data_preprocessor
    if not isinstance(backbone, DADAResNet) or backbone.meta is None:
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
