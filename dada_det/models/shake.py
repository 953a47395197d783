"""Shake-Shake and ShakeDrop: branches with random weights, one set for the forward pass and one for its derivatives.

B images, D channels, h x w positions. One draw an image, from torch's generator of the images' device, made in the forward
pass: torch.manual_seed repeats both passes, and torch.func and forward-mode derivatives go through as through any network.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def value_and_derivative(value: Tensor, derived: Tensor) -> Tensor:
    """`value` exactly, with the derivatives of `derived`, a finite tensor of the same shape."""
    return value.detach() + (derived - derived.detach())


def draw(features_BDhw: Tensor, low: float, high: float) -> Tensor:
    """Uniform in low..high, one number an image: [B,1,1,1] of the features' type."""
    shape = (len(features_BDhw), 1, 1, 1)
    return torch.empty(shape, dtype=features_BDhw.dtype, device=features_BDhw.device).uniform_(low, high)


class ShakeBlock(nn.Module):
    """A shortcut and two branches of ReLU-conv-BN-ReLU-conv-BN, mixed in training by weights that are drawn.

    alpha b1 + (1 - alpha) b2 in the forward pass, beta in the place of alpha in its derivatives, both uniform in 0..1 for
    each image ("Shake-Shake-Image"); half of each at test time (Gastaldi, arXiv:1705.07485, Section 2.2).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(
            nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)) for _ in range(2))
        self.shortcut = nn.Identity() if inputs == outputs else TwoPathShortcut(inputs, outputs, stride)

    def forward(self, features_BDhw: Tensor) -> Tensor:
        first, second = (branch(features_BDhw) for branch in self.branches)
        if self.training:
            alpha_B111, beta_B111 = draw(first, 0, 1), draw(first, 0, 1)
            mixed = value_and_derivative(torch.lerp(second, first, alpha_B111), torch.lerp(second, first, beta_B111))
        else:
            mixed = (first + second) / 2
        return self.shortcut(features_BDhw) + mixed


class TwoPathShortcut(nn.Module):
    """ReLU, then every `stride`-th position and those one pixel right and down of them, each a 1x1 convolution, and BN."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.paths = nn.ModuleList(nn.Conv2d(inputs, outputs // 2, 1, bias=False) for _ in range(2))
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features_BDhw: Tensor) -> Tensor:
        active = functional.relu(features_BDhw)
        shifted = functional.pad(active, (-1, 1, -1, 1))
        parts = [path(part[..., ::self.stride, ::self.stride])
                 for path, part in zip(self.paths, (active, shifted), strict=True)]
        return self.bn(torch.cat(parts, dim=1))


class ShakeShake(nn.Module):
    """Shake-Shake `depth` 2x`width`d for 32 px images: three groups of (depth - 2) / 6 blocks.

    Gastaldi, arXiv:1705.07485, Section 2.1 and github.com/xgastaldi/shake-shake: a 3x3 convolution to 16 channels and BN,
    groups of width, 2 width and 4 width channels, ReLU, mean over the positions, linear.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        channels = (16, width, 2 * width, 4 * width)
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]))
        self.groups = nn.Sequential(*[
            nn.Sequential(*[ShakeBlock(channels[group] if block == 0 else channels[group + 1], channels[group + 1],
                                       stride=2 if group > 0 and block == 0 else 1) for block in range((depth - 2) // 6)])
            for group in range(3)])
        self.fc = nn.Linear(channels[3], num_classes)
        initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BDhw = functional.relu(self.groups(self.stem(images_BCHW)))
        return self.fc(features_BDhw.mean((2, 3)))


class ShakeDrop(nn.Module):
    """A residual branch times b + alpha - b alpha in training, and times `keep` at test time (arXiv:1802.02375, Eq. 6).

    b is 1 with probability `keep`, else 0; alpha is uniform in -1..1, and in the derivatives beta, uniform in 0..1, is in
    its place. All are drawn for each image; the released code of Fast AutoAugment and DADA draws b for a whole batch.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, branch_BDhw: Tensor) -> Tensor:
        if not self.training:
            return self.keep * branch_BDhw
        kept_B111 = draw(branch_BDhw, 0, 1) < self.keep
        alpha_B111, beta_B111 = (draw(branch_BDhw, low, 1).masked_fill(kept_B111, 1) for low in (-1, 0))
        return value_and_derivative(alpha_B111 * branch_BDhw, beta_B111 * branch_BDhw)


def initialise(network: nn.Module) -> None:
    """He et al.'s initialisation by the number of outputs for convolutions, zero for the last layer's bias."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
