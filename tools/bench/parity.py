"""How far the operations are from Pillow, pixel by pixel: those for a PIL image ("image") and the batch's kernels ("batch").

    python tools/bench/parity.py --json parity.json
    python tools/bench/parity.py --device cuda --operations Rotate Sharpness --data photographs/

Every operation is compared with pillow_reference, Pillow called by itself, at magnitudes 0, 1 and twenty between
(round ones and random ones), both signs and both tables of ranges; with random, smooth, constant, gradient and few-level
images of odd, one-pixel-wide and ordinary sizes, and with photographs at 224 px: scikit-learn's two where it is installed,
and those below --data.

max_difference   the largest difference of a channel's level, 0..255
share_differing  pixels with a difference over all pixels compared
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from dada_det.augment import OPERATION_NAMES, RANGES, Draws, apply_draws_pil
from dada_det.augment.kernels import apply_operations
from dada_det.augment.operations import operation_index, value_of
from dada_det.commands import common
from dada_det.errors import UserError
from pillow_reference import pillow_reference

SIZES = ((32, 32), (33, 17), (1, 40), (40, 1), (1, 1), (2, 2), (3, 3), (65, 63))  # height, width in pixels
ROUND = (0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9)
PATHS = ("image", "batch")
COLUMNS = {"operation": "<13", "path": "<6", "max_difference": ">14", "share_differing": ">15.4%"}


def magnitudes_of(generator: torch.Generator) -> Tensor:
    """0, 1, ten round magnitudes and ten random ones, float32 [22]."""
    return torch.cat([torch.tensor([0.0, 1.0, *ROUND]), torch.rand(10, generator=generator)])


def pictures(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random, a smooth, a constant, a gradient and a few-level image, uint8 [5,3,H,W]."""
    noise = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    smooth = (interpolate(torch.rand(1, 3, 3, 3, generator=generator), (height, width), mode="bilinear")[0] * 255).byte()
    constant = noise[:, :1, :1].expand(-1, height, width)
    gradient = (torch.arange(width) * 255 // max(1, width - 1)).byte().expand(3, height, width)
    return torch.stack([noise, smooth, constant, gradient, noise // 64 * 64])


def photographs(folder: str | None, side: int = 224) -> Tensor:
    """Square middles of the photographs at hand, uint8 [B,3,side,side]; B may be 0."""
    images = []
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        pass
    else:
        images += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    if folder:
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        if not paths:
            raise UserError(f"--data {folder} holds no .jpg, .jpeg or .png; give a folder of photographs")
        images += [Image.open(path).convert("RGB") for path in paths[::-(-len(paths) // 8)]]
    squares = [to_tensor(image.resize((side, side), box=middle(image))) for image in images]
    return torch.stack(squares) if squares else torch.empty(0, 3, side, side, dtype=torch.uint8)


def middle(image: Image.Image) -> tuple[float, float, float, float]:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return left, top, left + side, top + side


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def gaps(name: str, images_BCHW: Tensor, device: torch.device, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Of "image" and "batch" the levels between them and Pillow, int [n,H,W], the largest of the channels.

    All n together are every image at every magnitude, sign and table of ranges.
    """
    grid = torch.cartesian_prod(torch.arange(len(images_BCHW)).float(), magnitudes_of(generator), torch.tensor([1.0, -1.0]))
    centers_N2 = torch.rand(len(grid), 2, generator=generator)
    for part_n3, centers_n2 in zip(grid.split(64), centers_N2.split(64), strict=True):
        images = images_BCHW[part_n3[:, 0].long()]
        operations, magnitudes, signs = torch.full((len(part_n3), 1), operation_index(name)), part_n3[:, 1:2], part_n3[:, 2:]
        draws = Draws(operations, torch.ones_like(operations).bool(), magnitudes, signs, centers_n2[:, None])
        pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
        for ranges in RANGES:
            expected = stacked(map(pillow_reference, pictures, repeat(name), magnitudes[:, 0].tolist(),
                                   signs[:, 0].tolist(), repeat(ranges), centers_n2.tolist()))
            alone = stacked(apply_draws_pil(picture, draws[i:i + 1], ranges) for i, picture in enumerate(pictures))
            values = value_of(operations, magnitudes.double(), signs.double(), ranges)
            # The kernels themselves: on the CPU apply_draws may go through PIL instead.
            together = apply_operations(images.to(device), operations.to(device), values.to(device),
                                        centers_n2[:, None].double().to(device)).cpu()
            yield {path: (found.int() - expected.int()).abs().amax(1)
                   for path, found in zip(PATHS, (alone, together), strict=True)}


def stacked(images: Iterable[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def compare(name: str, batches: Sequence[Tensor], device: torch.device, seed: int = 0) -> list[dict[str, Any]]:
    """The two rows of one operation over `batches` of images, uint8 [B,3,H,W] each."""
    generator = torch.Generator().manual_seed(seed)
    largest, differing, pixels = dict.fromkeys(PATHS, 0), dict.fromkeys(PATHS, 0), 0
    for images_BCHW in batches:
        for found in gaps(name, images_BCHW, device, generator):
            pixels += found["image"].numel()
            for path, gap_nHW in found.items():
                largest[path] = max(largest[path], int(gap_nHW.max()))
                differing[path] += int(gap_nHW.count_nonzero())
    return [{"operation": name, "path": path, "max_difference": largest[path], "share_differing": differing[path] / pixels}
            for path in PATHS]


def measure(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [pictures(*size, generator) for size in SIZES]
    if len(photos := photographs(args.data)):
        batches.append(photos)
    print("  ".join(f"{name:{form.partition('.')[0]}}" for name, form in COLUMNS.items()))
    rows = []
    for name in args.operations:
        for row in compare(name, batches, torch.device(args.device)):
            rows.append(row)
            print("  ".join(f"{row[column]:{form}}" for column, form in COLUMNS.items()), flush=True)
    if args.json:
        from dada_det.report.measurements import write_rows

        write_rows(args.json, rows, {"device": args.device, "images": sum(map(len, batches)), "photographs": len(photos)})
        print(f"parity  done: {len(rows)} rows in {args.json}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="parity.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="+", choices=OPERATION_NAMES, default=OPERATION_NAMES, metavar="NAME",
                        help="(default: all fifteen)")
    parser.add_argument("--data", metavar="DIR", help="photographs to add, eight of those below it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="of the batch (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write hardware, versions and rows")
    return common.run(measure, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
