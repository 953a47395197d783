"""The trainings of a trial: one with each policy from the same weights on the same batches, and how they are judged.

B images of a batch, V validation images, K classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.search import alignment

State = dict[str, Tensor]
Batches = Callable[[int], tuple[Tensor, alignment.Targets]]  # step from 0 -> (images for the network [B,3,H,W], targets)
SGD, ADAMW = "SGD", "AdamW"
HOTTEST = 20.0  # temperature; a network that knows nothing would ask for an infinite one


@dataclass(frozen=True)
class TrainingRecipe:
    """SGD with momentum, or AdamW; the learning rate falls from `lr` to zero by a cosine.

    Args:
        momentum: of SGD.
        nesterov: whether it is Nesterov's. None: it is if there is momentum without dampening.
        at_once: images of a pass at most; a larger batch takes several equal passes, and BatchNorm's statistics are those of
            one, as with several GPUs they are those of one GPU. None: the whole batch is one pass.
        options: further arguments of torch's optimizer, such as AdamW's betas.
        averaged: fraction of the steps, the last ones, whose mean weights are judged; it takes most of the training noise
            away (Izmailov et al., UAI 2018). 0 judges the weights of the last step.
    """

    steps: int
    lr: float
    momentum: float = 0.9
    nesterov: bool | None = None
    weight_decay: float = 0.0
    clip_grad: float | None = 5.0
    averaged: float = 0.3
    optimizer: str = SGD
    at_once: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer of these parameters."""
        if self.optimizer == ADAMW:
            return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, **self.options)
        nesterov = self.nesterov
        if nesterov is None:
            nesterov = self.momentum > 0 and not self.options.get("dampening")  # torch refuses both at once
        return torch.optim.SGD(parameters, self.lr, self.momentum, nesterov=nesterov,
                               weight_decay=self.weight_decay, **self.options)


def train(network: nn.Module, batches: Batches, recipe: TrainingRecipe, seed: int, low: torch.dtype | None = None) -> None:
    """Trains `network` (a classifier or an alignment.LossNetwork) in place and leaves the averaged weights in it.

    Args:
        seed: of the dropout and the like in a step; the batches bring their own randomness.
        low: dtype of autocast.
    """
    parameters = alignment.trainable(network)
    optimizer = recipe.build(parameters.values())
    first_averaged = recipe.steps - max(1, round(recipe.averaged * recipe.steps))
    mean: State = {}
    network.train()
    for step in range(recipe.steps):
        images_BCHW, targets_B = batches(step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        torch.manual_seed(seed * 1_000_003 + step)
        gradient = mean_gradient(network, images_BCHW, targets_B, recipe.at_once, low)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name]
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_grad)
        optimizer.step()
        if step >= first_averaged and recipe.averaged:
            add_to_mean(mean, network, step - first_averaged + 1)
    if mean:
        network.load_state_dict(mean)


def mean_gradient(network: nn.Module, images_BCHW: Tensor, targets_B: alignment.Targets, at_once: int | None = None,
                  low: torch.dtype | None = None) -> State:
    """The gradient of the mean loss by name, in as few equal passes as have at most `at_once` images each."""
    total: State = {}
    passes = math.ceil(len(images_BCHW) / (at_once or len(images_BCHW)))
    for rows in torch.arange(len(images_BCHW)).tensor_split(passes):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        gradient, _ = alignment.training_gradient(network, images_BCHW[part], targets_B[part], low)
        for name, own in gradient.items():
            share = own * (len(rows) / len(images_BCHW))
            total[name] = total[name] + share if name in total else share
    return total


@torch.no_grad()
def add_to_mean(mean: State, network: nn.Module, count: int) -> None:
    """Makes `mean` that of `count` states of the network, of which this is the last; whole numbers are the last state's."""
    for name, tensor in network.state_dict().items():
        if name in mean and tensor.is_floating_point():
            mean[name].lerp_(tensor, 1 / count)
        else:
            mean[name] = tensor.clone()


def temperature_of(logits_VK: Tensor, labels_V: Tensor) -> float:
    """The temperature by which cross-entropy on these images is smallest (Guo et al., ICML 2017), in 1/HOTTEST..HOTTEST.

    Found by golden sections on its logarithm; the loss is convex in its inverse.
    """
    logits_VK = logits_VK.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits_VK / math.exp(log_t), labels_V))

    low, high, golden = -math.log(HOTTEST), math.log(HOTTEST), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2)


def image_scores(logits_VK: Tensor, labels_V: Tensor) -> Tensor:
    """What each validation image says of a network, float64 [2,V]: its score, and 1 where its label comes first, else 0.

    The score is minus the cross-entropy at the temperature that fits these images best, so that a policy gains nothing by
    making the network less confident.
    """
    losses_V = F.cross_entropy(logits_VK.double() / temperature_of(logits_VK, labels_V), labels_V, reduction="none")
    return torch.stack([-losses_V, (logits_VK.argmax(1) == labels_V).double()])
