"""tools/pretrain_r50.sh: trains ResNet-50 on images in ImageNet's layout with an augmentation policy."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.data.folders import ImageList, scan_folder
from dada_det.errors import UserError
from dada_det.files import make_folder

CONFIG = "configs/pretrain_r50.py"
NEEDED = {"data": dict, "classifier": dict, "optimizer": dict, "auto_scale_lr": dict, "image_size": int, "batch_size": int,
          "epochs": int, "seed": int, "precision": str}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pretraining; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "pretrain_r50.sh", "Trains ResNet-50 on all classes of DIR/train with the policy P; writes W/r50.pth, W/r50.json "
        "(the backbone for detectors) and W/metrics.json (top-1 and top-5 in percent on DIR/val).",
        "tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --data data/imagenet")
    parser.add_argument("--policy", required=True, metavar="P",
                        help="a policy.json, a published name such as dada-imagenet, or none, random, uniform, one-op, "
                        "trivial, rand, cutout")
    common.add_stage_flags(parser, CONFIG)
    parser.add_argument("--auto-scale-lr", action="store_true",
                        help="scale the learning rate with the batch, where a config turns that off (auto_scale_lr.enable)")
    return common.run(check, parser, argv) or common.run(body, parser, argv, module="dada_det.commands.pretrain")


def check(args: Namespace) -> None:
    """With --gpus N a mistake is told once, before N processes start."""
    if args.gpus > 1 and "LOCAL_RANK" not in os.environ:
        prepare(args)


def body(args: Namespace) -> None:
    config, train, val = prepare(args)
    from dada_det.engine.pretrain import run_pretraining

    run_pretraining(config, train, val, args.resume)


def prepare(args: Namespace) -> tuple[Any, ImageList, ImageList]:
    """The config with the flags on top, and the images to train and to validate on; UserError for every mistake."""
    if args.data:
        check_folders(Path(args.data), args.val_data)  # before the config, which takes seconds to import mmengine
    config = common.stage_config(args, NEEDED)
    config.policy = args.policy
    if args.auto_scale_lr:
        config.auto_scale_lr.enable = True
    root, val_root = Path(config.data.root), config.data.val_root
    check_folders(root, val_root)
    if config.batch_size % args.gpus:
        raise UserError(f"--batch-size {config.batch_size} is the total over all processes; give a multiple of "
                        f"--gpus {args.gpus}")
    if config.batch_size % (args.gpus * (config.get("accumulation") or 1)):
        raise UserError(f"accumulation = {config.accumulation} does not divide the {config.batch_size // args.gpus} images "
                        "of a batch in each process; choose a divisor")
    from dada_det.augment.named import resolve_policy

    resolve_policy(config.policy, config.seed)
    train = scan_folder(root / "train")
    val = scan_folder(val_root or root / "val", train.classes)
    make_folder(config.work_dir)
    return config, train, val


def check_folders(root: Path, val_root: str | None) -> None:
    """UserError where there is no folder to train or to validate on."""
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train/<class>/; give the folder that holds it with --data")
    if val_root is None and not (root / "val").is_dir():
        raise UserError(f"{root} has no folder val/<class>/ to validate on; add it or give another one with --val-data")


if __name__ == "__main__":
    raise SystemExit(main())
