"""tools/train_arch.py: trains the network that a genotype says from scratch, with a policy.

DARTS's recipe (Liu et al., ICLR 2019, Section 3.1): 600 epochs, batch 96, SGD 0.025 on a cosine with momentum 0.9 and decay
3e-4, drop-path that rises to 0.2, an auxiliary head of weight 0.4; cutout is a matter of the policy. Not as there: the
momentum is Nesterov's, gradients are not clipped, and the cosine falls step by step.
"""

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.data.folders import ImageList, scan_folder
from dada_det.errors import UserError
from dada_det.files import make_folder

BATCH, LR, WEIGHT_DECAY = 96, 0.025, 3e-4  # the rate is in proportion to the batch
CIFAR_SIDE, CIFAR_PADDING = 32, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the training; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "train_arch.py", "Trains the network of GENOTYPE (a genotype.json of a joint search), from scratch or from "
        "--weights, with the policy P; writes W/metrics.json (top-1 and top-5 in percent on the test images, and what was "
        "run).",
        "python tools/train_arch.py work_dirs/search_daas_cifar10/genotype.json \\\n"
        "      --policy work_dirs/search_daas_cifar10/policy.json --data data/cifar10")
    parser.add_argument("genotype", metavar="GENOTYPE", help="the genotype.json of a search")
    parser.add_argument("--policy", required=True, metavar="P",
                        help="a policy.json, a published name such as dada-imagenet, or none, random, uniform, one-op, "
                        "trivial, rand, cutout")
    parser.add_argument("--data", default="data/cifar10", metavar="DIR",
                        help="folder with CIFAR-10's binary files, or with train/<class>/* and val/<class>/* "
                        "(default: %(default)s)")
    common.add_weights_flag(parser)
    parser.add_argument("--epochs", type=common.positive, default=600, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--channels", type=common.positive, default=36, metavar="C",
                        help="of the first cells; twice as many after each reduction (default: %(default)s)")
    parser.add_argument("--layers", type=common.positive, default=20, metavar="L", help="cells (default: %(default)s)")
    parser.add_argument("--drop-path", type=probability, default=0.2, metavar="p",
                        help="that the training ends with; it rises from 0 (default: %(default)s)")
    parser.add_argument("--no-auxiliary", action="store_true", help="no auxiliary head at two thirds of the depth")
    parser.add_argument("--image-size", type=common.positive, metavar="N",
                        help=f"side of the crops in pixels, for folders; CIFAR-10's are {CIFAR_SIDE} px (default: "
                        f"{CIFAR_SIDE})")
    parser.add_argument("--batch-size", type=common.positive, default=BATCH, metavar="N", help="(default: %(default)s)")
    common.add_mirror_flag(parser)
    parser.add_argument("--seed", type=common.seed, default=0, metavar="S", help="(default: %(default)s)")
    parser.add_argument("--work-dir", default="work_dirs/train_arch", metavar="W", help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work-dir")
    return common.run(body, parser, argv)


def probability(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no probability below 1")
    return number


def body(args: Namespace) -> None:
    from dada_det.augment.named import resolve
    from dada_det.models.darts import name_of
    from dada_det.models.genotype import Genotype
    from dada_det.models.weights import check_weights

    if args.weights == "timm":
        raise UserError("timm has no weights of a searched network; give a file with --weights FILE")
    check_weights(args.weights, args.genotype)
    genotype, (policy, mirror) = Genotype.load(args.genotype), resolve(args.policy, args.seed)
    root = Path(args.data)
    folders = folders_of(root)
    if folders is None and args.image_size not in (None, CIFAR_SIDE):
        raise UserError(f"--image-size {args.image_size} does not fit CIFAR-10's images of {CIFAR_SIDE} px; leave it out")
    size = args.image_size or CIFAR_SIDE
    if size < 8:
        raise UserError(f"--image-size {size} is too small for two reductions; give at least 8 px")
    work_dir = make_folder(args.work_dir)
    train, test, classes = read_cifar(root) if folders is None else decode_folders(folders, size)

    import torch

    from dada_det.devices import safe_convolutions
    from dada_det.engine.compare.trial import METRICS, Recipe, run_trial

    recipe = Recipe(model=name_of(genotype, args.channels, args.layers, args.drop_path, not args.no_auxiliary),
                    classes=classes, image_size=size, epochs=args.epochs, batch_size=args.batch_size,
                    lr=LR * args.batch_size / BATCH, weight_decay=WEIGHT_DECAY, mirror=common.mirror_of(args, {}, mirror),
                    padding=CIFAR_PADDING if folders is None else 0,
                    precision="bfloat16" if torch.cuda.is_available() else "float32", weights=args.weights)
    print(f"train  {args.layers} cells of {args.channels} channels, {args.epochs} epochs, on {len(train)} + {len(test)} "
          f"images of {size} px", flush=True)
    with safe_convolutions():
        figures = run_trial(train, test, policy=policy, recipe=recipe, seed=args.seed, work_dir=work_dir, resume=args.resume)
    print(f"train  done: top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, in {work_dir / METRICS}")


def folders_of(root: Path) -> tuple[ImageList, ImageList] | None:
    """The images to train and to test on, or None where there is no folder train/ (CIFAR-10's files, it must be)."""
    if not (root / "train").is_dir():
        return None
    train = scan_folder(root / "train")
    return train, scan_folder(root / "val", train.classes)


def read_cifar(root: Path) -> tuple[Any, Any, int]:
    """(training images, test images, number of classes)."""
    from dada_det.data.cifar import load_cifar10
    from dada_det.data.memory import MemoryImages

    parts = [load_cifar10(root, train=train) for train in (True, False)]
    return MemoryImages(*parts[0][:2]), MemoryImages(*parts[1][:2]), len(parts[0][2])


def decode_folders(folders: tuple[ImageList, ImageList], size: int) -> tuple[Any, Any, int]:
    """The same of folders of images, decoded once."""
    from dada_det.data.imagenet import decode_to_memory

    memories = [decode_to_memory(images, size, "train") for images in folders]
    return memories[0], memories[1], len(folders[0].classes)


if __name__ == "__main__":
    raise SystemExit(main())
