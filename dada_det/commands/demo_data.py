"""`python -m dada_det.data.synthetic`: writes the demo's data."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dada_det.commands import common
from dada_det.data.synthetic import CATEGORIES, RECORD, ROOT, write_demo
from dada_det.errors import UserError
from dada_det.files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser_for("python -m dada_det.data.synthetic", "Write the demo's data: an ImageNet and a COCO folder.",
                        "python -m dada_det.data.synthetic --out data/demo --seed 0")
    parser.add_argument("--out", default=ROOT, metavar="DIR", help="the new folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal bytes (default: 0)")
    return common.run(body, parser, argv)


def body(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} is negative; give a whole number from 0")
    if not (out / RECORD).is_file():
        write_demo(out, args.seed)
    elif read_json(out / RECORD, "record").get("seed") != args.seed:
        raise UserError(f"{out} holds demo data of another seed; remove it or give another --out")
    size = read_json(out / RECORD, "record")["size"]
    print(f"wrote {out}/imagenet ({size['classes']} classes, {size['classes'] * size['train_per_class']} + "
          f"{size['classes'] * size['val_per_class']} images) and {out}/coco ({len(CATEGORIES)} categories drawn, "
          f"{size['det_train']} + {size['det_val']} + {size['det_test']} images)")
