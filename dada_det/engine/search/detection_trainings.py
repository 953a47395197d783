"""The trainings of a trial on a detector: batches with their instances, judged by average precision.

B images of a batch, V validation images, S x S pixels.
"""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from dada_det.augment.named import AnyPolicy
from dada_det.augment.policy import Policy
from dada_det.augment.transform import PolicyTransform
from dada_det.data.detection import MemoryDetection, apply_with_instances
from dada_det.data.random import generator_for
from dada_det.devices import move
from dada_det.engine.search.detector_losses import data_sample
from dada_det.engine.search.problem import search_device
from dada_det.engine.search.trainings import CROPS, DRAWS, Trainings

JUDGED_AT_ONCE = 16  # validation images of a pass
APART = 1e5  # pixels between two categories; no image is as wide


class DetectionTrainings(Trainings):
    """Whole images, mirrored at random; a policy moves boxes and masks with them.

    The score of an image is its own box AP (COCO's mean over ten thresholds). Scores of single images can be paired and have
    a standard error, which the AP of all images together has not. An image without instances scores 0.
    """

    fixed = ("none", "random", "uniform", "one-op")  # torchvision's policies do not move boxes
    reference = "none"
    figure = "image AP"
    unit = "an image's own box AP, 0 to 1"

    def augmented(self, fold: int, policy: AnyPolicy) -> Callable[[Tensor, tuple[int, ...]], tuple[Tensor, Any]]:
        train = self.folds[fold].train
        transform = PolicyTransform(policy) if isinstance(policy, Policy) else None

        def some(rows_B: Tensor, keys: tuple[int, ...]) -> tuple[Tensor, Any]:
            flips_B = (torch.rand(len(rows_B), generator=generator_for(*keys, CROPS)) < 0.5) & self.mirror
            images_BCHW, targets = train.batch(rows_B, flips_B)
            images_BCHW = move(images_BCHW, search_device())
            if transform is not None:
                draws = transform.draw(len(rows_B), generator_for(*keys, DRAWS))
                images_BCHW, targets = apply_with_instances(images_BCHW, targets, draws, transform.policy.ranges)
            return images_BCHW, targets

        return some

    @torch.no_grad()
    def judge(self, network: nn.Module, fold: int) -> Tensor:
        val: MemoryDetection = self.folds[fold].val
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            return torch.full((2, len(val)), math.nan, dtype=torch.float64)  # it finds nothing, as an AP of 0 does
        detector: Any = network.eval().detector
        found: list[list[dict[str, Any]]] = []
        for rows in torch.arange(len(val)).split(JUDGED_AT_ONCE):
            images_BCHW, targets = val.batch(rows)
            images_BCHW = self.for_network(move(images_BCHW, search_device()))
            samples = [data_sample(targets, row, images_BCHW) for row in range(len(rows))]
            for result in detector.predict(images_BCHW, samples, rescale=False):
                predicted = result.pred_instances
                found.append([{"bbox": corner_and_size(box), "category_id": label + 1, "score": score}
                              for box, label, score in zip(predicted.bboxes.tolist(), predicted.labels.tolist(),
                                                           predicted.scores.tolist(), strict=True)])
        ap_V = torch.tensor([image_ap(val.boxes_M4[row].tolist(), val.labels_M[row].tolist(), own)
                             for row, own in enumerate(found)], dtype=torch.float64)
        return torch.stack([ap_V, ap_V])

    def guess(self, fold: int) -> Tensor:
        """0: the AP of boxes that are guessed."""
        return torch.zeros(2, len(self.folds[fold].val), dtype=torch.float64)


def image_ap(boxes_M4: list[list[float]], labels_M: list[int], found: list[dict[str, Any]]) -> float:
    """COCO's box AP of one image, 0..1, with all categories in one ranking; 0 where it has no instance or nothing was found.

    A detection can match instances of its category alone: those of another are moved APART pixels to the right. A mean over
    the image's own categories would not see what was found of others.
    """
    if not boxes_M4 or not found:
        return 0.0
    true = [moved(corner_and_size(box), label + 1) for box, label in zip(boxes_M4, labels_M, strict=True)]
    ours = [{**each, "image_id": 1, "category_id": 1, "bbox": moved(each["bbox"], each["category_id"])} for each in found]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}],
                         "annotations": [{"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box,
                                          "area": box[2] * box[3]} for number, box in enumerate(true, 1)]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(ours), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = torch.from_numpy(evaluation.eval["precision"][:, :, :, 0, -1])  # all areas, 100 detections
    return max(0.0, float(precision[precision > -1].mean())) if (precision > -1).any() else 0.0


def moved(box: list[float], category: int) -> list[float]:
    return [box[0] + APART * category, *box[1:]]


def corner_and_size(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
