"""The detectors' configs: what they are beside MMDetection's own, that each builds, and what flags and data make of them."""

import copy
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet50

from dada_det.commands.common import load_config
from dada_det.commands.detector_data import demand_class_numbers
from dada_det.data.checks import CocoLayout
from dada_det.engine.detect import config as detector_config
from dada_det.engine.detect.run import demand_maps
from dada_det.models.backbone import IMAGENET, export_backbone
from tests.messages import refused

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
# ms3x: each epoch passes three times
EPOCHS = {"": (12, [8, 11]), "_2x": (24, [16, 22]), "_ms3x": (12, [9, 11]), "_adamw": (12, [8, 11])}
SOURCES = {
    "retinanet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "retinanet_2x": "retinanet/retinanet_r50_fpn_2x_coco.py",
    "retinanet_ms3x": "retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py",
    "faster_rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "faster_rcnn_2x": "faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py",
    "faster_rcnn_ms3x": "faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py",
    "mask_rcnn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "retinanet_adamw": "resnet_strikes_back/retinanet_r50-rsb-pre_fpn_1x_coco.py",
    "faster_rcnn_adamw": "resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py",
    "mask_rcnn_adamw": "resnet_strikes_back/mask-rcnn_r50-rsb-pre_fpn_1x_coco.py",
    "mask_rcnn_2x": "mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py",
    "mask_rcnn_ms3x": "mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py",
}
EVERY = sorted(path.stem for name in DETECTORS for path in CONFIGS.glob(f"{name}_r50_*.py"))
META = {**IMAGENET, "classes": [], "policy_sha256": None}


@cache
def read(path):
    return Config.fromfile(path, import_custom_modules=False, format_python_code=False)


def config_of(name, **changes):
    config = copy.deepcopy(read(CONFIGS / f"{name}.py"))
    config.merge_from_dict(changes)
    return config


def build(part, registry):
    from mmdet import registry as registries
    from mmengine.registry import DefaultScope

    import dada_det.engine.detect.guard  # noqa: F401  registers DADAResNet

    with DefaultScope.overwrite_default_scope("mmdet"):
        return getattr(registries, registry).build(part)


def pipelines_of(config):
    for part in ("train", "val", "test"):
        dataset = config[f"{part}_dataloader"].dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        yield part, dataset.pipeline


def test_there_is_a_config_for_each_detector_schedule_and_twin():
    wanted = {f"{name}_r50_{twin}{schedule}" for name in DETECTORS for twin in ("dada", "baseline") for schedule in EPOCHS}
    assert set(EVERY) == wanted


@pytest.mark.parametrize("name", EVERY)
def test_model_pipelines_and_evaluator_build_without_data(name):
    config = config_of(name)
    with torch.device("meta"):
        model = build(config.model, "MODELS")
    assert type(model.backbone).__name__ == "DADAResNet" and model.backbone.depth == 50
    assert detector_config.has_masks(config) == name.startswith("mask_rcnn") == bool(getattr(model, "with_mask", False))
    for part, pipeline in pipelines_of(config):
        steps = [build(step, "TRANSFORMS") for step in pipeline]
        assert type(steps[-1]).__name__ == "PackDetInputs", part
    assert config.val_evaluator.metric == (["bbox", "segm"] if name.startswith("mask_rcnn") else "bbox")


@pytest.mark.parametrize("schedule", EPOCHS)
@pytest.mark.parametrize("name", DETECTORS)
def test_schedule_batch_and_learning_rate(name, schedule):
    config = config_of(f"{name}_r50_dada{schedule}")
    warmup, steps = config.param_scheduler
    assert (config.train_cfg.max_epochs, steps.milestones) == EPOCHS[schedule]
    assert (steps.end, steps.gamma, steps.by_epoch) == (config.train_cfg.max_epochs, 0.1, True)
    assert (warmup.type, warmup.begin, warmup.end, warmup.by_epoch) == ("LinearLR", 0, 500, False)
    rate = (0.01 if name == "retinanet" else 0.02) / (100 if schedule == "_adamw" else 1)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(rate)
    assert config.optim_wrapper.optimizer.type == ("AdamW" if schedule == "_adamw" else "SGD")
    assert config.auto_scale_lr == {"enable": True, "base_batch_size": 16}
    assert config.train_dataloader.batch_size == 2
    dataset = config.train_dataloader.dataset
    resize = dict(pipelines_of(config))["train"][2]
    if schedule == "_ms3x":
        assert (dataset.type, dataset.times) == ("RepeatDataset", 3)
        assert (resize.type, [tuple(scale) for scale in resize.scale]) == ("RandomResize", [(1333, 640), (1333, 800)])
    else:
        assert (dataset.type, resize.type, tuple(resize.scale)) == ("CocoDataset", "Resize", (1333, 800))


@pytest.mark.parametrize("schedule", EPOCHS)
@pytest.mark.parametrize("name", DETECTORS)
def test_twins_differ_in_the_weights_only(name, schedule):
    twins = []
    for twin in ("dada", "baseline"):
        config = config_of(f"{name}_r50_{twin}{schedule}").to_dict()
        path = config["model"]["backbone"]["init_cfg"].pop("checkpoint")
        assert path == config.pop("backbone")
        assert str(Path(path).parent) in config.pop("backbone_command")
        twins.append((path, config))
    assert [path for path, _ in twins] == ["work_dirs/pretrain_r50/r50.pth", "work_dirs/pretrain_r50_none/r50.pth"]
    assert twins[0][1] == twins[1][1]


@pytest.mark.parametrize("name", SOURCES)
def test_configs_are_mmdetection_s_but_for_the_backbone_and_the_scaling(name, tmp_path):
    (tmp_path / "theirs.py").write_text(f"_base_ = 'mmdet::{SOURCES[name]}'")
    detector = next(detector for detector in DETECTORS if name.startswith(detector))
    schedule = name.removeprefix(detector)
    ours, theirs = config_of(f"{detector}_r50_dada{schedule}").to_dict(), read(tmp_path / "theirs.py").to_dict()
    assert ours["model"]["backbone"].pop("type") == "DADAResNet"
    for config in (ours, theirs):
        assert config["model"]["backbone"].pop("init_cfg")["type"] == "Pretrained"
    assert theirs["model"]["backbone"].pop("type") == "ResNet"
    assert [config["auto_scale_lr"].pop("enable") for config in (ours, theirs)] == [True, False]
    assert {key: ours[key] for key in theirs} == theirs


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "r50.pth"
    torch.manual_seed(5)
    export_backbone(resnet50(weights=None).state_dict(), path, META)
    return path


SYNC = {"model.backbone.norm_cfg.type": "SyncBN", "model.backbone.norm_eval": False}
FROZEN = {"model.backbone.norm_cfg.requires_grad": False}


@pytest.mark.parametrize(("change", "kind", "learns", "measures"), [
    ({}, torch.nn.BatchNorm2d, True, False), (SYNC, torch.nn.SyncBatchNorm, True, True),
    (FROZEN, torch.nn.BatchNorm2d, False, False)], ids=["as MMDetection", "SyncBN", "frozen"])
def test_batch_norm_variants_load_the_same_file_and_train(change, kind, learns, measures, backbone_file):
    """The three spellings of README, on the backbone alone; frozen_stages=1 leaves stages 2 to 4 to learn."""
    config = config_of("faster_rcnn_r50_dada", **change, **{"model.backbone.init_cfg.checkpoint": str(backbone_file)})
    backbone = build(config.model.backbone, "MODELS")
    backbone.init_weights()
    backbone.preprocessing_checked = True
    backbone.train()
    norms = {name: module for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    later = [module for name, module in norms.items() if name.startswith(("layer2", "layer3", "layer4"))]
    assert len(norms) == 53 and all(isinstance(module, kind) for module in norms.values())
    assert {module.weight.requires_grad for module in later} == {learns}
    before = backbone.layer4[2].bn3.running_mean.clone()
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert (backbone.layer4[2].bn3.weight.grad is not None) == learns
    assert (not torch.equal(backbone.layer4[2].bn3.running_mean, before)) == measures
    assert backbone.layer4[2].conv3.weight.grad.abs().sum() > 0


def test_data_decides_every_head_s_classes():
    config = config_of("mask_rcnn_r50_dada_ms3x")
    layout = CocoLayout(*(Path(part) for part in ("t.json", "t", "v.json", "v")), None, None)
    detector_config.use_data(config, layout, ("cell", "nucleus"))
    assert config.model.roi_head.bbox_head.num_classes == config.model.roi_head.mask_head.num_classes == 2
    train, test = config.train_dataloader.dataset.dataset, config.test_dataloader.dataset
    assert (train.ann_file, train.data_prefix, train.data_root) == ("t.json", {"img": "t"}, "")
    assert (test.ann_file, test.data_prefix) == ("v.json", {"img": "v"})
    assert train.metainfo.classes == ("cell", "nucleus")
    assert len(set(train.metainfo.palette)) == 2
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == "v.json"


@pytest.mark.parametrize("name", ["htc/htc_r50_fpn_1x_coco", "faster_rcnn/faster-rcnn_r50_fpn_fcos-rpn_1x_coco"])
def test_heads_of_other_classes_than_the_datas_keep_theirs(name):
    config = load_config(f"mmdet::{name}.py")
    before = [config.model.get("rpn_head", {}).get("num_classes"),
              config.model.roi_head.get("semantic_head", {}).get("num_classes")]
    demand_class_numbers(config.model, 80, (), Path("a.json"))
    demand_class_numbers(config.model, 2, ("model.roi_head.semantic_head.num_classes=183",), Path("a.json"))
    detector_config.use_classes(config, ("cell", "nucleus"))
    assert before == [config.model.get("rpn_head", {}).get("num_classes"),
                      config.model.roi_head.get("semantic_head", {}).get("num_classes")] != [None, None]
    boxes = config.model.roi_head.bbox_head
    assert {head.num_classes for head in (boxes if isinstance(boxes, list) else [boxes])} == {2}


def test_maps_of_pixels_classes_stay_beside_the_images_or_are_missed(tmp_path):
    config = load_config("mmdet::htc/htc_r50_fpn_1x_coco.py")
    layout = CocoLayout(tmp_path / "t.json", tmp_path / "train2017", None, None, None, None)
    detector_config.use_data(config, layout, ("cell",))
    maps = tmp_path / "stuffthingmaps/train2017"
    assert Path(config.train_dataloader.dataset.data_prefix.seg) == maps
    with refused("htc_r50_fpn_1x_coco", re.compile(re.escape(str(maps))), "data_prefix.seg", "semantic_head"):
        demand_maps(config)
    maps.mkdir(parents=True)
    demand_maps(config)
    config.train_dataloader.dataset.data_prefix.seg = os.path.relpath(maps)  # as in a copy of the config
    detector_config.use_data(config, layout, ("cell",))
    demand_maps(config)
    demand_maps(config_of("mask_rcnn_r50_dada"))


def test_the_data_decides_the_classes_of_mask2former_and_its_masks_are_seen():
    config = load_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    assert detector_config.has_masks(config)
    detector_config.use_classes(config, ("cell", "nucleus"))
    head = config.model.panoptic_head
    assert head.num_things_classes == config.model.panoptic_fusion_head.num_things_classes == 2
    assert head.num_stuff_classes == 0 and head.loss_cls.class_weight == [1.0, 1.0, 0.1]
    with torch.device("meta"):
        config.model.backbone.init_cfg = None
        assert build(config.model, "MODELS").panoptic_head.cls_embed.out_features == 3
    head.loss_cls.class_weight = [2.0, 3.0, 0.5]  # chosen for these classes
    detector_config.use_classes(config, ("cell", "nucleus"))
    assert head.loss_cls.class_weight == [2.0, 3.0, 0.5]
    assert detector_config.has_masks(load_config("mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"))
    assert not detector_config.has_masks(load_config("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"))


@pytest.mark.parametrize(("name", "head"), [("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic", "Mask2FormerHead"),
                                            ("panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco", "PanopticFPNHead")])
def test_a_head_that_names_stuff_is_refused(name, head):
    with refused(head, "53", "num_stuff_classes", "a.json", "mask2former_r50_8xb2-lsj-50e_coco.py"):
        demand_class_numbers(load_config(f"mmdet::{name}.py").model, 80, (), Path("a.json"))


def test_a_part_that_is_not_there_leaves_its_dataloader_alone():
    config = config_of("retinanet_r50_dada")
    before = config.train_dataloader.dataset.ann_file
    detector_config.use_data(config, CocoLayout(None, None, Path("v.json"), Path("v"), None, None), ("cell",))
    assert config.train_dataloader.dataset.ann_file == before
    assert config.test_dataloader.dataset.ann_file == config.test_evaluator.ann_file == "v.json"


def schedule_of(config):
    return [{name: each.get(name) for name in ("begin", "end", "milestones", "T_max") if name in each}
            for each in config.param_scheduler]


def test_epochs_stretch_a_schedule_of_epochs_and_shorten_the_warm_up():
    config = config_of("retinanet_r50_dada")
    detector_config.use_epochs(config, 36, images=117266, processes=8)
    assert config.train_cfg.max_epochs == 36
    assert schedule_of(config) == [{"begin": 0, "end": 500}, {"begin": 0, "end": 36, "milestones": [24, 33]}]
    config = config_of("retinanet_r50_dada")
    detector_config.use_epochs(config, None, images=100, processes=1)  # 12 epochs of 50 steps
    assert schedule_of(config) == [{"begin": 0, "end": 60}, {"begin": 0, "end": 12, "milestones": [8, 11]}]
    config = config_of("retinanet_r50_dada_ms3x")
    detector_config.use_epochs(config, 2, images=100, processes=1)  # each epoch passes three times: 300 steps
    assert schedule_of(config)[0]["end"] == 30


def test_epochs_of_a_config_that_counts_iterations_are_passes_over_the_images():
    config = config_of("debug/faster_rcnn")
    detector_config.use_epochs(config, 3, images=41, processes=1)  # batch 4: 11 steps an epoch
    assert config.train_cfg.max_iters == 33
    assert schedule_of(config) == [{"begin": 0, "end": 7}, {"begin": 7, "end": 33}]
    config = config_of("debug/faster_rcnn")
    before = schedule_of(config)
    detector_config.use_epochs(config, None, images=41, processes=1)
    assert config.train_cfg.max_iters == 50 and schedule_of(config) == before


def test_a_very_short_schedule_has_no_empty_part():
    config = config_of("debug/faster_rcnn")
    detector_config.use_epochs(config, 1, images=4, processes=1)
    assert config.train_cfg.max_iters == 1 and [each["end"] for each in schedule_of(config)] == [1, 1]


def test_a_schedule_that_is_one_dict_or_none_is_stretched_too():
    config = load_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    detector_config.use_epochs(config, 5, images=200, processes=1)  # batch 2: 100 steps an epoch
    assert config.train_cfg.max_iters == 500
    assert (config.param_scheduler.end, config.param_scheduler.milestones) == (500, [444, 481])
    config.param_scheduler = None
    detector_config.use_epochs(config, 1, images=200, processes=1)
    assert config.train_cfg.max_iters == 100 and config.param_scheduler is None


def test_image_size_is_the_longer_side_in_every_pipeline():
    config = config_of("mask_rcnn_r50_dada_ms3x")
    detector_config.use_image_size(config, 400)
    pipelines = dict(pipelines_of(config))
    assert pipelines["train"][2].scale == [(320, 320), (400, 400)] and pipelines["train"][2].keep_ratio
    assert [step.scale for part in ("val", "test") for step in pipelines[part] if step.type == "Resize"] == [(400, 400)] * 2


@pytest.mark.parametrize(("name", "changes", "names"), [
    ("mask2former/mask2former_r50_8xb2-lsj-50e_coco", {}, ("RandomResize", "ratio_range", "train_dataloader")),
    ("detr/detr_r50_8xb2-150e_coco", {}, ("RandomChoiceResize", "train_dataloader")),  # inside RandomChoice
    ("retinanet/retinanet_r50_fpn_1x_coco", {"test_dataloader.dataset.pipeline.1.type": "mmdet.FixScaleResize"},
     ("mmdet.FixScaleResize", "test_dataloader")),
    ("yolox/yolox_s_8xb8-300e_coco", {}, ("BatchSyncRandomResize", "model.data_preprocessor"))])
def test_an_image_size_that_a_pipeline_cannot_take_is_refused_and_nothing_changed(name, changes, names):
    config = load_config(f"mmdet::{name}.py")
    config.merge_from_dict(changes)
    before = config.to_dict()
    with refused("--image-size", re.compile(re.escape(name)), "--cfg-options", *names):
        detector_config.use_image_size(config, 400)
    assert config.to_dict() == before


def test_image_size_reaches_the_pipeline_behind_a_mosaic():
    config = load_config("mmdet::yolox/yolox_s_8xb8-300e_coco.py")
    config.model.data_preprocessor.batch_augments = None
    detector_config.use_image_size(config, 400)
    assert [step.scale for step in config.train_dataloader.dataset.pipeline if step.type == "Resize"] == [(400, 400)]


@pytest.mark.parametrize(("given", "wrapper"), [
    ({}, {"find_unused_parameters": False}), ({"find_unused_parameters": True}, {"find_unused_parameters": True}),
    ({"model_wrapper_cfg": {"static_graph": True, "broadcast_buffers": True}},
     {"static_graph": True, "broadcast_buffers": True})])
def test_over_gloo_the_config_s_own_wrapper_stays(given, wrapper):
    config = config_of("retinanet_r50_dada", **given)
    detector_config.use_processes(config, "pytorch", gloo=True)
    assert config.launcher == "pytorch" and config.model_wrapper_cfg == {
        "type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False, **wrapper}
    config = config_of("retinanet_r50_dada", **given)
    detector_config.use_processes(config, "pytorch", gloo=False)
    assert config.get("model_wrapper_cfg") == given.get("model_wrapper_cfg")


def test_results_of_the_validation_are_kept_beside_its_figures(tmp_path):
    config = config_of("retinanet_r50_dada")
    detector_config.use_results_of_validation(config, tmp_path / "results")
    assert config.train_cfg.val_interval == 12
    detector_config.use_data(config, CocoLayout(None, None, Path("v.json"), Path("v"), None, None), ("cell",))
    figures, results = config.val_evaluator
    assert figures.type in ("NumberedCocoMetric", "NumberedFasterCocoMetric") and results.type == "StreamedResults"
    assert figures.ann_file == results.ann_file == config.test_evaluator.ann_file == "v.json"
