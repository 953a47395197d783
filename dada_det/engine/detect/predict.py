"""Runs a detector on images without annotations: paints copies and writes one file in COCO's style."""

import datetime
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from torch import nn

from dada_det.data.checks import coco_categories
from dada_det.data.decode import load_image
from dada_det.engine.detect import config as change
from dada_det.engine.detect import guard  # noqa: F401  registers DADAResNet and hands mmcv its operators
from dada_det.engine.detect.run import classes_in, matching_weights
from dada_det.engine.runtime.checkpoint import check_checkpoint, forbid_unsafe_loading
from dada_det.errors import UserError
from dada_det.files import write_json

FILE = "predictions.json"
SECONDS = 10.0  # between lines of progress


def run_prediction(config: Config, checkpoint: str, pictures: Sequence[tuple[Path, str]], out: Path, score: float) -> None:
    """Paints what the detector finds with at least `score` in each image into out/<name>, and writes out/predictions.json.

    Args:
        pictures: (image file, name).

    Prints progress, the files that do not decode, and one closing line.

    Raises:
        UserError: the checkpoint is not this detector's, or no image decodes.
    """
    model, classes = detector(config, checkpoint)
    visualizer = painter(classes)
    pipeline = pipeline_of(config)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    broken: list[Path] = []
    ids = category_ids(classes)
    began = last = time.monotonic()
    for done, (path, name) in enumerate(pictures, 1):
        try:
            image_HWC = np.asarray(load_image(path))
        except OSError:
            print(f"predict  {path} does not decode and is passed over", flush=True)
            broken.append(path)
            continue
        found = detect(model, pipeline, image_HWC)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        visualizer.add_datasample(name, image_HWC, found, draw_gt=False, pred_score_thr=score, out_file=str(out / name))
        images.append({"id": len(images) + 1, "file_name": str(path), "width": image_HWC.shape[1],
                       "height": image_HWC.shape[0]})
        for entry in entries_of(found.pred_instances, score):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images),
                                "category_id": ids[entry.pop("label")], **entry})
        now = time.monotonic()
        if now - last >= SECONDS:
            last, rate = now, (done - len(broken)) / (now - began)
            left = datetime.timedelta(seconds=round((now - began) / done * (len(pictures) - done)))
            print(f"predict  {done}/{len(pictures)}  {rate:.1f} images/s  ETA {left}", flush=True)
    if not images:
        raise UserError(f"none of the {len(pictures)} images decodes, such as {broken[0]}; give images that do")
    write_json(out / FILE, {"images": images, "annotations": annotations,
                            "categories": [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]})
    rate = len(images) / (time.monotonic() - began)
    passed = f"; {len(broken)} did not decode and were passed over" if broken else ""
    print(f"predict  done: {len(images)} pictures and {FILE} in {out}; {len(annotations)} objects of score {score:g} and "
          f"more, {rate:.1f} images/s{passed}")


def detector(config: Config, checkpoint: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The detector with the checkpoint's weights, on the device, and the categories that the checkpoint names."""
    forbid_unsafe_loading()
    from mmdet.registry import MODELS  # guard has imported mmdet

    content = check_checkpoint(checkpoint)
    classes = classes_in(content)
    if not classes:
        raise UserError(f"the checkpoint {checkpoint} does not name its categories; give an epoch_N.pth that "
                        "tools/train_det.py wrote")
    change.use_backbone(config)
    change.use_classes(config, classes)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    model.load_state_dict(matching_weights(content, model, checkpoint, config))
    return model.to(get_device()).eval(), classes


def pipeline_of(config: Config) -> Any:
    """The test pipeline for an image that is loaded already."""
    from mmcv.transforms import Compose
    from mmdet.registry import TRANSFORMS

    steps = [dict(step) for step in change.innermost(config.test_dataloader.dataset).pipeline
             if step["type"] not in ("LoadAnnotations", "LoadProposals")]
    steps[0] = {"type": "mmdet.LoadImageFromNDArray"}
    return Compose([TRANSFORMS.build(step) for step in steps])


@torch.no_grad()
def detect(model: Any, pipeline: Any, image_HWC: np.ndarray) -> Any:
    """MMDetection's DetDataSample of an RGB image, uint8 [H,W,3], on the CPU."""
    data = pipeline({"img": np.ascontiguousarray(image_HWC[..., ::-1]), "img_id": 0})  # mmcv's order is BGR
    return model.test_step({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]})[0].cpu()


def painter(classes: Sequence[str]) -> Any:
    """MMDetection's own visualiser, with a colour for each category."""
    # Boxes may reach beyond the image, and a name above the first row does.
    warnings.filterwarnings("ignore", message=r"Warning: The \w+ is out of bounds")
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = {"classes": tuple(classes), "palette": change.palette_of(len(classes))}
    return visualizer


def category_ids(classes: Sequence[str]) -> list[int]:
    """COCO's own ids where the categories are COCO's 80 in its order, else 1, 2, 3, .."""
    known = coco_categories()
    if [category["name"] for category in known] == list(classes):
        return [category["id"] for category in known]
    return list(range(1, len(classes) + 1))


def entries_of(instances: Any, score: float) -> list[dict[str, Any]]:
    """What COCO's annotations hold of each instance, the surest first: box, area, score, mask; and "label", its place."""
    entries = []
    for place in instances.scores.argsort(descending=True).tolist():
        if instances.scores[place] < score:
            break
        left, top, right, bottom = instances.bboxes[place].tolist()
        entry: dict[str, Any] = {"label": int(instances.labels[place]), "iscrowd": 0,
                                 "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                                 "area": round((right - left) * (bottom - top), 2),
                                 "score": round(float(instances.scores[place]), 5)}
        if "masks" in instances:
            code = coco_mask.encode(np.asfortranarray(instances.masks[place].numpy().astype(np.uint8)))
            entry |= {"area": float(coco_mask.area(code)),
                      "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}}
        entries.append(entry)
    return entries
