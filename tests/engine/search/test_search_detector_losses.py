"""A detector's loss image by image: against mmdet's own, and its derivative against autograd."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.func import functional_call
from torch.nn import functional as F

from dada_det.data.detection import DetectionTargets
from dada_det.data.random import generator_for
from dada_det.engine.detect import guard as detection
from dada_det.engine.search.detector_losses import DetectorLosses, data_sample
from tests.messages import refused

SIDE, CLASSES = 64, 3
KINDS = ("retinanet", "faster-rcnn", "mask-rcnn")
ANCHORS = {"type": "AnchorGenerator", "ratios": [1.0], "strides": [4, 8, 16, 32]}


def tiny(kind, norm_eval=False, frozen_stages=-1, classes=CLASSES):
    """MMDetection's base config of a detector with eight channels, in float64."""
    from mmengine.config import Config

    name = {"retinanet": "retinanet_r50_fpn", "faster-rcnn": "faster-rcnn_r50_fpn", "mask-rcnn": "mask-rcnn_r50_fpn"}[kind]
    model = Config.fromfile(f"{_mmdet()}/.mim/configs/_base_/models/{name}.py").model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None, norm_eval=norm_eval, frozen_stages=frozen_stages)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    few = {"num": 24, "pos_fraction": 0.5}
    if kind == "retinanet":
        model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=classes)
    else:
        model.rpn_head.update(in_channels=8, feat_channels=8)
        model.rpn_head.anchor_generator.scales = [4]
        model.roi_head.bbox_roi_extractor.out_channels = 8
        model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=classes)
        model.train_cfg.rpn.sampler.update(few)
        model.train_cfg.rcnn.sampler.update(few)
        model.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=40)
        if kind == "mask-rcnn":
            model.roi_head.mask_roi_extractor.out_channels = 8
            model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=classes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = detection.MODELS.build(ConfigDict(model))
    detector.init_weights()
    torch.manual_seed(1)
    for parameter in detector.parameters():  # heads start at nearly nothing, where gradients are nearly nothing too
        parameter.data += 0.05 * torch.randn_like(parameter)
    return detector.double().train()


def _mmdet():
    import mmdet

    return mmdet.__path__[0]


def batch(counts=(3, 1, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(counts), 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    boxes, labels, masks = [], [], []
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * 40
        boxes.append(torch.cat([corners, corners + 6 + 18 * torch.rand(count, 2, generator=generator)], 1))
        labels.append(torch.randint(0, CLASSES, (count,), generator=generator))
        grid = torch.arange(SIDE) + 0.5
        inside = [((grid >= low[:, None]) & (grid < high[:, None])) for low, high in
                  ((boxes[-1][:, 0], boxes[-1][:, 2]), (boxes[-1][:, 1], boxes[-1][:, 3]))]
        masks.append((inside[1][:, :, None] & inside[0][:, None, :]).byte())
    return images, DetectionTargets(boxes, labels, masks)


def own_loss(network, images, targets):
    """mmdet's `loss` of the batch, summed as mmengine sums it; RPN and RoI head draw samples from where our row 0 does."""
    seed = generator_for(torch.initial_seed(), 0).initial_seed()
    detector, samples = network.detector, [data_sample(targets, row, images) for row in range(len(targets))]
    with pytest.MonkeyPatch.context() as patch:
        if network.two_stage:
            patch.setattr(detector.rpn_head, "loss_and_predict", seeded(detector.rpn_head.loss_and_predict, seed))
            patch.setattr(detector.roi_head, "loss", seeded(detector.roi_head.loss, seed))
        return detector.parse_losses(detector.loss(images, samples))[0]


def seeded(function, seed):
    def wrapped(*arguments, **options):
        torch.manual_seed(seed)
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("kind", KINDS)
def test_of_one_image_it_is_mmdets_own_loss_with_its_own_gradient(kind):
    network = DetectorLosses(tiny(kind))
    for counts in ((4,), (1,), (0,)):
        images, targets = batch(counts)
        ours, theirs = network(images, targets), own_loss(network, images, targets)
        assert ours.shape == (1,)
        torch.testing.assert_close(ours[0], theirs, rtol=1e-12, atol=0)
        parameters = [p for p in network.parameters() if p.requires_grad]
        for left, right in zip(torch.autograd.grad(ours.sum(), parameters, allow_unused=True),
                               torch.autograd.grad(theirs, parameters, allow_unused=True), strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_the_mean_over_a_batch_is_mmdets_loss_of_retinanet():
    network = DetectorLosses(tiny("retinanet"))
    images, targets = batch((3, 1, 0, 9))
    # mmdet adds float32's epsilon to what it divides by, here once for each image.
    torch.testing.assert_close(network(images, targets).mean(), own_loss(network, images, targets), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_mean_over_a_batch_is_near_mmdets_loss_of_two_stages(kind):
    network = DetectorLosses(tiny(kind))
    images, targets = batch((3, 1, 5))
    # mmdet draws each image's samples behind the last one's, so the two are equal up to the draw of samples.
    torch.testing.assert_close(network(images, targets).mean(), own_loss(network, images, targets), rtol=0.03, atol=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained BatchNorm", "frozen BatchNorm"])
@pytest.mark.parametrize("kind", KINDS)
def test_central_differences_are_the_inner_product_of_each_images_gradient(kind, frozen, monkeypatch):
    rounding = F.binary_cross_entropy_with_logits  # to the labels' dtype, which is float32 in mmdet
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", lambda x, y, *a, **k: rounding(x, y.to(x.dtype), *a, **k))
    network = DetectorLosses(tiny(kind, norm_eval=frozen, frozen_stages=1 if frozen else -1))
    images, targets = batch((3, 1, 5))
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    assert frozen == (len(weights) < len(list(network.parameters())))
    network(images, targets)  # makes the proposals, as a training pass does
    generator = torch.Generator().manual_seed(5)
    direction = {name: torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in weights.items()}
    buffers = {name: b.clone() for name, b in network.named_buffers()}

    def losses(w):
        return functional_call(network, {**w, **{name: b.clone() for name, b in buffers.items()}}, (images, targets))

    epsilon = 1e-6 / torch.stack([v.norm() for v in direction.values()]).norm()
    with torch.no_grad():
        above, below = ({n: w + sign * epsilon * direction[n] for n, w in weights.items()} for sign in (1, -1))
        differences = (losses(above) - losses(below)) / (2 * epsilon)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    exact = []
    for loss in losses(leaves):
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        exact.append(sum((g * direction[n]).sum() for n, g in zip(leaves, gradients, strict=True) if g is not None))
    torch.testing.assert_close(differences, torch.stack(exact), rtol=1e-5, atol=1e-7)


def unexpected():
    raise AssertionError("the proposals have been made already")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_proposals_are_made_once_and_samples_do_not_depend_on_the_batch_or_disturb_the_global_stream(kind):
    network = DetectorLosses(tiny(kind, norm_eval=True))
    images, targets = batch((3, 1, 5))
    state = torch.get_rng_state()
    first = network(images, targets)
    proposals = [p.clone() for p in targets.proposals(unexpected)]
    network.detector.rpn_head.rpn_reg.weight.data += 0.3
    second = network(images, targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(proposals, targets.proposals(unexpected), strict=True))
    assert not torch.equal(first, second)
    one = targets[:1]
    alone = network(images[:1], one)
    assert torch.equal(alone, network(images[:1], one))


def test_bfloat16_reaches_backbone_and_neck_alone():
    network = DetectorLosses(tiny("faster-rcnn").float())
    images, targets = batch((3, 1, 5))
    exact = network(images.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(images.float(), targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0)
    assert not torch.equal(low, exact)


def test_another_detector_is_refused_with_a_sentence():
    detector = tiny("retinanet")
    detector.bbox_head = torch.nn.Identity()
    with refused("RetinaNet, Faster R-CNN and Mask R-CNN", "RetinaNet with other heads", "config"):
        DetectorLosses(detector)


@pytest.mark.parametrize("head", ["ATSSHead", "GFLHead", "FreeAnchorRetinaHead", "FSAFHead"])
def test_a_head_of_anchors_with_a_loss_of_its_own_is_refused(head):
    from mmdet.registry import MODELS

    network = tiny("retinanet")
    network.bbox_head.__class__ = MODELS.get(head)  # what its constructor would make does not matter here
    with refused("RetinaNet, Faster R-CNN and Mask R-CNN", "RetinaNet with other heads"):
        DetectorLosses(network)


def test_an_instance_data_is_what_a_head_expects():
    images, targets = batch((2, 0))
    sample = data_sample(targets, 1, images)
    assert isinstance(sample.gt_instances, InstanceData)
    assert len(sample.gt_instances) == len(sample.gt_instances.masks) == 0
