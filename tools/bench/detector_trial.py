"""One trial of a detector in memory: trained on images with a policy, and its average precision on others.

Trials with equal seeds share their first weights, batches, flips and noise of the draws, whatever the policy.
B images of a batch, C = 3 channels, S x S pixels, M instances of one image.
"""

import contextlib
import io
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dada_det.augment.policy import Policy
from dada_det.augment.transform import PolicyTransform
from dada_det.data.detection import MemoryDetection, apply_with_instances
from dada_det.data.random import epoch_order, generator_for
from dada_det.engine.search.detector_losses import DetectorLosses, data_sample

FLIPS, DRAWS = 1, 2  # the random streams of a trial beside epoch_order's, keyed (seed, stream, step)
MOST = 100  # detections of one image that COCO counts
FIGURES = ("AP", "AP50", "AP75")
CLIP = 10.0  # of the gradient's norm


def normalise(detector: nn.Module, images_BCHW: Tensor) -> Tensor:
    """uint8 RGB images as the detector's own preprocessor would hand them on."""
    preprocessor: Any = detector.data_preprocessor
    return (images_BCHW.to(preprocessor.mean.dtype) - preprocessor.mean) / preprocessor.std


def train_detector(detector: nn.Module, train: MemoryDetection, *, policy: Policy | None, epochs: int, batch_size: int,
                   lr: float, weight_decay: float, seed: int, average: float = 0.0) -> None:
    """AdamW, lr on a cosine to 0 after a tenth of warm-up; images are mirrored at random, then the policy acts on each.

    average: share of the last steps whose mean weights, BatchNorm's statistics among them, the detector gets; 0: the last's.
    """
    network = DetectorLosses(detector).train()
    transform = None if policy is None else PolicyTransform(policy)
    steps = epochs * (len(train) // batch_size)
    mean = AveragedModel(detector, use_buffers=True)
    optimizer = torch.optim.AdamW(detector.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    for step in range(steps):
        epoch, place = divmod(step, len(train) // batch_size)
        rows = epoch_order(len(train), seed, epoch)[place * batch_size:][:batch_size]
        flips = torch.rand(batch_size, generator=generator_for(seed, FLIPS, step)) < 0.5
        images, targets = train.batch(rows, flips)
        if transform is not None:
            draws = transform.draw(batch_size, generator_for(seed, DRAWS, step))
            images, targets = apply_with_instances(images, targets, draws, transform.policy.ranges)
        torch.manual_seed(step)  # of the heads' samples
        optimizer.zero_grad()
        network(normalise(detector, images), targets).mean().backward()
        nn.utils.clip_grad_norm_(detector.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if step >= steps - round(average * steps):
            mean.update_parameters(detector)
    if average:
        detector.load_state_dict(mean.module.state_dict())


@torch.no_grad()
def average_precision(detector: Any, test: MemoryDetection, batch_size: int = 16) -> dict[str, float]:
    """COCO's box AP, AP50 and AP75 in percent (pycocotools)."""
    detector.eval()
    found = []
    for start in range(0, len(test), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(test)))
        images, targets = test.batch(rows)
        samples = [data_sample(targets, row, images) for row in range(len(rows))]
        for image, result in zip(rows.tolist(), detector.predict(normalise(detector, images), samples, rescale=False),
                                 strict=True):
            predicted = result.pred_instances
            found += [{"image_id": image, "category_id": label + 1, "bbox": _corner_and_size(box), "score": score}
                      for box, label, score in zip(predicted.bboxes.tolist(), predicted.labels.tolist(),
                                                   predicted.scores.tolist(), strict=True)]
    if not found:
        return dict.fromkeys(FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _annotations(test)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: round(100 * float(value), 4) for name, value in zip(FIGURES, evaluation.stats, strict=False)}


def _annotations(images: MemoryDetection) -> dict[str, Any]:
    """What an annotation file of these images would hold."""
    side = images.images_NCHW.shape[-1]
    boxes = [(image, box, label) for image in range(len(images)) for box, label in
             zip(images.boxes_M4[image].tolist(), images.labels_M[image].tolist(), strict=True)]
    labels = {label for _, _, label in boxes}
    return {"images": [{"id": image, "width": side, "height": side} for image in range(len(images))],
            "categories": [{"id": label + 1, "name": str(label)} for label in sorted(labels)],
            "annotations": [{"id": number, "image_id": image, "category_id": label + 1, "iscrowd": 0,
                             "bbox": _corner_and_size(box), "area": (box[2] - box[0]) * (box[3] - box[1])}
                            for number, (image, box, label) in enumerate(boxes, 1)]}


def _corner_and_size(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
