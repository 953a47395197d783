"""mmcv's operators that the detectors call, from torchvision, where mmcv was installed without its own.

mmcv looks its compiled operators up in the module `mmcv._ext`. `install()` registers a stand-in under that name; it
does nothing where the compiled module is present. The functions keep mmcv's argument order and meaning and, as mmcv's
do, write their results into tensors that the caller made.
Shapes: N boxes, K classes, R regions of interest, B images, C channels, H x W feature map, P x Q bins a region.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from dada_det.engine.runtime import deformable_ops
from dada_det.errors import UserError

NAME = "mmcv._ext"
BUILD = "pip install --no-build-isolation --no-deps --force-reinstall --no-binary onedl-mmcv onedl-mmcv"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices [kept] long of the boxes [N,4] (x1, y1, x2, y2) that survive, highest score [N] first.

    With offset 1 a box is x2 - x1 + 1 wide; moving its right and lower edge out by one gives the same overlaps.
    """
    edges = boxes.new_tensor([0, 0, offset, offset])
    return ops.nms((boxes + edges).to(_computed(boxes)), scores.to(_computed(boxes)), iou_threshold)


def roi_align_forward(features: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """Writes the averages of features [B,C,H,W] in rois [R,5] (image, x1, y1, x2, y2) into output [R,C,P,Q]."""
    _average_only(pool_mode)
    kind = _computed(features)
    output.copy_(ops.roi_align(features.to(kind), rois.to(kind), (aligned_height, aligned_width), spatial_scale,
                               sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Writes the gradient of the features into grad_input [B,C,H,W], given that of the output [R,C,P,Q]."""
    _average_only(pool_mode)
    kind = _computed(grad_output)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(
        grad_output.to(kind), rois.to(kind), spatial_scale, aligned_height, aligned_width, *grad_input.shape,
        sampling_ratio, aligned))


def sigmoid_focal_loss_forward(logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Writes the focal loss (Lin et al. 2017, Eq. 5) of logits [N,K] into output [N,K].

    target [N] long names each row's class, K standing for background; weight [K], or empty for none, scales a row
    by the weight of its target.
    """
    loss = ops.sigmoid_focal_loss(logits, _one_hot(target, logits), alpha, gamma)
    output.copy_(loss * _row_weights(target, weight))


def sigmoid_focal_loss_backward(logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Writes d loss / d logits into grad_input [N,K].

    With q the probability of the wrong answer (1 - p where the class is the target, else p) and a = alpha or
    1 - alpha, the loss is -a q^gamma log(1 - q) and its derivative by q's logit
    a q^gamma (q - gamma (1 - q) log(1 - q)).
    """
    is_target = _one_hot(target, logits)
    sign = 1 - 2 * is_target  # the logit of q is -x for the target and x for every other class
    wrong, log_right = torch.sigmoid(sign * logits), F.logsigmoid(-sign * logits)
    balance = alpha * is_target + (1 - alpha) * (1 - is_target)
    slope = balance * wrong**gamma * (wrong - gamma * (1 - wrong) * log_right)
    grad_input.copy_(sign * slope * _row_weights(target, weight))


def _one_hot(target: Tensor, logits: Tensor) -> Tensor:
    return F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits.dtype)


def _row_weights(target: Tensor, weight: Tensor) -> Tensor | float:
    """[N,1]: the weight of each row's target; background, which mmcv leaves undefined, counts 1."""
    return torch.cat([weight, weight.new_ones(1)])[target].unsqueeze(1) if weight.numel() else 1.0


def _computed(tensor: Tensor) -> torch.dtype:
    """float32 for half precision, in which torchvision has no CPU kernels and box coordinates lose whole pixels."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _average_only(pool_mode: int) -> None:
    if pool_mode != 1:
        raise UserError(_missing("roi_align with pool_mode='max'"))


def _missing(operator: str) -> str:
    return (f"mmcv was installed without its compiled operators and torchvision has no stand-in for {operator}; "
            f"build mmcv with them, beside the installed torch (about 10 minutes): {BUILD}")


class _Operators(ModuleType):
    """The stand-in for mmcv._ext. mmcv asks for all names while it is imported, so a missing one fails when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise UserError(_missing(name))

        return missing


def install() -> bool:
    """Registers the stand-in unless mmcv's compiled operators are there; returns whether it stands in now."""
    if isinstance(sys.modules.get(NAME), _Operators):
        return True
    if importlib.util.find_spec(NAME) is not None:
        return False
    module = _Operators(NAME)
    module.__spec__ = ModuleSpec(NAME, loader=None)  # mmengine and pkgutil look for one
    for operator in (nms, roi_align_forward, roi_align_backward, sigmoid_focal_loss_forward,
                     sigmoid_focal_loss_backward, *deformable_ops.OPERATORS):
        setattr(module, operator.__name__, operator)
    sys.modules[NAME] = module
    return True
