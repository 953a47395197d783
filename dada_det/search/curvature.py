"""What one step cannot see: the weights' curvature, by which the validation gradient is divided.

At the end of training w*(d), where grad_w L_train = 0, the implicit function theorem gives the whole hypergradient

    grad_d L_val(w*) = -v^T H^-1 grad_d grad_w L_train,      H the Hessian of L_train      (Lorraine et al., AISTATS 2020)

One virtual step (DARTS, DADA) replaces H^-1 by zeta times the identity. In steep directions it credits an operation with
what later steps would undo; in flat directions it overlooks what later steps would add. We replace H by a running
mean of squared batch gradients (a diagonal Fisher matrix), which a step computes anyway, plus a term that removes the
training gradient itself.
"""

import torch
from torch import Tensor, nn

from dada_det.search.alignment import Weights, dot, trainable

DAMPING = 0.1  # of the mean square: no weight counts more than ten times the mean one
SQUARES_DECAY = 0.95  # a mean over some twenty training batches
V_DECAY = 0.9  # a mean over some ten validation passes


class RunningMean(nn.Module):
    """An exponential running mean over steps of a dictionary of weights, in buffers, so that checkpoints hold it.

    It starts at 0 without a bias correction: its users do not depend on its scale.

    Args:
        decay: 0..1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, parameter in trainable(network).items():
            self.register_buffer(name.replace(".", "/"), torch.zeros_like(parameter))

    @property
    def means(self) -> Weights:
        """The buffers by the weights' names."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def add(self, values: Weights, scale: Weights | Tensor) -> None:
        """mean <- decay * mean + (1 - decay) * scale * value.

        Args:
            scale: one number, or one a weight.
        """
        means = self.means
        own, new = list(means.values()), [values[name] for name in means]
        torch._foreach_mul_(own, self.decay)
        if isinstance(scale, Tensor):
            torch._foreach_add_(own, torch._foreach_mul(new, scale * (1 - self.decay)))
        else:
            torch._foreach_addcmul_(own, new, [scale[name] for name in means], value=1 - self.decay)


class RunningDirection(nn.Module):
    """What a step keeps from earlier steps for its validation direction.

    v: the running mean of the validation gradient's direction. squares: that of the squares of L_train's gradients, from
    which `precondition` takes the curvature.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.v, self.squares = RunningMean(network, V_DECAY), RunningMean(network, SQUARES_DECAY)


@torch.no_grad()
def precondition(direction: Weights, squares: Weights, gradient: Weights) -> Weights:
    """H^-1 direction, with H = diag(S / s + DAMPING) + rho g g^T and rho without bound.

    Args:
        squares: S, a mean of the squares of L_train's batch gradients; s is its mean over all weights.
        gradient: g, that of L_train.

    By Sherman and Morrison's formula the second term takes out of the direction what agrees with g. Every step of the
    training goes along g, whatever the policy. With this part removed, the mean reward of g's own batch is 0.
    """
    own, along, power = list(gradient.values()), [direction[name] for name in gradient], [squares[name] for name in gradient]
    mean = torch.stack(torch._foreach_norm(power, 1)).sum() / sum(square.numel() for square in power)  # none is negative
    inverses = torch._foreach_mul(power, 1 / mean.clamp_min(1e-30))
    torch._foreach_add_(inverses, DAMPING)
    torch._foreach_reciprocal_(inverses)
    divided = torch._foreach_mul(own, inverses)
    coefficient = dot(divided, along) / dot(divided, own).clamp_min(1e-30)
    del divided
    rest = torch._foreach_mul(own, -coefficient)
    torch._foreach_add_(rest, along)
    torch._foreach_mul_(inverses, rest)
    return dict(zip(gradient, inverses, strict=True))
