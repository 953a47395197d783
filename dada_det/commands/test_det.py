"""tools/test_det.py: a detector's COCO figures, or its results for the test-dev server."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dada_det.commands import common
from dada_det.commands.detector_data import data_layout, demand_classes, demand_evaluators, demand_nothing_given
from dada_det.commands.train_det import (
    add_detector_flags,
    check_backbone,
    check_categories,
    detector_config,
)
from dada_det.data.checks import CocoLayout, check_coco
from dada_det.data.coco_instances import CocoSummary
from dada_det.errors import UserError
from dada_det.files import make_folder

UNTRAINED = "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates a detector; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "test_det.py", "Evaluates a detector with COCO's figures into W/metrics.json, or writes and checks the zips "
        "for the test-dev server into W/test-dev/{bbox,segm}.",
        "python tools/test_det.py configs/mask_rcnn_r50_dada.py work_dirs/mask_rcnn_r50_dada/epoch_12.pth")
    add_detector_flags(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT",
                        help="weights that training wrote; `none` is the untrained detector on its backbone")
    parser.add_argument("--test-dev", action="store_true",
                        help="write results for annotations/image_info_test-dev2017.json")
    parser.add_argument("--out", metavar="FILE", help="also dump the predictions to a pickle file (.pkl)")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window (needs a display)")
    parser.add_argument("--show-dir", metavar="DIR", help="paint the predictions into W/<time>/DIR")
    parser.add_argument("--wait-time", type=float, default=2, metavar="S", help="seconds for each window (default: 2)")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation (boxes only)")
    return common.run(body, parser, argv, module="dada_det.commands.test_det")


def body(args: Namespace) -> None:
    if args.checkpoint != UNTRAINED and not Path(args.checkpoint).is_file():
        raise UserError(f"the checkpoint {args.checkpoint} does not exist; give an epoch_N.pth that training wrote, or "
                        f"`{UNTRAINED}`")
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        raise UserError(f"--out {args.out} must end in .pkl, as it is a pickle file")
    config = detector_config(args)
    if args.checkpoint == UNTRAINED:
        check_backbone(config.model.backbone.init_cfg.checkpoint, config)
    for option in args.cfg_options:
        if option.startswith("test_evaluator.") and not option.startswith("test_evaluator.ann_file="):
            raise UserError(f"--cfg-options gives {option}, and test_det.py computes COCO's figures whatever it says; leave "
                            "it out")
    if args.test_dev:
        demand_nothing_given(config, ("test",), "--test-dev takes annotations/image_info_test-dev2017.json")
    layout = data_layout(args, config, () if args.test_dev else ("test",))
    summary = summary_of(layout, args)
    annotations = (layout.part("test") if args.test_dev else layout.part("val"))[0]
    demand_classes(config, summary.categories, args.cfg_options, annotations)
    if not args.test_dev:
        demand_evaluators(config, ("test",), layout)
    make_folder(config.work_dir)
    if args.out:
        check_out(Path(args.out))
    from dada_det.engine.detect.run import TestFlags, run_test

    run_test(config, layout, summary, args.checkpoint, args.test_dev,
             TestFlags(args.out, args.show, args.show_dir, args.wait_time, args.tta), args.launcher)


def check_out(path: Path) -> None:
    """UserError where --out cannot be written: better now than after hours of testing."""
    try:
        make_folder(path.parent)
    except UserError as error:
        raise UserError(f"--out {path} cannot be written, as its folder cannot: {error.__cause__}; choose another "
                        "place") from error
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; give the name of a file")


def summary_of(layout: CocoLayout, args: Namespace) -> CocoSummary:
    """What the annotations to be used hold: validation's, or image_info with --test-dev."""
    if not args.test_dev:
        return check_coco(*layout.part("val"))
    if layout.test_annotations is None or layout.test_images is None:
        raise UserError("--test-dev needs annotations/image_info_test-dev2017.json and test2017/ in the data folder; "
                        "put them there or leave --test-dev out")
    summary = check_coco(layout.test_annotations, layout.test_images, test=True)
    check_categories(summary, layout.test_annotations)
    return summary


if __name__ == "__main__":
    raise SystemExit(main())
