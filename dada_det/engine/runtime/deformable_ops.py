"""More of mmcv's operators in plain PyTorch and torchvision: deformable convolutions, attention, CARAFE, soft-NMS.

The functions keep mmcv's argument order and meaning and, as mmcv's do, write their results into tensors that the caller
made. Gradients are autograd's through the same expression.
Shapes: N boxes; B images, C channels, H x W feature map, D output channels, kernel k x l, P x Q output map, G groups.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

LINEAR, GAUSSIAN = 1, 2  # mmcv's methods of soft-NMS; 0 is plain suppression


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017): the indices of the boxes that are kept, long [kept], in the order of selection.

    The box with the highest score is selected, and the scores of the others fall with their overlap. Boxes under min_score
    are dropped. Writes the selected boxes [N,4] and their scores at selection into the first rows of dets [N,5].
    """
    kept: list[int] = []
    left, now = torch.arange(len(boxes)), scores.clone().float()
    edges = boxes.float() + boxes.new_tensor([0, 0, offset, offset]).float()
    while len(left):
        place = int(now[left].argmax())
        best, left = int(left[place]), torch.cat([left[:place], left[place + 1:]])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], now[best]
        kept.append(best)
        overlap = ops.box_iou(edges[best:best + 1], edges[left])[0]
        if method == GAUSSIAN:
            weight = torch.exp(-overlap ** 2 / sigma)
        else:
            weight = torch.where(overlap >= iou_threshold, 1 - overlap if method == LINEAR else 0.0, 1.0)
        now[left] *= weight
        left = left[now[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def deform_conv_forward(images: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        **sizes: int) -> None:
    """Writes the deformable convolution (Dai et al., ICCV 2017) of images [B,C,H,W] into output [B,D,P,Q]."""
    output.copy_(_convolved(_plain(sizes), images, offset, weight))


def deform_conv_backward_input(images: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor,
                               weight: Tensor, columns: Tensor, **sizes: int) -> None:
    """Writes the gradients of images and offset, given that of the output."""
    found = _gradients([images, offset], grad_output, lambda here: _convolved(_plain(sizes), here[0], here[1], weight))
    _write([grad_input, grad_offset], found)


def deform_conv_backward_parameters(images: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor,
                                    columns: Tensor, ones: Tensor, scale: float = 1.0, **sizes: int) -> None:
    """Adds `scale` times the gradient of the weight to grad_weight [D,C,k,l], given that of the output."""
    weight = torch.zeros_like(grad_weight)  # the convolution is linear in it
    found = _gradients([weight], grad_output, lambda here: _convolved(_plain(sizes), images, offset, here[0]))
    grad_weight += scale * found[0]


def modulated_deform_conv_forward(images: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
                                  output: Tensor, columns: Tensor, with_bias: bool = False, **sizes: int) -> None:
    """Writes the modulated one (Zhu et al., CVPR 2019), each sample times its mask, into output [B,D,P,Q]."""
    output.copy_(_convolved(_modulated(sizes), images, offset, weight, mask, bias if with_bias else None))


def modulated_deform_conv_backward(images: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
                                   columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
                                   grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, with_bias: bool = False,
                                   **sizes: int) -> None:
    """Writes the gradients of all five, given that of the output."""
    inputs, targets = [images, offset, weight, mask], [grad_input, grad_offset, grad_weight, grad_mask]
    if with_bias:
        inputs, targets = [*inputs, bias], [*targets, grad_bias]
    _write(targets, _gradients(inputs, grad_output, lambda here: _convolved(_modulated(sizes), *here)))


def ms_deform_attn_forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor,
                           im2col_step: int = 64) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., ICLR 2021): mmcv's own expression in PyTorch, float [B,queries,C]."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_backward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor,
                            grad_output: Tensor, grad_value: Tensor, grad_locations: Tensor, grad_weights: Tensor,
                            im2col_step: int = 64) -> None:
    """Writes the gradients of value, locations and weights, given that of the output."""
    found = _gradients([value, locations, weights], grad_output,
                       lambda here: ms_deform_attn_forward(here[0], shapes, starts, here[1], here[2]))
    _write([grad_value, grad_locations, grad_weights], found)


def carafe_forward(features: Tensor, masks: Tensor, kept_features: Tensor, kept_output: Tensor, kept_masks: Tensor,
                   output: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> None:
    """CARAFE (Wang et al., ICCV 2019): writes features [B,C,H,W], enlarged `scale_factor` times, into output [B,C,P,Q].

    Each place of the output is the sum of the k x k features around its own, weighted by its masks [B,Gkk,P,Q], one set a
    group of channels. mmcv hands kept_features, and none of the features, to carafe_backward.
    """
    kept_features.copy_(features)
    output.copy_(_reassembled(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(grad_output: Tensor, features: Tensor, masks: Tensor, kept_grad_output: Tensor, kept_grad_large: Tensor,
                    kept_grad_input: Tensor, kept_grad_masks: Tensor, grad_input: Tensor, grad_masks: Tensor,
                    kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Writes the gradients of features and masks, given that of the output."""
    found = _gradients([features, masks], grad_output,
                       lambda here: _reassembled(here[0], here[1], kernel_size, group_size, scale_factor))
    _write([grad_input, grad_masks], found)


def _reassembled(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    images, channels, height, width = features.shape
    around = F.unfold(features, kernel, padding=kernel // 2).view(images, groups, -1, kernel**2, height, width)
    weights = masks.view(images, groups, kernel**2, height, scale, width, scale)
    return torch.einsum("bgckhw,bgkhiwj->bgchiwj", around, weights).reshape(
        images, channels, height * scale, width * scale)


def _convolved(sizes: dict[str, Any], images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None,
               bias: Tensor | None = None) -> Tensor:
    """torchvision's, in float32 for half precision, in which it has no CPU kernel."""
    half = images.dtype in (torch.float16, torch.bfloat16)
    tensors: list[Any] = [tensor if tensor is None or not half else tensor.float()
                          for tensor in (images, offset, weight, bias, mask)]
    return ops.deform_conv2d(*tensors[:4], mask=tensors[4], **sizes).to(images.dtype)


def _plain(sizes: dict[str, int]) -> dict[str, Any]:
    return {"stride": (sizes["dH"], sizes["dW"]), "padding": (sizes["padH"], sizes["padW"]),
            "dilation": (sizes["dilationH"], sizes["dilationW"])}


def _modulated(sizes: dict[str, int]) -> dict[str, Any]:
    return {name: (sizes[f"{short}_h"], sizes[f"{short}_w"])
            for name, short in (("stride", "stride"), ("padding", "pad"), ("dilation", "dilation"))}


def _gradients(inputs: list[Tensor], grad_output: Tensor, forward: Any) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        here = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(forward(here), here, grad_output)


def _write(targets: list[Tensor], found: tuple[Tensor, ...]) -> None:
    for target, value in zip(targets, found, strict=True):
        target.copy_(value)


OPERATORS = (softnms, deform_conv_forward, deform_conv_backward_input, deform_conv_backward_parameters,
             modulated_deform_conv_forward, modulated_deform_conv_backward, ms_deform_attn_forward, ms_deform_attn_backward,
             carafe_forward, carafe_backward)
