"""tools/predict.py: a detector on pictures without annotations."""

import argparse
import glob
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dada_det.commands import common
from dada_det.commands.detector_data import refuse_stuff, use_single
from dada_det.commands.train_det import detector_config
from dada_det.data.folders import IMAGE_SUFFIXES
from dada_det.errors import UserError
from dada_det.files import make_folder

PAINTED = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # kinds of file that a picture is written as; others become .jpg


def main(argv: Sequence[str] | None = None) -> int:
    """Paints what a detector finds; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "predict.py", "Paints boxes, masks and names of what a detector finds into copies of the images, and writes all of "
        "it into DIR/predictions.json in COCO's style (images, annotations with a score, categories). An image that does "
        "not decode is named and passed over.",
        "python tools/predict.py configs/mask_rcnn_r50_dada.py work_dirs/mask_rcnn_r50_dada/epoch_12.pth photos/ \\\n"
        "      --out found")
    parser.add_argument("config", metavar="CONFIG", help="the detector's config")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="weights that training wrote, such as epoch_12.pth")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders (with all they hold) or patterns such "
                        "as 'photos/*.jpg'")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the painted pictures and predictions.json go")
    parser.add_argument("--score", type=share, default=0.3, metavar="S", help="least score that is shown (default: 0.3)")
    parser.add_argument("--backbone", metavar="FILE", help="the backbone's file: only for a checkpoint from before 30 "
                        "November 2026 whose backbone is no ResNet-50, as later ones tell their backbone")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="key=value",
                        help="change any entry of the config, as in MMDetection")
    parser.set_defaults(data=None, work_dir=None)
    return common.run(body, parser, argv)


def share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return number


def body(args: Namespace) -> None:
    if not Path(args.checkpoint).is_file():
        raise UserError(f"the checkpoint {args.checkpoint} does not exist; give an epoch_N.pth that training wrote")
    pictures = pictures_of(args.images, Path(args.out))
    config = detector_config(args)
    refuse_stuff(config.model, "objects alone are found here")
    for part in ("train", "val", "test"):
        use_single(config, part)
    out = make_folder(args.out)
    from dada_det.engine.detect.predict import run_prediction

    run_prediction(config, args.checkpoint, pictures, out, args.score)


def pictures_of(texts: Sequence[str], out: Path) -> list[tuple[Path, str]]:
    """(image file, name of the picture below `out`) for files, folders and patterns, each file once.

    A folder's images keep their places in it; what is below `out`, which an earlier run has painted, is not among them.

    Raises:
        UserError: a text stands for no image, or a picture would be written over an image.
    """
    found: dict[Path, str] = {}
    taken: set[str] = set()
    painted = out.resolve()
    for text in texts:
        folder = Path(text)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
                           and not any(part.startswith(".") for part in path.relative_to(folder).parts)
                           and not (folder.resolve() in painted.parents and painted in path.resolve().parents))
            named = [(path, str(path.relative_to(folder))) for path in files]
        else:
            files = [folder] if folder.is_file() else [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            named = [(path, path.name) for path in files if path.is_file()]
        if not named:
            raise UserError(f"{text} is no image, no folder that holds one ({', '.join(IMAGE_SUFFIXES)}) and no pattern "
                            "that meets one; give a file, a folder or a pattern")
        for path, name in named:
            if path not in found:
                found[path] = unique(name, taken)
    originals = {path.resolve(): path for path in found}
    for name in found.values():
        if original := originals.get((out / name).resolve()):
            raise UserError(f"--out {out} would write over the image {original}; give another folder")
    return list(found.items())


def unique(name: str, taken: set[str]) -> str:
    """`name` as the name of a picture that is not `taken` yet, which is noted."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() in PAINTED else f"{path.suffix}.jpg"
    number, chosen = 1, str(path.with_suffix(suffix))
    while chosen in taken:
        number += 1
        chosen = str(path.with_name(f"{path.stem}-{number}{suffix}"))
    taken.add(chosen)
    return chosen


if __name__ == "__main__":
    raise SystemExit(main())
