"""tools/train_det.py: trains a detector on a pretrained backbone."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.commands.detector_data import data_layout, demand_classes, demand_evaluators, demand_same_categories
from dada_det.data.checks import check_coco
from dada_det.data.coco_instances import CocoSummary, what_is_learned
from dada_det.engine.runtime.environment import check_launcher
from dada_det.errors import UserError
from dada_det.files import make_folder

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains a detector; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "train_det.py", "Trains a detector whose backbone, every tensor of it, comes from a file.",
        "python tools/train_det.py configs/mask_rcnn_r50_dada.py --backbone r50.pth --data data/coco --gpus 8")
    add_detector_flags(parser)
    parser.add_argument("--policy", metavar="P", default="none", help="augments the training images, boxes and masks with "
                        "them: a policy.json, or a name such as dada-imagenet or random (default: none)")
    common.add_mirror_flag(parser)
    parser.add_argument("--amp", action="store_true", help="float16 with a dynamic loss scale (GPU)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch; the "
                        "project's configs do so anyway (--cfg-options auto_scale_lr.enable=False: never)")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                        help="go on from CHECKPOINT; without one, from the newest in --work-dir")
    common.add_keep_flag(parser)
    return common.run(body, parser, argv, module="dada_det.commands.train_det")


def body(args: Namespace) -> None:
    from dada_det.engine.detect.adopt import UNNAMED
    from dada_det.engine.detect.config import filter_of

    config = detector_config(args)
    if config.model.backbone.init_cfg.checkpoint == UNNAMED:
        raise UserError(f"{args.config} names no backbone file of this project's; give one with --backbone, such as the "
                        "r50.pth that tools/pretrain_r50.sh exports")
    backbone = config.model.backbone.init_cfg.checkpoint
    check_backbone(backbone, config)
    layout = data_layout(args, config, ("train", "val"))
    summary, val = check_coco(*layout.part("train")), check_coco(*layout.part("val"))
    what_is_learned(summary, layout.part("train")[0], filter_of(config))
    demand_classes(config, summary.categories, args.cfg_options, layout.part("train")[0])
    demand_evaluators(config, ("val",), layout)
    demand_same_categories(layout.train_annotations, summary, layout.val_annotations, val)
    if args.resume not in (None, "auto") and not Path(args.resume).is_file():
        raise UserError(f"the checkpoint {args.resume} of --resume does not exist; give an epoch_N.pth of a work_dir")
    scaling = config.auto_scale_lr = config.get("auto_scale_lr") or {"enable": False}
    if args.auto_scale_lr and "base_batch_size" not in scaling:
        raise UserError(f"--auto-scale-lr: {args.config} does not say for which batch its learning rate is; add "
                        "auto_scale_lr=dict(base_batch_size=16) to it")
    if args.keep is not None:
        hooks = config.get("default_hooks") or {}
        config.default_hooks = {**hooks, "checkpoint": {**(hooks.get("checkpoint") or {}), "max_keep_ckpts": args.keep}}
    from dada_det.augment.named import resolve

    mirror = common.mirror_of(args, config, resolve(args.policy)[1])  # a mistake is said before heavy imports
    make_folder(config.work_dir)
    from dada_det.engine.detect.policy_transform import use_policy, without_flips
    from dada_det.engine.detect.run import run_training

    use_policy(config, args.policy)
    if not mirror:
        without_flips(config)
    run_training(config, layout, summary, resume=args.resume, amp=args.amp,
                 auto_scale_lr=args.auto_scale_lr or bool(scaling.get("enable")), launcher=args.launcher)


def add_detector_flags(parser: ArgumentParser) -> None:
    """The flags of training and testing alike."""
    parser.add_argument("config", metavar="CONFIG", help="a detector's config, such as configs/retinanet_r50_dada.py, "
                        "your own for MMDetection, or one of MMDetection's: mmdet::atss/atss_r50_fpn_1x_coco.py")
    parser.add_argument("--backbone", metavar="FILE", help="the backbone's weights; default: the config's")
    parser.add_argument("--data", metavar="DIR", help="COCO's layout: annotations/, {train,val}2017/ or {train,val}/")
    parser.add_argument("--work-dir", metavar="W", help="where results go (default: work_dirs/<config stem>)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="as in MMDetection; --gpus needs none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="as in MMDetection, for launchers that "
                        "give it; LOCAL_RANK in the environment counts")
    common.add_common_flags(parser)


def detector_config(args: Namespace) -> Any:
    """CONFIG with --cfg-options, --work-dir and --backbone applied.

    Raises:
        UserError: it is no config of a detector that can be trained here, or nothing of --launcher has started the command.
    """
    check_launcher(getattr(args, "launcher", "none"))
    for name in ("backbone", "data"):
        path = getattr(args, name)
        if path and not Path(path).exists():
            raise UserError(f"--{name} {path} does not exist; give the path of one that does")
    config = common.load_config(args.config, args.cfg_options)
    if args.cfg_options:
        from dada_det.engine.detect.options import check_options
        from dada_det.engine.runtime.launch import parse_options

        check_options(common.load_config(args.config), config, parse_options(args.cfg_options))
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("backbone"), dict) or "type" not in model["backbone"]:
        raise UserError(f"{args.config} is no detector's config (it lacks model.backbone); give one of MMDetection's, or "
                        "one such as configs/retinanet_r50_dada.py")
    from dada_det.engine.detect.adopt import adopt, facts_of_checkpoint

    checkpoint = getattr(args, "checkpoint", None)
    there = checkpoint is not None and Path(checkpoint).is_file()  # `none` is the untrained detector
    adopt(config, args.backbone, args.config, facts_of_checkpoint(str(checkpoint), args.backbone) if there else None)
    init = config.model.backbone.get("init_cfg")
    if not isinstance(init, dict) or not (args.backbone or isinstance(init.get("checkpoint"), str)):
        raise UserError(f"{args.config} names no backbone file: model.backbone.init_cfg is {init}; make it "
                        "dict(type='Pretrained', checkpoint=FILE), as configs/retinanet_r50_dada.py does")
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if not isinstance(config.get(name), dict) or not isinstance(config[name].get("dataset"), dict):
            raise UserError(f"{args.config} has no {name} with a dataset; give all three, as MMDetection's configs do")
    for name in ("val_evaluator", "test_evaluator"):
        if not config.get(name):
            raise UserError(f"{args.config} has no {name}; give one, as MMDetection's configs do")
    config.work_dir = args.work_dir or config.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    if args.backbone:
        init["checkpoint"] = args.backbone
    return config


def check_backbone(path: str, config: Any) -> None:
    """Raises UserError if the backbone file is missing (it says which command makes it) or is no whole network."""
    if not Path(path).is_file():
        raise UserError(f"the backbone {path} does not exist; make it with `{config.get('backbone_command')}`, or give "
                        "another with --backbone")
    from dada_det.models.backbone import load_backbone

    load_backbone(path)


def check_categories(summary: CocoSummary, what: Path) -> None:
    """UserError unless the annotations list COCO's 80 categories, ids and names."""
    from dada_det.data.checks import coco_categories

    ours = dict(zip(summary.category_ids, summary.categories, strict=True))
    if ours != {category["id"]: category["name"] for category in coco_categories()}:
        raise UserError(f"{what} does not list COCO's 80 categories, which the test-dev server demands; leave "
                        "--test-dev out to evaluate on your own")


if __name__ == "__main__":
    raise SystemExit(main())
