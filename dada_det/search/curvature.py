"""What one step cannot see: the weights' curvature, by which the validation gradient is divided.

At the end of training w*(d), where grad_w L_train = 0, the implicit function theorem gives the whole hypergradient

    grad_d L_val(w*) = -v^T H^-1 grad_d grad_w L_train,      H the Hessian of L_train      (Lorraine et al., AISTATS 2020)

One virtual step (DARTS, DADA) puts zeta times the identity in the place of H^-1: it credits an operation with what later
steps would undo in the steep directions, and overlooks what they would add up in the flat ones. The diagonal of the Fisher
matrix, from the squares of the gradients at hand, costs no pass.
"""

import torch
from torch import Tensor, nn

from dada_det.search.alignment import Weights

DECAY = 0.95  # of the running mean: the last twenty batches
DAMPING = 0.1  # of the mean square: no weight counts more than ten times the mean one


class Curvature(nn.Module):
    """A running mean of the squares of L_train's gradient, one buffer a weight; part of a search's checkpoints."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, parameter in network.named_parameters():
            self.register_buffer(name.replace(".", "/"), torch.zeros_like(parameter))

    def squares(self) -> Weights:
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}

    @torch.no_grad()
    def update(self, gradient: Weights) -> None:
        """Adds the gradient of one training batch; its scale does not matter, `precondition` divides by the mean."""
        for name, square in self.squares().items():
            square.lerp_(gradient[name].square().to(square.dtype), 1 - DECAY)

    @torch.no_grad()
    def precondition(self, direction: Weights, gradient: Weights) -> Weights:
        """H^-1 direction up to a factor, with H = diag(S + DAMPING s) + rho g g^T and rho without bound.

        S are the squares, s is their mean over all weights, g is L_train's gradient. By Sherman and Morrison's formula the
        second term takes out of the direction what agrees with g: every step of the training goes there, whatever the
        policy, and with it the mean reward of the batch that g is of becomes 0. Changes `direction` in place, so that the
        step holds no further copy of the weights.
        """
        squares = self.squares()
        mean = torch.stack([square.sum() for square in squares.values()]).sum() / sum(s.numel() for s in squares.values())

        def divided(name: str, tensor: Tensor) -> Tensor:
            return tensor * (mean / (squares[name] + DAMPING * mean).clamp_min(1e-30))

        along, length = [], []
        for name, tensor in direction.items():
            divided_gradient = divided(name, gradient[name])
            along.append((divided_gradient * tensor).sum())
            length.append((divided_gradient * gradient[name]).sum())
        share = torch.stack(along).sum() / torch.stack(length).sum().clamp_min(1e-30)
        for name, tensor in direction.items():
            tensor.copy_(divided(name, tensor - share * gradient[name]))
        return direction
