"""PyramidNet with ShakeDrop, the largest network of the CIFAR tables.

B images, D channels, h x w positions.
"""

from torch import Tensor, nn
from torch.nn import functional

from dada_det.models.shake import ShakeDrop, initialise

EXPANSION = 4  # outputs of a block over the channels of its 3x3 convolution
LAST_KEPT = 0.5  # probability that ShakeDrop leaves the last block's branch as it is; 1 for the input (arXiv:1802.02375)


class PyramidNet(nn.Module):
    """PyramidNet of bottleneck blocks for 32 px images (Han et al., CVPR 2017, arXiv:1610.02915, Eq. 3), with ShakeDrop.

    Args:
        depth: 9 n + 2 layers, three groups of n blocks.
        alpha: channels that the 3x3 convolutions gain from 16 on, by equal steps from block to block, rounded.

    The probability that ShakeDrop leaves a branch alone falls linearly from block to block.
    """

    def __init__(self, depth: int, alpha: int, num_classes: int) -> None:
        super().__init__()
        group = (depth - 2) // 9
        blocks = 3 * group
        channels = [round(16 + alpha * (block + 1) / blocks) for block in range(blocks)]
        inputs = [16, *(EXPANSION * width for width in channels[:-1])]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(*[
            PyramidBlock(inputs[block], channels[block], stride=2 if block in (group, 2 * group) else 1,
                         keep=1 - (1 - LAST_KEPT) * (block + 1) / blocks) for block in range(blocks)])
        self.bn = nn.BatchNorm2d(EXPANSION * channels[-1])
        self.fc = nn.Linear(EXPANSION * channels[-1], num_classes)
        initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BDhw = functional.relu(self.bn(self.blocks(self.stem(images_BCHW))))
        return self.fc(features_BDhw.mean((2, 3)))


class PyramidBlock(nn.Module):
    """BN-conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN under ShakeDrop, plus the input with channels of zeros added."""

    def __init__(self, inputs: int, channels: int, stride: int, keep: float) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
            ShakeDrop(keep))
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)
        self.added = outputs - inputs

    def forward(self, features_BDhw: Tensor) -> Tensor:
        return self.branch(features_BDhw) + functional.pad(self.pool(features_BDhw), (0, 0, 0, 0, 0, self.added))
