"""Soft-NMS, deformable convolutions and attention, CARAFE: mmcv's functions against definitions written out here."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from dada_det.engine.runtime import mmcv_ops

mmcv_ops.install()


def boxes_and_scores(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    corners = torch.randint(0, 30, (count, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(4, 20, (count, 2), generator=generator)], 1).float()
    return boxes, torch.rand(count, generator=generator)


def plain_soft_nms(boxes, scores, threshold, sigma, least, method, offset):
    """One box at a time, in Python's floats."""
    boxes, scores, left, found = boxes.tolist(), scores.tolist(), list(range(len(boxes))), []

    def overlap(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0]) + offset
        height = min(a[3], b[3]) - max(a[1], b[1]) + offset
        inside = max(0.0, width) * max(0.0, height)
        areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
        return inside / (sum(areas) - inside)

    while left:
        best = max(left, key=lambda place: scores[place])
        found.append((best, scores[best]))
        left.remove(best)
        for place in left:
            iou = overlap(boxes[best], boxes[place])
            scores[place] *= math.exp(-iou**2 / sigma) if method == "gaussian" else (
                1.0 if iou < threshold else 1 - iou if method == "linear" else 0.0)
        left = [place for place in left if scores[place] >= least]
    return found


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_lowers_scores_as_the_definition_does(method, offset):
    from mmcv.ops import soft_nms

    boxes, scores = boxes_and_scores(120)
    detections, kept = soft_nms(boxes, scores, iou_threshold=0.3001, sigma=0.5, min_score=0.05, method=method, offset=offset)
    expected = plain_soft_nms(boxes, scores, 0.3001, 0.5, 0.05, method, offset)
    assert kept.tolist() == [place for place, _ in expected] and 0 < len(kept) < 120
    assert torch.equal(detections[:, :4], boxes[kept])
    torch.testing.assert_close(detections[:, 4], torch.tensor([score for _, score in expected]))
    assert len(soft_nms(boxes[:0], scores[:0])[1]) == 0


def sampled(plane, y, x):
    """The bilinear value of plane [H,W] at (y, x), zero outside."""
    height, width = plane.shape
    total = 0.0
    for row, column in ((math.floor(y) + dy, math.floor(x) + dx) for dy in (0, 1) for dx in (0, 1)):
        if 0 <= row < height and 0 <= column < width:
            total += float(plane[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def plain_deform_conv(images, offset, weight, mask, stride, padding, dilation, deform_groups):
    """Every output one sum over taps, without groups of channels."""
    batch, channels = images.shape[:2]
    outputs, _, height, width = weight.shape
    rows, columns = offset.shape[2:]
    result = torch.zeros(batch, outputs, rows, columns, dtype=images.dtype)
    shared = channels // deform_groups
    for b in range(batch):
        for p in range(rows):
            for q in range(columns):
                for c in range(channels):
                    for tap in range(height * width):
                        group = c // shared
                        place = 2 * (group * height * width + tap)
                        y = p * stride - padding + tap // width * dilation + float(offset[b, place, p, q])
                        x = q * stride - padding + tap % width * dilation + float(offset[b, place + 1, p, q])
                        value = sampled(images[b, c], y, x)
                        if mask is not None:
                            value *= float(mask[b, group * height * width + tap, p, q])
                        result[b, :, p, q] += weight[:, c, tap // width, tap % width] * value
    return result


def conv_inputs(deform_groups=2, size=6, rows=3):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (draw(2, 4, size, size), draw(2, 2 * deform_groups * 9, rows, rows), draw(3, 4, 3, 3),
            torch.rand(2, deform_groups * 9, rows, rows, generator=generator, dtype=torch.float64), draw(3))


def test_deformable_convolutions_sum_what_they_sample():
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    images, offset, weight, mask, bias = conv_inputs()
    found = deform_conv2d(images, offset, weight, 2, 1, 1, 1, 2)
    torch.testing.assert_close(found, plain_deform_conv(images, offset, weight, None, 2, 1, 1, 2))
    found = modulated_deform_conv2d(images, offset, mask, weight, bias, 2, 1, 1, 1, 2)
    torch.testing.assert_close(found, plain_deform_conv(images, offset, weight, mask, 2, 1, 1, 2) + bias[:, None, None])
    still = torch.zeros(2, 18, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(deform_conv2d(images, still, weight, 1, 1), F.conv2d(images, weight, padding=1))
    half = deform_conv2d(images.bfloat16(), still.bfloat16(), weight.bfloat16(), 1, 1)
    torch.testing.assert_close(half.double(), F.conv2d(images, weight, padding=1), atol=0.2, rtol=0.05)


def test_gradients_of_deformable_convolutions_are_those_of_finite_differences():
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    images, offset, weight, mask, bias = (tensor.requires_grad_() for tensor in conv_inputs(1, size=4, rows=2))
    assert gradcheck(lambda *inputs: deform_conv2d(*inputs, 2, 1, 1, 1, 1), (images, offset, weight))
    assert gradcheck(lambda i, o, m, w, b: modulated_deform_conv2d(i, o, m, w, b, 2, 1, 1, 1, 1),
                     (images, offset, mask, weight, bias))


def attention_inputs():
    generator = torch.Generator().manual_seed(2)
    shapes = torch.tensor([[3, 4], [2, 2]])

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(1, 16, 2, 3), shapes, torch.tensor([0, 12]), draw(1, 5, 2, 2, 3, 2), draw(1, 5, 2, 2, 3)


def test_deformable_attention_is_the_weighted_sum_of_its_samples():
    """Through the function that mmcv takes on a GPU, which calls the compiled operator."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, starts, locations, weights = attention_inputs()
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    expected = torch.zeros(1, 5, 2, 3, dtype=torch.float64)
    for query in range(5):
        for head in range(2):
            for level, (height, width) in enumerate(shapes.tolist()):
                planes = value[0, starts[level]:starts[level] + height * width, head].T.reshape(3, height, width)
                for point in range(3):
                    x, y = (float(part) for part in locations[0, query, head, level, point])
                    for channel in range(3):
                        sample = sampled(planes[channel], y * height - 0.5, x * width - 0.5)
                        expected[0, query, head, channel] += float(weights[0, query, head, level, point]) * sample
    torch.testing.assert_close(found, expected.flatten(2))
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert gradcheck(lambda v, places, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, places, w, 64), inputs)


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 2), (3, 3, 1), (3, 2, 3)])
def test_carafe_sums_weighted_neighbourhoods(kernel, groups, scale):
    from mmcv.ops.carafe import carafe

    torch.manual_seed(kernel + scale)
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 4 * scale, dtype=torch.float64, requires_grad=True)
    found = carafe(features, masks, kernel, groups, scale)
    assert found.shape == (2, 6, 3 * scale, 4 * scale)
    for image in range(2):
        for channel in range(6):
            first = channel // (6 // groups) * kernel**2  # of the masks of this channel's group
            for row in range(3 * scale):
                for column in range(4 * scale):
                    expected = 0.0
                    for place in range(kernel**2):
                        y = row // scale + place // kernel - kernel // 2
                        x = column // scale + place % kernel - kernel // 2
                        if 0 <= y < 3 and 0 <= x < 4:
                            expected += (features[image, channel, y, x] * masks[image, first + place, row, column]).item()
                    assert float(found[image, channel, row, column]) == pytest.approx(expected, abs=1e-12)
    assert gradcheck(lambda *inputs: carafe(*inputs, kernel, groups, scale), (features, masks))
