"""COCO's figures from a results file, by pycocotools."""

import contextlib
import io
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada_det.files import read_json

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate_results(annotation_file: str | Path, results_file: str | Path, iou_type: str) -> dict[str, float]:
    """COCO's twelve figures in percent for detections in COCO's results format; iou_type "bbox" or "segm".

    AP is the mean over IoU 0.50:0.95, sizes are s < 32^2 <= m < 96^2 <= l pixels, AR1 allows one detection an image.
    A figure is -1 where the annotations hold nothing of that size, which is how pycocotools says it.
    """
    results = read_json(results_file, "results file")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, _index(truth, results, iou_type), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(value) if value > -1 else -1.0
            for name, value in zip(FIGURES, evaluation.stats, strict=True)}


def _index(truth: COCO, results: list[dict[str, Any]], iou_type: str) -> COCO:
    if not results:  # loadRes looks at the first one
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        return found
    if iou_type == "segm":
        # With a box beside the mask pycocotools would take the box's area as the mask's; APs, APm, APl would change.
        results = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
    return truth.loadRes(results)
