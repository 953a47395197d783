"""The alignment of a training gradient with the validation gradient: the one number that a search learns from (Eq. 12).

    R_i = d/d eps  l_i(w + eps v)  at eps = 0,      v = grad L_val(w'),      w' = w - zeta grad L_train(w, q)

(docs/method.md; DADA's default takes v at w). Weights are dictionaries of tensors by parameter
name. But for `training_gradient`, which updates BatchNorm's running buffers, no pass here changes the network.
B images, C channels, H height, W width.

`low` (torch.bfloat16) is for the passes with a gradient, and for DAAS's comparison of whole networks. Rewards are
differences of nearly equal losses, of which bfloat16 keeps eight bits: never difference against a bfloat16 loss, not even at
one end (tested).

Every function takes a classifier, whose logits [B,K] and labels [B] give cross-entropies, or a LossNetwork. Parameters that
are frozen (requires_grad is False) are no weights; a weight that a pass does not use has a gradient of zeros.

What is done to all weights is done by torch._foreach_*: on a GPU a few launches for all of them, and not one for each.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

Weights = dict[str, Tensor]
Tensors = list[Tensor] | tuple[Tensor, ...]
Ends = tuple[Weights, Weights, Tensor]  # of `ends_consuming`
RELATIVE_STEP = 0.01  # eps = RELATIVE_STEP / ||v||, as in DARTS and DADA
ONE_SIDED_STEP = 0.003  # its error grows with eps and not with its square (2-5 % at 0.01, under 2 % here, ResNets)


class Targets(Protocol):
    """The targets of B images, which a slice or an index tensor chooses; a classifier's are its labels, long [B]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Self: ...

    def repeat(self, times: int, /) -> Self: ...

    def __add__(self, other: Self, /) -> Self: ...  # `joined` where they are no labels


def joined(first: Targets, second: Targets) -> Targets:
    """The targets of one batch and, after them, those of another."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return first + second


class LossNetwork(nn.Module):
    """A network that gives the loss of every image itself, such as a detector."""

    def forward(self, images_BCHW: Tensor, targets_B: Targets) -> Tensor:
        """The losses [B].

        All passes that are given the same targets object must give one function of the weights. What a network chooses by
        its weights and must not choose anew (a detector's proposals) it keeps in that object at the first of these passes.
        """
        raise NotImplementedError


def losses_at(network: nn.Module, weights: Weights, images_BCHW: Tensor, targets_B: Targets,
              low: torch.dtype | None = None) -> Tensor:
    """Returns the loss of every image [B] at `weights`. In train mode BatchNorm uses the batch's statistics."""
    buffers = copies(dict(network.named_buffers())) if network.training else {}
    return _losses(network, lambda *inputs: functional_call(network, {**weights, **buffers}, inputs), images_BCHW, targets_B,
                   low)


def _losses(network: nn.Module, call: Callable[..., Tensor], images_BCHW: Tensor, targets_B: Targets,
            low: torch.dtype | None) -> Tensor:
    own = isinstance(network, LossNetwork)
    with torch.autocast(images_BCHW.device.type, dtype=low, enabled=low is not None):
        outputs = call(images_BCHW, targets_B) if own else call(images_BCHW)
    if low is not None:
        outputs = outputs.float()
    if own:
        return outputs
    assert isinstance(targets_B, Tensor)
    return F.cross_entropy(outputs, targets_B, reduction="none")


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The network's parameters by name, without the frozen ones."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def weights_of(network: nn.Module) -> Weights:
    """Returns the network's trainable parameters by name, without a graph; they share memory with the network."""
    return {name: parameter.detach() for name, parameter in trainable(network).items()}


def training_gradient(network: nn.Module, images_BCHW: Tensor, targets_B: Targets,
                      low: torch.dtype | None = None) -> tuple[Weights, Tensor]:
    """Returns (gradient of the mean loss by name, loss of each image [B]) at the network's own weights.

    This is the one pass that updates BatchNorm's running buffers.
    """
    losses_B = _losses(network, network, images_BCHW, targets_B, low)
    return _gradient(losses_B.mean(), trainable(network)), losses_B.detach()


def gradient_at(network: nn.Module, weights: Weights, images_BCHW: Tensor, targets_B: Targets,
                low: torch.dtype | None = None) -> Weights:
    """Returns the gradient of the mean loss at `weights`, by name."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    return _gradient(losses_at(network, leaves, images_BCHW, targets_B, low).mean(), leaves)


def _gradient(loss: Tensor, weights: Mapping[str, Tensor]) -> Weights:
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: torch.zeros_like(weight) if gradient is None else laid_out_as(weight, gradient)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}


def laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the weight's strides, which torch's functions of many tensors want; mostly the gradient itself."""
    if gradient.stride() == weight.stride():
        return gradient
    if all(size == 1 or own == other for size, own, other in zip(weight.shape, gradient.stride(), weight.stride(),
                                                                 strict=True)):
        return gradient.as_strided(weight.shape, weight.stride())  # of 1 x 1 convolutions two layouts are one
    return torch.empty_like(weight).copy_(gradient)


def copies(tensors: Mapping[str, Tensor]) -> Weights:
    """New tensors of the same values: on a GPU by one launch for many where they are numbers, as BatchNorm's are."""
    made: Weights = {}
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
        own = [tensors[name] for name in names]
        made |= zip(names, torch._foreach_mul(own, 1) if dtype in (torch.float32, torch.int64)
                    else [tensor.clone() for tensor in own], strict=True)
    return made


@torch.no_grad()
def step(weights: Weights, direction: Weights, size: float | Tensor) -> Weights:
    """weights + size * direction, in new tensors; the virtual step is step(w, g, -zeta)."""
    own, along = list(weights.values()), [direction[name] for name in weights]
    if isinstance(size, float):
        moved = torch._foreach_add(own, along, alpha=size)
    else:
        moved = torch._foreach_mul(along, size)  # nobody waits for a size that is on a device
        torch._foreach_add_(moved, own)
    return dict(zip(weights, moved, strict=True))


def norm(direction: Weights) -> Tensor:
    """The Euclidean norm over all tensors."""
    return torch.stack(torch._foreach_norm(list(direction.values()))).norm()


def inner(first: Weights, second: Weights) -> Tensor:
    """The inner product over all tensors: of a batch's gradient with v it is the mean of the batch's rewards, exactly."""
    return dot(list(first.values()), [second[name] for name in first])


def dot(first: Tensors, second: Tensors) -> Tensor:
    """The sum of all products of two lists of dense tensors; on a GPU in a few launches, however many tensors they hold."""
    if not first[0].is_cuda:
        return torch.stack([one.flatten() @ other.flatten() for one, other in zip(first, second, strict=True)]).sum()
    return torch.cat([in_memory_order(product) for product in torch._foreach_mul(first, second)]).sum()


def in_memory_order(tensor: Tensor) -> Tensor:
    """A view of a dense tensor's numbers, one after the other, without a copy whatever its layout."""
    return tensor.as_strided((tensor.numel(),), (1,))


@torch.no_grad()
def ends_consuming(weights: Weights, direction: Weights, relative_step: float = RELATIVE_STEP) -> Ends:
    """(weights + eps v, weights - eps v, eps) of a central difference along v, eps = relative_step / ||v||.

    Empties the dictionary `direction`: its tensors are freed here where nobody else holds them.
    """
    epsilon = relative_step / norm(direction).clamp_min(1e-12)
    own = list(weights.values())
    moves = torch._foreach_mul([direction.pop(name) for name in weights], epsilon)
    above = torch._foreach_add(own, moves)
    torch._foreach_neg_(moves)
    torch._foreach_add_(moves, own)
    return dict(zip(weights, above, strict=True)), dict(zip(weights, moves, strict=True)), epsilon


@torch.no_grad()
def rewards_between(network: nn.Module, ends: Ends, images_BCHW: Tensor, targets_B: Targets, log: bool = False) -> Tensor:
    """Returns R_i of each image [B] by a central difference: two forward passes.

    Args:
        ends: of `ends_consuming`.
        log: takes the reward of log(1 + l_i), so that images with a large loss count no more than others.
    """
    above, below, epsilon = ends
    above_B, below_B = (losses_at(network, end, images_BCHW, targets_B) for end in (above, below))
    if log:
        above_B, below_B = above_B.log1p(), below_B.log1p()
    return (above_B - below_B) / (2 * epsilon)


@torch.no_grad()
def rewards(network: nn.Module, weights: Weights, direction: Weights, images_BCHW: Tensor, targets_B: Targets,
            relative_step: float | None = None, losses_B: Tensor | None = None) -> Tensor:
    """Returns R_i of each image [B] along `direction`: by a central difference (two passes), with `losses_B` one-sided.

    Args:
        relative_step: eps times ||direction||; default RELATIVE_STEP, or ONE_SIDED_STEP with losses_B.
        losses_B: float32 losses at `weights`, from a training pass. With them a one-sided difference takes one pass.
    """
    if losses_B is None:
        ends = ends_consuming(weights, dict(direction), relative_step or RELATIVE_STEP)
        return rewards_between(network, ends, images_BCHW, targets_B)
    epsilon = (relative_step or ONE_SIDED_STEP) / norm(direction).clamp_min(1e-12)
    above_B = losses_at(network, step(weights, direction, epsilon), images_BCHW, targets_B)
    return (above_B - losses_B) / epsilon


def rewards_forward_mode(network: nn.Module, weights: Weights, direction: Weights, images_BCHW: Tensor,
                         targets_B: Targets) -> Tensor:
    """Returns R_i of each image [B], exactly, by one forward-mode pass (a Jacobian-vector product)."""
    return jvp(lambda w: losses_at(network, w, images_BCHW, targets_B), (weights,), (direction,))[1].detach()


def losses_and_pixel_sums(network: nn.Module, weights: Weights, images_BCHW: Tensor,
                          targets_B: Targets) -> tuple[Tensor, Tensor]:
    """Returns (losses [B], the sum of each loss's derivative over all pixels of its image [B]) at `weights`.

    The sum is the straight-through derivative for a magnitude: Eq. 10 of DADA sets every pixel's derivative to 1.
    """
    images_BCHW = images_BCHW.detach().requires_grad_()
    losses_B = losses_at(network, weights, images_BCHW, targets_B)
    (gradient_BCHW,) = torch.autograd.grad(losses_B.sum(), images_BCHW)
    return losses_B.detach(), gradient_BCHW.sum((1, 2, 3))
