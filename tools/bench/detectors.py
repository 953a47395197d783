#!/usr/bin/env python
"""Which of MMDetection's detectors train and evaluate on this project's backbone, here: one step and one evaluation each.

    python tools/bench/detectors.py --data ../shared/data/coco-tiny [--only atss detr] [--json results/detectors.json]

Every config is MMDetection's own with a ResNet-50 (RTMDet's with timm's ResNet-18); the command puts the backbone behind the
guard, as tools/train_det.py does with --backbone. Images are 128 px (256 where queries are taken from the maps, of which
smaller ones have too few places) and there are two of each kind, so that a CPU will do; the backbone is random, as it is the
operators that are looked at. With --only the other rows of FILE stay.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common, train_det
from dada_det.errors import UserError
from dada_det.files import read_json, write_json
from dada_det.report.measurements import commit, write_rows

SIDE, IMAGES = 128, 2
LARGER = {"DINO": 256, "QueryInst": 256}
CONFIGS = {  # name -> MMDetection's config
    "Cascade Mask R-CNN": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "Deformable DETR": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "Sparse R-CNN": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "RTMDet": "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "Faster R-CNN, soft-NMS": "faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py",
    "VFNet": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "YOLOF": "yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "TOOD": "tood/tood_r50_fpn_1x_coco.py",
    "PAA": "paa/paa_r50_fpn_1x_coco.py",
    "CARAFE": "carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py",
    "SOLO": "solo/solo_r50_fpn_1x_coco.py",
    "Conditional DETR": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DAB-DETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "QueryInst": "queryinst/queryinst_r50_fpn_1x_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "DDOD": "ddod/ddod_r50_fpn_1x_coco.py",
    "FSAF": "fsaf/fsaf_r50_fpn_1x_coco.py",
    "AutoAssign": "autoassign/autoassign_r50-caffe_fpn_1x_coco.py",
    "FreeAnchor": "free_anchor/freeanchor_r50_fpn_1x_coco.py",
    "SABL": "sabl/sabl-retinanet_r50_fpn_1x_coco.py",
    "Libra R-CNN": "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
    "Dynamic R-CNN": "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py",
    "Double-Head R-CNN": "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "Grid R-CNN": "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py",
    "Mask Scoring R-CNN": "ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco.py",
    "PointRend": "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "SOLOv2": "solov2/solov2_r50_fpn_1x_coco.py",
    "CondInst": "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "YOLACT": "yolact/yolact_r50_1xb8-55e_coco.py",
    "DDQ": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder in COCO's layout with all 80 categories")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="detectors whose name or config holds one of these words")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    args = parser.parse_args(argv)
    chosen = {name: path for name, path in CONFIGS.items()
              if not args.only or any(word.lower() in f"{name} {path}".lower() for word in args.only)}
    rows = other_rows(args.json, chosen) if args.json else []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        backbones = write_backbones(place)
        few = write_few(Path(args.data), place / "few")
        for name, path in chosen.items():
            row = {"detector": name, "config": f"mmdet::{path}",
                   **attempt(path, few, backbones, place / Path(path).stem, LARGER.get(name, SIDE))}
            rows.append(row)
            print(f"{row['detector']:24} {row['seconds']:6.1f} s  {row['outcome']}", flush=True)
            if args.json:
                write_rows(args.json, rows, {"images": IMAGES})
    return 0


def other_rows(file: str, chosen: Collection[str]) -> list[dict[str, Any]]:
    """The rows of `file` that are not `chosen` anew, which are taken out of it."""
    if not Path(file).is_file():
        return []
    commit()  # before this file differs from it
    content = read_json(Path(file), "file of results")
    content["rows"] = [row for row in content["rows"] if row["detector"] not in chosen]
    write_json(Path(file), content)
    return content["rows"]


def write_backbones(folder: Path) -> dict[str, Path]:
    """Random weights as pretraining would export them: "resnet50" and "resnet18"."""
    from dada_det.models.backbone import IMAGENET, export_backbone
    from dada_det.models.classifiers import build_classifier

    written = {}
    for name in ("resnet50", "resnet18"):
        written[name] = folder / f"{name}.pth"
        export_backbone(build_classifier(name, 0, 224).state_dict(), written[name],
                        {**IMAGENET, "classes": [], "policy_sha256": None}, name)
    return written


def write_few(data: Path, few: Path) -> Path:
    """The first images with some objects of each part of `data`, as a data set of its own."""
    from dada_det.data.checks import find_coco

    layout = find_coco(data, ("train", "val"))
    (few / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        annotations, images = layout.part(part)
        content = json.loads(annotations.read_text())
        full = [image for image in content["images"]
                if sum(each["image_id"] == image["id"] and not each["iscrowd"] for each in content["annotations"]) > 2]
        kept = {image["id"] for image in full[:IMAGES]}
        (few / f"{part}2017").symlink_to(images.resolve())
        (few / f"annotations/instances_{part}2017.json").write_text(json.dumps({
            "images": full[:IMAGES], "categories": content["categories"],
            "annotations": [each for each in content["annotations"] if each["image_id"] in kept]}))
    return few


def small(path: str, target: Path, side: int) -> None:
    """MMDetection's config with small images and a plain pipeline, for one step and one evaluation."""
    config = common.load_config(f"mmdet::{path}")
    backbone = config.model.backbone
    if backbone.get("style") == "caffe":  # its weights are another network's; the operators are the same
        backbone.style = "pytorch"
    if backbone.get("style") == "pytorch" or backbone.type != "ResNet":
        config.model.data_preprocessor.update(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    config.model.data_preprocessor.pad_size_divisor = 32  # RTMDet's pipeline pads, which the plain one does not
    if path.startswith("queryinst"):  # mmdet's pasting of masks fails on a CPU where boxes, of an untrained net, lie outside
        for head in config.model.roi_head.bbox_head:
            head.bbox_coder.clip_border = True
    masks = any(step.get("with_mask") for step in pipeline_of(config.train_dataloader.dataset))
    load = [{"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, **({"with_mask": True} if masks else {})},
            # YOLACT's anchors are those of squares, as its own pipeline makes them.
            {"type": "Resize", "scale": (side, side), "keep_ratio": not path.startswith("yolact")}]
    pack = {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip",
                                                   "flip_direction")}
    flip = {"type": "RandomFlip", "prob": 0.0}
    dataset = {"type": "CocoDataset", "data_root": "data/coco/", "ann_file": "", "data_prefix": {"img": ""}}
    loader: dict[str, Any] = {"batch_size": IMAGES, "num_workers": 0, "persistent_workers": False, "sampler": {
        "type": "DefaultSampler", "shuffle": False}}
    config.train_dataloader = {**loader, "dataset": {**dataset, "pipeline": [*load, flip, pack]}}
    for part in ("val", "test"):
        config[f"{part}_dataloader"] = {**loader, "dataset": {**dataset, "test_mode": True, "pipeline": [*load, flip, pack]}}
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 1, "val_interval": 1}
    config.param_scheduler, config.custom_hooks = [], []
    for part in ("val", "test"):
        config[f"{part}_evaluator"] = {"type": "CocoMetric", "metric": ["bbox", "segm"] if masks else "bbox", "ann_file": ""}
    config.dump(target)


def pipeline_of(dataset: Any) -> list[Any]:
    while "pipeline" not in dataset:
        dataset = dataset.dataset
    return dataset.pipeline


def attempt(path: str, few: Path, backbones: dict[str, Path], work_dir: Path, side: int) -> dict[str, Any]:
    """{"outcome": "runs" or why not, "side" in pixels, "seconds"} of one step and one evaluation."""
    began, said = time.monotonic(), io.StringIO()
    backbone = backbones["resnet18" if path.startswith("rtmdet") else "resnet50"]
    try:
        work_dir.mkdir()
        small(path, work_dir / "config.py", side)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = train_det.main([str(work_dir / "config.py"), "--backbone", str(backbone), "--data", str(few),
                                   "--work-dir", str(work_dir / "w")])
        lines = said.getvalue().strip().splitlines()
        outcome = "runs" if code == 0 else lines[-1]
    except (Exception, SystemExit) as error:  # whatever a detector of somebody else's raises is what is asked for
        outcome = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"outcome": outcome[:300], "side": side, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    sys.exit(main())
