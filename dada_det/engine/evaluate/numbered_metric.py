"""CocoMetric and FasterCocoMetric whose images, categories and annotations are numbered from 1 in memory."""

from typing import Any

from dada_det.data.coco_numbers import numbered
from dada_det.engine.runtime import mmcv_ops

mmcv_ops.install()  # before mmdet's structures, which import mmcv.ops
from mmdet.evaluation import CocoMetric  # noqa: E402
from mmdet.evaluation.metrics import FasterCocoMetric  # noqa: E402
from mmdet.registry import METRICS  # noqa: E402

MOST_DETECTIONS = (1, 10, 100)  # an image, of COCO's figures; MMDetection's own (100, 300, 1000) are those of proposals


class Numbered:
    """Put before a CocoMetric: the truth and the detections get equal numbers; the figures are pycocotools' own."""

    def __init__(self, ann_file: str, metric: str | list[str] = "bbox", **options: Any) -> None:
        if not options.get("metric_items") and not any("proposal" in name for name in ([metric] if isinstance(metric, str)
                                                                                       else metric)):
            options.setdefault("proposal_nums", MOST_DETECTIONS)
        super().__init__(ann_file=ann_file, metric=metric, **options)  # type: ignore[call-arg]
        index: Any = self._coco_api  # type: ignore[has-type]
        truth = numbered(index.dataset)
        self.image_numbers = truth.image_numbers
        self._coco_api = type(index)()
        self._coco_api.dataset = truth.content
        self._coco_api.createIndex()

    def compute_metrics(self, results: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
        """MMDetection's figures.

        Args:
            results: (truth, detections) of each image, which `process` has made.
        """
        return super().compute_metrics([  # type: ignore[misc]
            (truth, {**found, "img_id": self.image_numbers[found["img_id"]]}) for truth, found in results])


@METRICS.register_module()
class NumberedCocoMetric(Numbered, CocoMetric):
    """By pycocotools."""


@METRICS.register_module()
class NumberedFasterCocoMetric(Numbered, FasterCocoMetric):
    """By faster-coco-eval."""
