"""tools/pretrain_r50.sh: trains ResNet-50, or a config's other classifier, with an augmentation policy."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dada_det import keys
from dada_det.commands import common
from dada_det.data.arrays import READERS, ArrayImages, read_arrays
from dada_det.data.folders import ImageList, say_passed_over
from dada_det.data.splits import train_and_val
from dada_det.errors import UserError
from dada_det.files import make_folder

if TYPE_CHECKING:
    from dada_det.augment.named import Replayable

CONFIG = "configs/pretrain_r50.py"
FOLDERS = "imagenet"  # the kind that is files, and not one of READERS
NEEDED = {"data": dict, "classifier": dict, "optimizer": dict, "auto_scale_lr": dict, "image_size": int, "batch_size": int,
          "epochs": int, "seed": int, "precision": str}

# Every entry that a pretraining's config may have.
KNOWN: keys.Table = {
    **{name: (kind,) for name, kind in NEEDED.items()},
    "data": {"root": (str,), "val_root": (str, None), "extra": (bool,), "demo": (bool,)},
    "auto_scale_lr": {"enable": (bool,), "base_batch_size": (int,)},
    "paramwise_cfg": {"custom_keys": (dict,), "bypass_duplicate": (bool,), **{
        f"{name}_mult": keys.NUMBER for name in ("bias_lr", "bias_decay", "norm_decay", "flat_decay", "dwconv_decay",
                                                 "dcn_offset_lr")}},
    "data_preprocessor": {"mean": (list, tuple), "std": (list, tuple)}, "checkpoint": common.CHECKPOINT,
    "accumulation": (int, None), "workers": (int, None), "warmup_epochs": keys.NUMBER, "warmup_from": keys.NUMBER,
    "lr_drops": (list, tuple, None), "layer_decay": (*keys.NUMBER, None), "ema": (dict, None),
    "clip_grad": (*keys.NUMBER, None), "label_smoothing": keys.NUMBER,
    "mixup": {**dict.fromkeys(("mixup_alpha", "cutmix_alpha", "prob", "switch_prob"), keys.NUMBER),  # of timm's Mixup
              "cutmix_minmax": (list, tuple, None), "mode": (str,), "correct_lam": (bool,)},
    "channels_last": (bool,), "compile": (bool, dict), "weights": (str, None), "work_dir": (str, None), "kind": (str,),
    # Of these the room that reads them says what they may be.
    **dict.fromkeys(("mirror", "padding", "progressive_size", "policy_on", "color_jitter", "lighting", "cutout",
                     "interpolation", "crop_share", "vis_backends", "train_size", "bce_threshold", "repeats"),
                    keys.ANY)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the pretraining; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "pretrain_r50.sh", "Trains ResNet-50 on all classes of DIR/train with the policy P; writes W/r50.pth, W/r50.json "
        "(the backbone for detectors) and W/metrics.json (top-1 and top-5 in percent on DIR/val). DIR may also hold "
        "Stanford Cars or FGVC-Aircraft as they are unpacked. Configs such as configs/cifar10_wrn28_10.py train another "
        "network on CIFAR-10, CIFAR-100 or SVHN, in their standard files in DIR, and write no backbone.",
        "tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --data data/imagenet")
    parser.add_argument("--policy", required=True, metavar="P",
                        help="a policy.json, a schedule.json of DDAS, which is replayed, a published name such as "
                        "dada-imagenet, or none, random, uniform, one-op, trivial, rand, cutout")
    common.add_stage_flags(parser, CONFIG)
    common.add_mirror_flag(parser)
    parser.add_argument("--auto-scale-lr", action="store_true",
                        help="scale the learning rate with the batch, where a config turns that off (auto_scale_lr.enable)")
    return common.run(check, parser, argv) or common.run(body, parser, argv, module="dada_det.commands.pretrain")


def check(args: Namespace) -> None:
    """With --gpus N a mistake is told once, before N processes start."""
    if args.gpus > 1 and "LOCAL_RANK" not in os.environ:
        config, _ = prepare(args)
        if config.kind == FOLDERS:  # arrays take longer to read, and the processes' sentences are told once too
            images_of(config)


def body(args: Namespace) -> None:
    config, policy = prepare(args)
    train, val = images_of(config)
    from dada_det.engine.pretrain.run import run_pretraining

    run_pretraining(config, policy, train, val, args.resume)


def prepare(args: Namespace) -> tuple[Any, "Replayable"]:
    """The config with the flags on top, and the policy.

    Raises:
        UserError: flags, config or policy are wrong.
    """
    if args.data and not Path(args.data).is_dir():  # before the config, which takes seconds to import mmengine
        raise UserError(f"the data folder {args.data} does not exist; give the folder that holds the images with --data")
    config = common.stage_config(args, NEEDED, KNOWN)
    what = common.what_gives(args)
    common.demand_optimizer({name: value for name, value in config.optimizer.items() if name != "type"},
                            str(config.optimizer.get("type")), what, "optimizer")
    for name, most in (("label_smoothing", 1.0), ("warmup_epochs", float("inf")), ("workers", float("inf"))):
        if not 0 <= (config.get(name) or 0) <= most:
            raise UserError(f"{what} has {name} = {config[name]}; give a number from 0" + (" to 1" if most == 1 else " up"))
    if not all(isinstance(share, int | float) and 0 < share < 1 for share in config.get("lr_drops") or ()):
        raise UserError(f"{what} has lr_drops = {config.lr_drops}; give shares of the training, such as [0.3, 0.6, 0.9]")
    config.policy = args.policy
    if args.auto_scale_lr:
        config.auto_scale_lr.enable = True
    config.setdefault("kind", FOLDERS)
    if config.batch_size % args.gpus:
        raise UserError(f"--batch-size {config.batch_size} is the total over all processes; give a multiple of "
                        f"--gpus {args.gpus}")
    if config.batch_size % (args.gpus * (config.get("accumulation") or 1)):
        raise UserError(f"accumulation = {config.accumulation} does not divide the {config.batch_size // args.gpus} images "
                        "of a batch in each process; choose a divisor")
    from dada_det.augment.named import resolve_replayable

    policy, mirror = resolve_replayable(config.policy, config.seed)
    config.mirror = common.mirror_of(args, config, mirror)
    make_folder(config.work_dir)
    return config, policy


def images_of(config: Any) -> tuple[ImageList | ArrayImages, ImageList | ArrayImages]:
    """The images to train and to validate on.

    Raises:
        UserError: config.data does not hold images of config.kind.
    """
    data = config.data
    if config.kind == FOLDERS:
        parts = train_and_val(data.root, data.get("val_root"))
        for images in parts:
            say_passed_over(images, "pretrain")
        return parts
    if config.kind not in READERS:
        raise UserError(f"the config's kind is {config.kind!r}; write {FOLDERS} (folders of images), or one of "
                        f"{', '.join(READERS)}")
    if data.get("val_root"):
        raise UserError(f"{config.kind} is validated on its own test images; leave --val-data {data.val_root} out")
    options = {"extra": True} if data.get("extra") else {}
    return read_arrays(config.kind, data.root, train=True, **options), read_arrays(config.kind, data.root, train=False)


if __name__ == "__main__":
    raise SystemExit(main())
