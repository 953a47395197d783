"""tools/bench/small_maps.py computes what nn.Conv2d computes."""

import pytest
import small_maps
import torch
from torch import nn


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2, 4), (4, 4)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_outputs_and_gradients_are_those_of_a_convolution(size: tuple[int, int], kernel: int, stride: int) -> None:
    conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    images = torch.randn(4, 6, *size, dtype=torch.float64, requires_grad=True)
    outputs = [forward(conv, images, conv.weight, None) for forward in (small_maps._conv_forward, small_maps.forward)]
    torch.testing.assert_close(outputs[1], outputs[0])
    upstream = torch.randn_like(outputs[0])
    expected, found = (torch.autograd.grad(output, [images, conv.weight], upstream) for output in outputs)
    torch.testing.assert_close(found, expected)


def test_a_dense_convolution_is_left_alone() -> None:
    conv, images = nn.Conv2d(2, 4, 3, bias=False), torch.randn(1, 2, 3, 3)
    assert torch.equal(small_maps.forward(conv, images, conv.weight, None), conv(images))


def test_convolutions_are_torchs_own_again_outside() -> None:
    with small_maps.small_maps():
        assert nn.Conv2d._conv_forward is small_maps.forward
    assert nn.Conv2d._conv_forward is small_maps._conv_forward
