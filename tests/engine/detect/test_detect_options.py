"""--cfg-options of a detector: what MMDetection's users write works, a slip is named with the nearest key."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from dada_det.engine.detect.options import check_options
from dada_det.engine.runtime.launch import parse_options, read_config
from tests.messages import refused

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@cache
def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py", import_custom_modules=False, format_python_code=False)


def check(*options: str, name: str = "debug/faster_rcnn") -> None:
    before, given = read(name), parse_options(options)
    after = copy.deepcopy(before)
    after.merge_from_dict(given)
    check_options(before, after, given)


@pytest.mark.parametrize("options", [
    ["optim_wrapper.clip_grad.norm_type=1"], ["optim_wrapper.clip_grad=None"], ["optim_wrapper.accumulative_counts=2"],
    ["optim_wrapper.paramwise_cfg.norm_decay_mult=0.0"], ["optim_wrapper.paramwise_cfg=dict(bias_lr_mult=2)"],
    ["optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.momentum=0.9"], ["optim_wrapper.optimizer.lr=0.1"],
    ["model.test_cfg.rcnn.score_thr=0.0"], ["model.test_cfg.rcnn.mask_thr_binary=0.4"], ["model.test_cfg.whatever=1"],
    ["model.backbone.with_cp=True"], ["model.backbone.init_cfg.prefix=backbone."], ["model.neck.norm_cfg.type=BN"],
    ["model.roi_head.bbox_head.loss_cls.class_weight=[1,2]"], ["model.rpn_head.anchor_generator.scales=[4]"],
    ["model.data_preprocessor.pad_size_divisor=64"], ["model.train_cfg.rcnn.pos_weight=2"],
    ["randomness.seed=3"], ["randomness.deterministic=True"], ["default_hooks.checkpoint.save_best=auto"],
    ["default_hooks.checkpoint.max_keep_ckpts=3"], ["default_hooks.logger.interval=10"], ["default_hooks.timer=None"],
    ["default_hooks.early_stopping.type=EarlyStoppingHook", "default_hooks.early_stopping.monitor=coco/bbox_mAP"],
    ["train_dataloader.batch_size=2"], ["train_dataloader.prefetch_factor=4"], ["train_dataloader.drop_last=True"],
    ["train_dataloader.dataset.ann_file=a.json"], ["train_dataloader.dataset.metainfo.classes=('a','b')"],
    ["train_dataloader.dataset.indices=100"], ["train_dataloader.dataset.filter_cfg.min_size=0"],
    ["train_dataloader.dataset.pipeline.2.scale=(64,64)"], ["train_dataloader.dataset.data_prefix.seg=maps/"],
    ["train_dataloader.dataset.pipeline.1.with_mask=True"], ["val_evaluator.classwise=True"],
    ["val_evaluator.iou_thrs=[0.5]"], ["train_cfg.max_iters=3"], ["train_cfg.dynamic_intervals=[(2,1)]"],
    ["param_scheduler.0.end=3"], ["param_scheduler.1.verbose=True"], ["param_scheduler=None"], ["load_from=a.pth"],
    ["resume=True"], ["env_cfg.cudnn_benchmark=True"], ["env_cfg.dist_cfg.timeout=60"], ["log_processor.window_size=5"],
    ["visualizer.vis_backends.0.type=TensorboardVisBackend"], ["find_unused_parameters=True"], ["auto_scale_lr.enable=True"],
    ["compile=True"], ["custom_hooks.0.priority=1"], ["work_dir=w"], ["data_root=d"], ["default_scope=mmdet"],
    ["log_level=INFO"], ["val_evaluator.metric=bbox"], ["model.rpn_head.loss_bbox.loss_weight=2"]])
def test_what_users_write_works(options: list[str]) -> None:
    check(*options)


@pytest.mark.parametrize(("option", "names"), [
    ("optim_wraper.optimizer.lr=0.1", ("optim_wraper", "optim_wrapper")),
    ("optim_wrapper.optimiser.lr=0.1", ("optim_wrapper.optimiser", "optim_wrapper.optimizer")),
    ("optim_wrapper.optimizer.Lr=0.1", ("optim_wrapper.optimizer.Lr", "optim_wrapper.optimizer.lr")),
    ("optim_wrapper.clip_grad.maxnorm=1", ("optim_wrapper.clip_grad.max_norm",)),
    ("optim_wrapper.paramwise_cfg.norm_decay=0", ("optim_wrapper.paramwise_cfg.norm_decay_mult",)),
    ("lr=0.1", ("lr",)), ("label_smoothing=0.1", ("label_smoothing",)),
    ("model.backbone.frozen_stage=1", ("model.backbone.frozen_stages",)),
    ("model.roi_head.bbox_head.numclasses=3", ("model.roi_head.bbox_head.num_classes",)),
    ("model.test_cfg.rpn.nms_pree=9", ("model.test_cfg.rpn.nms_pre",)),
    ("model.rpn_head.loss_bbox.weight=2", ("model.rpn_head.loss_bbox.weight",)),
    ("randomness.sed=1", ("randomness.seed",)),
    ("default_hooks.checkpoints.interval=1", ("default_hooks.checkpoints", "default_hooks.checkpoint")),
    ("default_hooks.checkpoint.intervall=1", ("default_hooks.checkpoint.interval",)),
    ("train_dataloader.batchsize=1", ("train_dataloader.batch_size",)),
    ("train_dataloader.dataset.annfile=a.json", ("train_dataloader.dataset.ann_file",)),
    ("train_dataloader.dataset.pipeline.2.scales=(64,64)", ("train_dataloader.dataset.pipeline.2.scale",)),
    ("train_dataloader.dataset.filter_cfg.filter_empty=1", (re.compile(r"is train_dataloader\.dataset\.filter_cfg\."),)),
    ("val_evaluator.class_wise=True", ("val_evaluator.classwise",)),
    ("train_cfg.max_iter=3", ("train_cfg.max_iters",)),
    ("param_scheduler.0.start_factors=0.5", ("param_scheduler.0.start_factor",)),
    ("size=(64,64)", ("gives size", "faster_rcnn.py")), ("iterations=3", ("gives iterations", "faster_rcnn.py")),
    ("optim_wrapper=SGD", ("'SGD'", "optim_wrapper.type=value")),
    ("model.neck=FPN", ("'FPN'", "model.neck.type=value")),
    ("train_dataloader.batch_size=two", ("'two'", "train_dataloader.batch_size", "4", "number")),
    ("model.backbone.norm_eval=maybe", ("'maybe'", "model.backbone.norm_eval", "True or False"))])
def test_a_slip_is_named(option: str, names: tuple[object, ...]) -> None:
    with refused("--cfg-options", *names):
        check(option)


@pytest.mark.parametrize("option", ["train_dataloader.dataset.pipeline.9.scale=3", "custom_hooks.first=3"])
def test_a_place_that_a_list_does_not_have(option: str) -> None:
    with refused(f"gives {option.partition('=')[0]},", "first entry is 0"):
        read_config(str(CONFIGS / "debug/faster_rcnn.py"), [option])


def test_a_dict_comes_where_there_was_none() -> None:
    config = read_config(str(CONFIGS / "retinanet_r50_dada.py"), ["optim_wrapper.clip_grad=None", "load_from={'a': 1}"])
    assert config.optim_wrapper.clip_grad is None and config.load_from == {"a": 1}
    for option in ("optim_wrapper.clip_grad.max_norm=35", "optim_wrapper.clip_grad={'max_norm': 35}"):
        config = read_config(str(CONFIGS / "retinanet_r50_dada.py"), [option])
        assert config.optim_wrapper.clip_grad == {"max_norm": 35} and config.optim_wrapper.type == "OptimWrapper"


@pytest.mark.parametrize("name", ["retinanet_r50_dada", "mask_rcnn_r50_dada_ms3x"])
def test_the_shipped_configs_take_what_their_kind_takes(name: str) -> None:
    check("optim_wrapper.optimizer.lr=0.01", "optim_wrapper.clip_grad.max_norm=35", "train_cfg.max_epochs=2",
          "default_hooks.checkpoint.interval=2", name=name)
