"""COCO's figures from a results file, by faster-coco-eval or, as the reference, by pycocotools.

Measured by tools/bench/evaluation.py (processor seconds, files and all; pycocotools 2.0.11, faster-coco-eval 1.8.0): COCO's
fake results 0.2 instead of 1.2 (boxes) and 0.8 (masks); 5,000 images with 36,000 objects and 180,000 detections 11 instead
of 62 and 19 instead of 71. The figures are equal but for the last bit.
"""

import contextlib
import io
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada_det.data.coco_numbers import numbered
from dada_det.files import read_json

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def has_faster_evaluator() -> bool:
    """Whether faster-coco-eval is installed: then it is the default."""
    return find_spec("faster_coco_eval") is not None


def evaluate_results(annotation_file: str | Path, results_file: str | Path, iou_type: str,
                     reference: bool = False) -> dict[str, float]:
    """COCO's twelve figures in percent for detections in COCO's results format; iou_type "bbox" or "segm".

    AP is the mean over IoU 0.50:0.95, sizes are s < 32^2 <= m < 96^2 <= l pixels, AR1 allows one detection an image. The ids
    may be any whole numbers. A figure is -1, as in pycocotools, if the annotations hold nothing of that size.

    Args:
        reference: use pycocotools even if the faster evaluator is installed.
    """
    results = read_json(results_file, "results file")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluation_of(annotation_file, results, iou_type, reference)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(value) if value > -1 else -1.0
            for name, value in zip(FIGURES, evaluation.stats[:len(FIGURES)], strict=True)}


def evaluation_of(annotation_file: str | Path, results: Iterable[dict[str, Any]], iou_type: str, reference: bool) -> Any:
    """The COCOeval of detections in COCO's results format, before evaluate(); all its ids are numbers from 1."""
    truth = numbered(read_json(annotation_file, "annotation file"))
    if reference or not has_faster_evaluator():
        index, evaluator = COCO(), COCOeval
    else:
        import faster_coco_eval

        index, evaluator = faster_coco_eval.COCO(), faster_coco_eval.COCOeval_faster
    index.dataset = truth.content
    index.createIndex()
    return evaluator(index, index_results(index, list(truth.results(results)), iou_type), iou_type)


def index_results(truth: Any, results: list[dict[str, Any]], iou_type: str) -> Any:
    """`results` as a COCO index beside that of `truth`, of the class that `truth` has."""
    if not results:  # loadRes looks at the first one
        found = type(truth)()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        return found
    if iou_type == "segm":
        # With a box beside the mask pycocotools would take the box's area as the mask's; APs, APm, APl would change.
        results = [{name: value for name, value in result.items() if name != "bbox"} for result in results]
    return truth.loadRes(results)
