"""Depthwise convolutions on tiny maps, which oneDNN's backward pass computes slowly on CPUs without AVX-512.

EfficientNet-Lite0 ends with maps of 2 x 2 at 40 px, where these layers take half of a training step. A product and a sum
take a tenth of that. B images, C channels, I positions of the input, O of the output.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

LARGEST = 9  # positions of a map
_conv_forward = nn.Conv2d._conv_forward


@contextmanager
def small_maps() -> Iterator[None]:
    """Inside, each nn.Conv2d of this process that is depthwise computes maps of at most LARGEST positions this way."""
    nn.Conv2d._conv_forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Conv2d._conv_forward = _conv_forward  # type: ignore[method-assign]


def forward(conv: nn.Conv2d, images_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What nn.Conv2d._conv_forward returns, up to rounding; channels_last where this way is taken."""
    channels, height, width = images_BCHW.shape[1:]
    depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels
    plain = bias is None and conv.dilation == (1, 1) and isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
    if not (depthwise and plain and height * width <= LARGEST):
        return _conv_forward(conv, images_BCHW, weight, bias)
    index_OI, out_height, out_width = taps(height, width, conv.kernel_size, conv.stride, conv.padding)
    weight_TC = torch.cat([weight.reshape(channels, -1), weight.new_zeros(channels, 1)], 1).t()  # taps, and a zero
    images_BIC = images_BCHW.permute(0, 2, 3, 1).reshape(len(images_BCHW), height * width, channels)
    out_BOC = (images_BIC[:, None] * weight_TC[index_OI]).sum(2)
    return out_BOC.view(-1, out_height, out_width, channels).permute(0, 3, 1, 2)


@lru_cache
def taps(height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int],
         padding: tuple[int, int]) -> tuple[Tensor, int, int]:
    """(the kernel's tap from input to output [O,I], the number of taps where there is none, the output's height, width)."""
    out_height, out_width = ((size + 2 * p - k) // s + 1
                             for size, k, s, p in zip((height, width), kernel, stride, padding, strict=True))
    out_y, out_x, y, x = torch.meshgrid(*map(torch.arange, (out_height, out_width, height, width)), indexing="ij")
    down, right = y - out_y * stride[0] + padding[0], x - out_x * stride[1] + padding[1]
    inside = (down >= 0) & (down < kernel[0]) & (right >= 0) & (right < kernel[1])
    index = torch.where(inside, down * kernel[1] + right, kernel[0] * kernel[1])
    return index.view(out_height * out_width, height * width), out_height, out_width
