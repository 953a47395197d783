"""tools/search_imagenet.sh: searches an augmentation policy."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import make_folder

CONFIG = "configs/search_imagenet.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "search_imagenet.sh", "Searches an augmentation policy (DADA) on images in ImageNet's layout; writes "
        "W/policy.json (25 sub-policies) and W/search.json (all preferences).",
        "tools/search_imagenet.sh --data data/imagenet --work-dir work_dirs/search")
    common.add_stage_flags(parser, CONFIG)
    return common.run(body, parser, argv, module="dada_det.commands.search")


def body(args: Namespace) -> None:
    config = common.stage_config(args)
    make_folder(config.work_dir)
    if config.kind == "imagenet":
        check_lists(config)
    from dada_det.engine.search import run_search

    run_search(config, args.resume)


def check_lists(config: Any) -> None:
    """Reads the folders and their names, so that a mistake is said before anything heavy is imported."""
    from dada_det.data.folders import scan_folder, search_subset, stratified_halves

    root = Path(config.data.root)
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train/<class>/; give the folder that holds it with --data")
    images = search_subset(scan_folder(root / "train"), config.data.subset, config.data.images_per_class, config.seed)
    if config.data.val_root:
        scan_folder(config.data.val_root, images.classes)
    else:
        stratified_halves(images, config.seed)


if __name__ == "__main__":
    raise SystemExit(main())
