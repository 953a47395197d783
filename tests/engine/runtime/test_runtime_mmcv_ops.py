"""The stand-in for mmcv's compiled operators, held against definitions written out here and against autograd."""

import importlib
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from dada_det.engine.runtime import mmcv_ops
from tests.messages import refused

mmcv_ops.install()


def plain_nms(boxes, scores, threshold, offset):
    """Greedy suppression, one box at a time."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        def overlap(j, i=i):
            low, high = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
            inside = (high - low + offset).clamp(min=0).prod()
            areas = (boxes[[i, j], 2:] - boxes[[i, j], :2] + offset).prod(1)
            return inside / (areas.sum() - inside)
        if all(overlap(j) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_greedy_suppression_keeps(offset):
    from mmcv.ops import nms

    generator = torch.Generator().manual_seed(offset)
    corners = torch.randint(0, 30, (200, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(1, 20, (200, 2), generator=generator)], 1).float()
    scores = torch.rand(200, generator=generator)
    threshold = 0.4001  # no ratio of these whole numbers, so that rounding decides nothing
    detections, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == plain_nms(boxes, scores, threshold, offset)
    assert torch.equal(detections, torch.cat([boxes[kept], scores[kept, None]], 1))
    assert nms(boxes[:0], scores[:0], 0.4)[1].numel() == 0
    assert nms(boxes.half(), scores.half(), 0.4)[1].numel() > 0


def plain_roi_align(features, rois, size, scale, ratio, aligned):
    """The average of ratio x ratio bilinear samples a bin, for regions whose samples stay inside the map."""
    bins = []
    for roi in rois:
        x1, y1, x2, y2 = roi[1:] * scale - (0.5 if aligned else 0.0)
        steps = (torch.arange(size * ratio).double() + 0.5) / (size * ratio)
        ys, xs = torch.meshgrid(y1 + (y2 - y1) * steps, x1 + (x2 - x1) * steps, indexing="ij")
        height, width = features.shape[2:]
        grid = torch.stack([2 * xs / (width - 1) - 1, 2 * ys / (height - 1) - 1], -1)[None].to(features)
        samples = F.grid_sample(features[int(roi[0])][None], grid, align_corners=True)
        bins.append(F.avg_pool2d(samples, ratio)[0])
    return torch.stack(bins)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_is_an_average_of_bilinear_samples(aligned):
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    features = torch.randn(2, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 4, 4, 20, 16], [1, 3, 5, 25, 20], [1, 8, 3, 14, 12]], dtype=torch.float64)
    layer = RoIAlign(3, spatial_scale=0.5, sampling_ratio=2, aligned=aligned)
    found = layer(features, rois)
    expected = plain_roi_align(features, rois, 3, 0.5, 2, aligned)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradient, = torch.autograd.grad((found * weights).sum(), features)
    wanted, = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(gradient, wanted)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), features)


def test_roi_align_in_half_precision_is_computed_in_float32():
    from mmcv.ops import RoIAlign

    features = torch.randn(1, 4, 10, 10).bfloat16().requires_grad_()
    rois = torch.tensor([[0, 2.0, 2.0, 8.0, 8.0]]).bfloat16()
    layer = RoIAlign(2, spatial_scale=1.0, sampling_ratio=2)
    found = layer(features, rois)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, layer(features.float(), rois.float()).bfloat16())
    found.sum().backward()
    assert features.grad.isfinite().all()


def test_roi_align_by_maximum_is_refused_by_name():
    from mmcv.ops import RoIAlign

    with refused("roi_align", "pool_mode='max'", "build mmcv"):
        RoIAlign(2, pool_mode="max")(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_focal_loss_is_its_definition_and_its_backward_is_autograd_s(gamma, weighted):
    from mmcv.ops import sigmoid_focal_loss

    torch.manual_seed(1)
    logits = (3 * torch.randn(7, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is background
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    found = sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    probability, hit = logits.sigmoid(), F.one_hot(target, 5)[:, :4].double()
    right = torch.where(hit == 1, probability, 1 - probability)
    expected = -torch.where(hit == 1, 0.25, 0.75) * (1 - right) ** gamma * right.log()
    if weighted:
        expected = expected * torch.tensor([0.5, 1, 2, 3, 1], dtype=torch.float64)[target, None]
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, logits, direction),
                               torch.autograd.grad(expected, logits, direction))
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, target, gamma, 0.25, weight, "sum"), logits)


def test_focal_loss_stays_finite_at_extreme_logits():
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_mmdet_s_python_focal_loss_agrees():
    from mmcv.ops import sigmoid_focal_loss
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none"),
                               py_sigmoid_focal_loss(logits, F.one_hot(target, 4)[:, :3], reduction="none"))


def test_any_other_operator_fails_when_called_and_says_how_to_build_mmcv():
    from mmcv.ops import nms_match

    with refused("nms_match", "build mmcv", "pip install --no-build-isolation"):
        nms_match(torch.zeros(1, 5), 0.5)


def test_module_has_a_spec_and_no_invented_dunders():
    module = importlib.import_module("mmcv._ext")
    assert module.__spec__.name == "mmcv._ext"
    assert not hasattr(module, "__path__")


def test_stand_in_steps_aside_for_compiled_operators(monkeypatch):
    compiled = ModuleType(mmcv_ops.NAME)
    compiled.__spec__ = sys.modules[mmcv_ops.NAME].__spec__
    monkeypatch.setitem(sys.modules, mmcv_ops.NAME, compiled)
    assert mmcv_ops.install() is False
    assert sys.modules[mmcv_ops.NAME] is compiled
