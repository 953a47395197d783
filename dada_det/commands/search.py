"""tools/search_imagenet.sh: searches an augmentation policy."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dada_det import keys
from dada_det.commands import common
from dada_det.commands.detector_data import demand_class_numbers, demand_same_categories
from dada_det.data.arrays import READERS
from dada_det.data.checks import check_coco, find_annotations, find_coco
from dada_det.data.coco_instances import FILTER, what_is_learned
from dada_det.data.folders import AUTO, NONE
from dada_det.data.splits import search_lists
from dada_det.errors import UserError
from dada_det.files import make_folder

CONFIG = "configs/search_imagenet.py"
NEEDED = {"kind": str, "data": dict, "search": dict, "weights_optimizer": dict, "policy_optimizer": dict,
          "image_size": int, "batch_size": int, "base_batch_size": int, "epochs": int, "seed": int,
          "precision": str}

PRECISIONS = ("float32", "bfloat16")
DEFAULTS = {"mirror": True, "clip_grad": None, "masks": False}  # of entries that a config may leave out

# Every entry that a search's config may have, with its types.
KNOWN: keys.Table = {
    **{name: (kind,) for name, kind in NEEDED.items()},
    "data": {"root": (str,), "val_root": (str, None), "subset": (str, None), "subset_images": (int,),
             "images_per_class": (int, None), "images": (int, None), "groups": (str,), "target_trains": (bool,),
             "demo": (bool,)},
    "method": (str,), "classifier": keys.ANY, "weights": (str, None), "model": keys.ANY, "masks": (bool,), "mirror": (bool,),
    "padding": (int,), "operations": (list, tuple, None), "clip_grad": (*keys.NUMBER, None),
    "architecture_optimizer": (dict,), "checkpoint": common.CHECKPOINT, "trial": (bool,), "work_dir": (str, None),
    "vis_backends": keys.ANY,
    "backbone": (str,), "backbone_command": (str,)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "search_imagenet.sh", "Searches an augmentation policy on images in ImageNet's layout, CIFAR's or SVHN's files, or, "
        "with configs/search_det_*.py, on a detector and images in COCO's layout; by DADA it writes W/policy.json, the "
        "policy that a trial has found best among what was found and the fixed ones, W/verdict.json (the trial), "
        "W/effects.json (what it says of each operation), and W/search.json (all preferences); by DDAS "
        "(configs/search_ddas_imagenet.py) W/schedule.json, for pretraining, and W/policy.json, its average.",
        "tools/search_imagenet.sh --data data/imagenet --work-dir work_dirs/search")
    common.add_stage_flags(parser, CONFIG)
    common.add_mirror_flag(parser, "what the config says; most flip")
    parser.add_argument("--groups", metavar="RULE", help="which images belong together, and stay in one half or count "
                        "as one in the standard errors of --val-data: auto (near copies, and names that "
                        "differ in their last number alone), none, or a regular expression over the path below the image "
                        "folder, whose match is the group (default: auto)")
    parser.add_argument("--target-trains", action="store_true", help="the images of --val-data will be part of the training "
                        "with the policy: the trial trains on half of them and is judged by the other half")
    parser.add_argument("--no-trial", action="store_true", help="hand over what alignment proposes, without the trainings "
                        "that hold it against the fixed policies")
    return common.run(body, parser, argv, module="dada_det.commands.search")


def body(args: Namespace) -> None:
    config = common.stage_config(args, NEEDED, KNOWN)
    make_folder(config.work_dir)
    for name, value in DEFAULTS.items():
        config.setdefault(name, value)
    config.data.setdefault("images_per_class", None)
    if args.mirror is not None:
        config.mirror = args.mirror
    if args.groups is not None:
        config.data.groups = args.groups
    if args.no_trial:
        config.trial = False
    if args.target_trains:
        if not config.data.get("val_root"):
            raise UserError("--target-trains says that the images of --val-data will train too, and there are none; give "
                            "--val-data, or leave it out")
        config.data.target_trains = True
    demand_sizes(config, common.what_gives(args))
    if config.kind not in CHECKS:
        raise UserError(f"the config's kind is {config.kind!r}; give one of {', '.join(CHECKS)}")
    network = "model" if config.kind == "coco" else "classifier"
    if not isinstance(config.get(network), dict):
        raise UserError(f"the config {args.config} has {config.get(network)!r} for `{network}`, which a search of the kind "
                        f"{config.kind} needs as dict; give one such as {CONFIG}")
    CHECKS[config.kind](config)  # once here, so that a mistake is said before anything heavy is imported
    if any(option.startswith("model.") for option in args.cfg_options):
        from dada_det.engine.detect.options import check_options
        from dada_det.engine.runtime.launch import parse_options

        given = {name: value for name, value in parse_options(args.cfg_options).items() if name.startswith("model.")}
        check_options(common.load_config(args.config), config, given)
    from dada_det.search.training import ADAMW, SGD

    for name in ("weights_optimizer", "policy_optimizer", "architecture_optimizer"):
        if name in config:
            given = {entry: value for entry, value in config[name].items() if not (entry == "lr" and value is None)}
            kind = given.pop("type", SGD) if name == "weights_optimizer" else "Adam"
            if kind not in (SGD, ADAMW) and name == "weights_optimizer":
                raise UserError(f"{common.what_gives(args)} gives weights_optimizer.type={kind!r}; choose {SGD} or {ADAMW}")
            common.demand_optimizer(given, kind, common.what_gives(args), name)
            if "lr" not in given and name != "policy_optimizer":  # whose rate is that of the mode
                raise UserError(f"{common.what_gives(args)} has no {name}.lr; give the learning rate")
    from dada_det.engine.search.run import run_search

    run_search(config, args.resume)


def demand_sizes(config: Any, what: str) -> None:
    """Raises UserError if a number of the config is too small, or its precision is none of a search's."""
    sizes = {"base_batch_size": (config.get("base_batch_size"), 1), "padding": (config.get("padding"), 0),
             **{f"data.{name}": (config.data.get(name), 1) for name in ("images_per_class", "subset_images", "images")}}
    for name, (value, least) in sizes.items():
        if value is not None and value < least:
            raise UserError(f"{what} has {name} = {value}; give {least} or more")
    if config.precision not in PRECISIONS:
        raise UserError(f"{what} has precision = {config.precision!r}; give one of {', '.join(PRECISIONS)}")
    if config.get("method") == "daas" and "architecture_optimizer" not in config:
        raise UserError(f"{what} has no architecture_optimizer, which the method daas needs; give one such as dict(lr=3e-4)")


def check_folders(config: Any) -> None:
    """Folders of images in ImageNet's layout."""
    search_lists(config.data, config.seed)


def check_arrays(config: Any) -> None:
    """CIFAR's or SVHN's files, split in halves."""
    if config.data.get("val_root") or config.image_size > 32:  # padding enlarges no validation image
        raise UserError(f"the images of {config.kind} are 32 px and split in halves: --image-size {config.image_size} or "
                        "--val-data does not fit; leave it out, or search a folder of images")
    if config.data.get("groups", AUTO) not in (AUTO, NONE):
        raise UserError(f"the images of {config.kind} have no names for --groups {config.data.groups} to match; give {AUTO} "
                        f"(near copies stay in one half) or {NONE}")


def check_detection(config: Any) -> None:
    """Images and annotations in COCO's layout, and the detector's backbone."""
    part = find_coco(config.data.root, ("train",)).part("train")
    summary = check_coco(*part)
    what_is_learned(summary, part[0], FILTER)
    if config.data.get("val_root"):
        val = find_annotations(config.data.val_root)
        other = check_coco(*val)
        what_is_learned(other, val[0], FILTER)
        demand_same_categories(val[0], other, part[0], summary)
    demand_class_numbers(config.model, len(summary.categories), (), part[0])
    init = config.model.backbone.get("init_cfg")
    if isinstance(init, dict) and "checkpoint" in init and not Path(init['checkpoint']).is_file():
        raise UserError(f"the backbone {init['checkpoint']} does not exist; make it with "
                        f"`{config.get('backbone_command')}`, or give another with "
                        "--cfg-options model.backbone.init_cfg.checkpoint=FILE")


CHECKS: dict[str, Callable[[Any], None]] = {  # by the config's kind
    "imagenet": check_folders, "coco": check_detection, **dict.fromkeys(READERS, check_arrays)}


if __name__ == "__main__":
    raise SystemExit(main())
