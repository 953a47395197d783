"""A real search problem small enough to enumerate, in float64: what the exact tests of the search are held against.

Eight images, three classes, three sub-policies of two operations each; a drawn strength is rounded to one of twelve
levels, so that E_q is a finite sum over sub-policy, flags, signs and strengths, and nothing here is exact only nearly.
M images, V validation images, N = 3 sub-policies, S states of a slot (off, or a sign and a level), P the 15 numbers that
are learned: 3 logits, 6 flag logits, 6 mean strengths.
"""

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import apply_draws, apply_operation
from dada_det.search import alignment
from dada_det.search.distribution import PolicyDistribution, Sample

# "strong": a reward depends on its draw above all, 3 % of the variance lies between the images; "mild": 52 %.
OPERATIONS = {"strong": ("Rotate", "Solarize", "Brightness"), "mild": ("Rotate", "Posterize", "Brightness")}
M, N, SIZE, CLASSES, V = 8, 3, 12, 3, 12
LEVELS = torch.linspace(-2.75, 2.75, 12, dtype=torch.float64)  # of a strength, on the logit
EDGES = torch.cat([torch.tensor([-20.0]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([20.0])])
S = 1 + 2 * len(LEVELS)


class Problem:
    """Everything enumerated: the images of all outcomes, v at the exact w', and the reward of each image and outcome."""

    zeta, spread = 0.1, 0.8

    def __init__(self, name: str) -> None:
        self.unaugmented, self.labels_M = pictures(M, 1)
        val_images, self.val_labels_V = pictures(V, 2)
        self.val_images = pixels(apply_operation(val_images, OPERATIONS[name][1], 0.6, ranges="strength"))
        self.distribution = policy_distribution(OPERATIONS[name], self.spread)
        self.parameters = (self.distribution.logits_N().detach(), self.distribution.flag_logits_N2().detach(),
                           self.distribution.magnitude_logits_N2().detach())
        image, c, first, second = torch.cartesian_prod(*(torch.arange(n) for n in (M, N, S, S))).T
        state = torch.stack([first, second], 1)
        level, signs = (state - 1).clamp_min(0) % len(LEVELS), 2.0 * (state > len(LEVELS)) - 1
        self.images = self.augment(image, c, state > 0, LEVELS[level].sigmoid(), signs).view(M, N, S, S, 3, SIZE, SIZE)
        self.network = self.trained_network()
        self.weights = alignment.weights_of(self.network)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
        loss = (self.probabilities(*self.parameters) * self.losses(leaves)).sum((1, 2, 3)).mean()
        gradient = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        virtual = alignment.step(self.weights, gradient, -self.zeta)
        self.v = alignment.gradient_at(self.network, virtual, self.val_images, self.val_labels_V)
        self.rewards = alignment.rewards_forward_mode(self.network, self.weights, self.v, *self.outcomes()).view(M, N, S, S)

    def augment(self, image_B: Tensor, c_B: Tensor, b_B2: Tensor, magnitudes_B2: Tensor, signs_B2: Tensor) -> Tensor:
        """The images 0..M-1 as the network takes them, each with its own policy."""
        draws = self.distribution.space.draws(c_B, b_B2, magnitudes_B2, signs_B2, torch.zeros(len(c_B), 2, 2))
        return pixels(apply_draws(self.unaugmented[image_B], draws, "strength"))

    def trained_network(self, batch_norm: bool = False) -> nn.Sequential:
        """A network after ten steps of Adam: neither the start of a search nor its end."""
        torch.manual_seed(0)
        norm = [nn.BatchNorm2d(4, track_running_stats=False)] if batch_norm else []
        net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), *norm, nn.Tanh(), nn.Flatten(), nn.Linear(100, CLASSES)).double()
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(net(pixels(self.unaugmented)), self.labels_M).backward()
            optimizer.step()
        return net

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """All M*N*S*S images with their labels."""
        return self.images.flatten(0, 3), self.labels_M.repeat_interleave(N * S * S)

    def losses(self, weights: alignment.Weights) -> Tensor:
        """Of every image and outcome, [M,N,S,S]."""
        return alignment.losses_at(self.network, weights, *self.outcomes()).view(M, N, S, S)

    def probabilities(self, logits: Tensor, flags: Tensor, means: Tensor) -> Tensor:
        """p(q) [..,N,S,S] of every sub-policy and every state of its two slots, from [..,N], [..,N,2] and [..,N,2]."""
        levels = torch.special.ndtr((EDGES - means[..., None]) / self.spread).diff(dim=-1)
        p = flags.sigmoid()[..., None]
        states = torch.cat([1 - p, p * levels / 2, p * levels / 2], -1)
        return logits.softmax(-1)[..., None, None] * states[..., 0, :, None] * states[..., 1, None, :]

    def exact(self) -> Tensor:
        """The gradient of E_q[R] [P], a sum over all outcomes."""
        leaves = [tensor.clone().requires_grad_() for tensor in self.parameters]
        expected = (self.probabilities(*leaves) * self.rewards).sum((1, 2, 3)).mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(expected, leaves)])

    def rounded(self, logit_m_B2: Tensor) -> Tensor:
        """Strengths on the logit, each at its level."""
        return LEVELS[torch.bucketize(logit_m_B2, EDGES[1:-1])]

    def rewards_of(self, image_B: Tensor, sample: Sample, signs_B2: Tensor) -> Tensor:
        """R_i [B] of drawn policies for the images 0..M-1, looked up."""
        level = torch.bucketize(sample.logit_m_B2, EDGES[1:-1])
        state = (1 + level + len(LEVELS) * (signs_B2 > 0)) * sample.b_B2
        return self.rewards[image_B, sample.c_B, state[:, 0], state[:, 1]]


def policy_distribution(operations: Sequence[str], spread: float) -> PolicyDistribution:
    """A distribution somewhere in the midst of a search."""
    distribution = PolicyDistribution(SearchSpace(operations), spread=spread).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in distribution.parameters():
        parameter.data = 0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return distribution


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n images uint8 [n,3,H,W] and their classes: a smooth pattern a class, more or less of the next one's, and noise."""
    generator = torch.Generator().manual_seed(9)
    patterns = F.interpolate(torch.randn(CLASSES, 3, 4, 4, generator=generator), size=SIZE, mode="bilinear")
    generator.manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    share = 0.7 * torch.rand(n, 1, 1, 1, generator=generator)
    mixed = (1 - share) * patterns[labels] + share * patterns[(labels + 1) % CLASSES]
    noise = 20 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (128 + 60 * mixed + noise).clamp(0, 255).to(torch.uint8), labels


def pixels(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1


@pytest.fixture(scope="session")
def problem() -> Callable[[str], Problem]:
    """problem("strong") or problem("mild"), each enumerated once."""
    return functools.cache(Problem)
