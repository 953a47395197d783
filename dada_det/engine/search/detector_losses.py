"""The losses of a detector image by image, from which a search on the detector makes its rewards.

B images, C = 3 channels, S x S pixels, P proposals of one image. MMDetection returns one loss for a batch; a search needs
one for each image. Backbone, neck and the convolutions of a dense head see the batch at once, then each head's own loss
is called on the outputs (or, of a RoI head, the features) of one image after another.

What the search differentiates: RetinaNet matches anchors to boxes, not to predictions, so its loss is smooth in the weights.
In a two-stage detector the proposals and which of them are sampled depend on the weights, but MMDetection's gradient treats
both as constants. Here they are constants: the first pass on some targets makes the proposals, and
`DetectionTargets.proposals` keeps them for later passes on the same object. The samples of an image follow from torch's
seed, which a search sets for each step before each of its passes. So both ends of a finite difference see the same loss,
without jumps, and its derivative is MMDetection's gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from dada_det.data.detection import DetectionTargets
from dada_det.data.random import generator_for
from dada_det.devices import move, move_all
from dada_det.engine.runtime import mmcv_ops
from dada_det.errors import UserError
from dada_det.search.alignment import LossNetwork, Targets

mmcv_ops.install()  # before mmdet.models, which imports mmcv.ops
from mmdet.models import AnchorHead, RPNHead, SingleStageDetector, StandardRoIHead, TwoStageDetector  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402

PAD_DIVISOR = 32  # pixels; MMDetection's configs pad each image to a multiple of it, and anchors beside that do not count


class DetectorLosses(LossNetwork):
    """A detector as a network whose output is the loss of each image.

    Args:
        detector: one stage with a head of anchors (RetinaNet), or two with an RPN and one RoI head (Faster, Mask R-CNN).

    Raises:
        UserError: it is a detector of another kind.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        # ATSS, GFL, FSAF and others are AnchorHeads with a loss of their own, which divides by something else.
        one_stage = (isinstance(detector, SingleStageDetector) and isinstance(detector.bbox_head, AnchorHead)
                     and type(detector.bbox_head).loss_by_feat is AnchorHead.loss_by_feat)
        two_stage = (isinstance(detector, TwoStageDetector) and isinstance(getattr(detector, "rpn_head", None), RPNHead)
                     and isinstance(detector.roi_head, StandardRoIHead))
        if not one_stage and not two_stage:
            raise UserError("a search reads the losses of RetinaNet, Faster R-CNN and Mask R-CNN image by image, and knows "
                            f"no {type(detector).__name__} with other heads; give a config of one of the three")
        self.detector: Any = detector
        self.two_stage = two_stage

    def forward(self, images_BCHW: Tensor, targets_B: Targets) -> Tensor:
        """The losses [B] of normalised images [B,3,S,S], the sum of the detector's loss terms.

        Of one image it is what `detector.loss` gives. The mean over a batch is `detector.loss` of the batch: where an
        AnchorHead divides by the number of its anchors in the batch (`avg_factor`), each image is weighed by its own
        share of them. RoI heads divide by an image's own samples instead, so there the mean is MMDetection's where all
        images have equally many: box terms once proposals fill the sampler, mask terms up to the number of positives.
        Of a two-stage detector the first pass on `targets_B` makes the proposals of all passes on it.
        """
        assert isinstance(targets_B, DetectionTargets)
        features = self.detector.extract_feat(images_BCHW)
        samples = [data_sample(targets_B, row, images_BCHW) for row in range(len(targets_B))]
        with torch.autocast(images_BCHW.device.type, enabled=False):  # bfloat16 is for the convolutions below
            features = tuple(level.to(images_BCHW.dtype) for level in features)
            if not self.two_stage:
                return self._dense_losses(self.detector.bbox_head, self.detector.bbox_head(features), samples)
            classless = [_with_labels_0(sample) for sample in samples]
            outputs = self.detector.rpn_head(features)
            losses_B = self._dense_losses(self.detector.rpn_head, outputs, classless)
            proposals_P4 = targets_B.proposals(lambda: self._proposals(outputs, samples))
            return losses_B + self._roi_losses(features, proposals_P4, samples)

    def _dense_losses(self, head: Any, outputs: Any, samples: list[Any]) -> Tensor:
        losses, divisors = [], []
        for row, sample in enumerate(samples):
            own = [[level[row:row + 1] for level in levels] for levels in outputs]
            with _same_samples(row):
                losses.append(_total(head.loss_by_feat(*own, [sample.gt_instances], [sample.metainfo])))
            divisors.append(head._raw_positive_infos["sampling_results"][0].avg_factor)
        anchors_B = move(torch.tensor(divisors, dtype=losses[0].dtype), losses[0].device)
        return torch.stack(losses) * anchors_B / anchors_B.mean()

    def _roi_losses(self, features: tuple[Tensor, ...], proposals_P4: list[Tensor], samples: list[Any]) -> Tensor:
        losses = []
        for row, (own_P4, sample) in enumerate(zip(proposals_P4, samples, strict=True)):
            own = tuple(level[row:row + 1] for level in features)
            with _same_samples(row):
                losses.append(_total(self.detector.roi_head.loss(own, [InstanceData(bboxes=own_P4)], [sample])))
        return torch.stack(losses)

    @torch.no_grad()
    def _proposals(self, outputs: Any, samples: list[Any]) -> list[Tensor]:
        config = self.detector.train_cfg.get("rpn_proposal", self.detector.test_cfg.rpn)
        detached = [[level.detach() for level in levels] for levels in outputs]
        results = self.detector.rpn_head.predict_by_feat(
            *detached, batch_img_metas=[sample.metainfo for sample in samples], cfg=config)
        return [result.bboxes for result in results]


def data_sample(targets: DetectionTargets, row: int, images_BCHW: Tensor) -> Any:
    """The instances of image `row` as MMDetection wants them, its size without padding, and padded as for training."""
    size, square = targets.size(row, images_BCHW), tuple(images_BCHW.shape[2:])
    padded = tuple(min(-(-side // PAD_DIVISOR) * PAD_DIVISOR, most) for side, most in zip(size, square, strict=True))
    boxes_M4, labels_M = move_all((targets.boxes_M4[row].to(images_BCHW.dtype), targets.labels_M[row]), images_BCHW.device)
    instances = InstanceData(bboxes=boxes_M4, labels=labels_M)
    if targets.masks_MSS is not None:
        instances.masks = BitmapMasks(targets.masks_MSS[row].numpy(), *square)
    return DetDataSample(gt_instances=instances,
                         metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "pad_shape": padded,
                                   "batch_input_shape": square})


@contextmanager
def _same_samples(row: int) -> Iterator[None]:
    """Inside, what MMDetection's samplers draw (from torch's generator of the CPU) follows from its seed and `row`."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(generator_for(torch.initial_seed(), row).initial_seed())
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _total(losses: dict[str, Any]) -> Tensor:
    """The sum of the loss terms, as mmengine's parse_losses takes it; what is no loss (`acc`) stays out."""
    terms = [value if isinstance(value, list | tuple) else [value] for name, value in losses.items() if "loss" in name]
    return sum((part.mean() for term in terms for part in term), start=torch.zeros((), device=terms[0][0].device))


def _with_labels_0(sample: Any) -> Any:
    """The RPN tells objects from background, whatever their class."""
    instances = sample.gt_instances
    return DetDataSample(gt_instances=InstanceData(bboxes=instances.bboxes, labels=torch.zeros_like(instances.labels)),
                         metainfo=sample.metainfo)
