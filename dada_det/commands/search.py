"""tools/search_imagenet.sh: searches an augmentation policy."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from dada_det.commands import common
from dada_det.data.folders import search_lists
from dada_det.errors import UserError
from dada_det.files import make_folder

CONFIG = "configs/search_imagenet.py"
NEEDED = {"kind": str, "data": dict, "classifier": dict, "search": dict, "weights_optimizer": dict, "policy_optimizer": dict,
          "image_size": int, "batch_size": int, "base_batch_size": int, "epochs": int, "seed": int,
          "precision": str}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "search_imagenet.sh", "Searches an augmentation policy (DADA) on images in ImageNet's layout; writes "
        "W/policy.json (25 sub-policies) and W/search.json (all preferences).",
        "tools/search_imagenet.sh --data data/imagenet --work-dir work_dirs/search")
    common.add_stage_flags(parser, CONFIG)
    return common.run(body, parser, argv, module="dada_det.commands.search")


def body(args: Namespace) -> None:
    config = common.stage_config(args, NEEDED)
    make_folder(config.work_dir)
    if config.kind not in CHECKS:
        raise UserError(f"the config's kind is {config.kind!r}; give one of {', '.join(CHECKS)}")
    CHECKS[config.kind](config)  # once here, so that a mistake is said before anything heavy is imported
    from dada_det.engine.search import run_search

    run_search(config, args.resume)


def check_folders(config: Any) -> None:
    """Folders of images in ImageNet's layout."""
    data = config.data
    search_lists(data.root, data.val_root, data.subset, data.images_per_class, config.seed)


def check_cifar(config: Any) -> None:
    """CIFAR's binary files, split in halves."""
    if config.data.get("val_root") or config.image_size > 32 + 2 * config.get("padding", 0):
        raise UserError(f"CIFAR-10's images are 32 px and split in halves: --image-size {config.image_size} or --val-data "
                        "does not fit; leave it out, or search a folder of images")


CHECKS: dict[str, Callable[[Any], None]] = {"imagenet": check_folders, "cifar10": check_cifar}  # by the config's kind


if __name__ == "__main__":
    raise SystemExit(main())
