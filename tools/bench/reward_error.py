"""How far a reward is from float64's, by the precision and the way it is computed, on a network that has been trained.

    python tools/bench/reward_error.py --data data/imagenet --json error.json

A reward is R_i = d/d eps l_i(w + eps v) for each image (dada_det.search.alignment), v the gradient on other images,
BatchNorm by its running statistics, as in the search. The network is trained with SGD for --steps steps on images of DIR
first: what a loss keeps of two nearly equal weights depends on how small it is.

way        "central": the difference of two passes, as the search takes it; "forward": one pass in forward mode
precision  "float32", "tf32" (operands of eleven bits, as a GPU's tensor cores take them; on a CPU rounded to these by hand),
           "bfloat16" (autocast, central)
error      the norm of the difference to float64's forward mode over that one's norm, all images together; cosine: of both
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dada_det.commands import common
from dada_det.data.imagenet import decode
from dada_det.data.splits import scan_split
from dada_det.devices import float32_arithmetic, move
from dada_det.errors import UserError
from dada_det.models.backbone import IMAGENET
from dada_det.models.classifiers import build_classifier
from dada_det.search import alignment

# autocast and forward mode do not go together in torch 2.11: the weights are cast and the images are not.
CASES = (("central", "float32"), ("central", "tf32"), ("central", "bfloat16"), ("forward", "float32"), ("forward", "tf32"))
LR, MOMENTUM = 0.05, 0.9


class Tf32Operands(TorchDispatchMode):
    """Convolutions and products of matrices with operands as TF32 holds them, on a machine without it."""

    FIRST = {torch.ops.aten.convolution.default: 0, torch.ops.aten.mm.default: 0, torch.ops.aten.bmm.default: 0,
             torch.ops.aten.addmm.default: 1}  # place of the first of the two operands

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FIRST:
            first = self.FIRST[func]
            operands = [as_tf32(operand) for operand in args[first:first + 2]]
            args = (*args[:first], *operands, *args[first + 2:])
        return func(*args, **(kwargs or {}))


def as_tf32(numbers: Tensor) -> Tensor:
    """float32 rounded to the nearest with ten bits behind the point, ties to even; other types as they are."""
    if numbers.dtype != torch.float32:
        return numbers
    bits = numbers.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def tf32(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "cuda" else Tf32Operands()


def rewards(network: nn.Module, v: alignment.Weights, images_BCHW: Tensor, labels_B: Tensor, way: str,
            precision: str) -> Tensor:
    """R_i of each image [B], in float64."""
    low = torch.bfloat16 if precision == "bfloat16" else None
    weights = alignment.weights_of(network)

    def losses(moved: alignment.Weights) -> Tensor:
        return alignment.losses_at(network, moved, images_BCHW, labels_B, low)

    with tf32(images_BCHW.device) if precision == "tf32" else float32_arithmetic():
        if way == "forward":
            return torch.func.jvp(losses, (weights,), (v,))[1].detach().double()
        with torch.no_grad():
            above, below, epsilon = alignment.ends_consuming(weights, dict(v))
            return ((losses(above) - losses(below)) / (2 * epsilon)).double()


def trained(network: nn.Module, images_NCHW: Tensor, labels_N: Tensor, batch: int, steps: int) -> float:
    """Trains in place, in batches drawn at random; returns the last loss."""
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
    generator, loss = torch.Generator().manual_seed(0), torch.zeros(())
    for _ in range(steps):
        rows = move(torch.randint(len(labels_N), (batch,), generator=generator), labels_N.device)
        loss = F.cross_entropy(network(images_NCHW[rows]), labels_N[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    listed = scan_split(args.data, "train")
    chosen = listed.select(range(0, len(listed), max(1, len(listed) // args.images)))
    pixels_NCHW, _ = decode(chosen, args.image_size, workers=4)
    mean, std = (torch.tensor(IMAGENET[name]).view(3, 1, 1) for name in ("mean", "std"))
    images_NCHW = move((pixels_NCHW - mean) / std, device)
    labels_N = move(torch.tensor(chosen.labels), device)
    torch.manual_seed(0)
    network = build_classifier(args.model, len(listed.classes), args.image_size).to(device).train()
    with float32_arithmetic():
        loss = trained(network, images_NCHW, labels_N, args.batch_size, args.steps)
    network.eval()
    mine, other = slice(args.batch_size), slice(args.batch_size, 2 * args.batch_size)
    images_BCHW, labels_B = images_NCHW[mine], labels_N[mine]
    exact = copy.deepcopy(network).double()
    direction = alignment.gradient_at(exact, alignment.weights_of(exact), images_NCHW[other].double(), labels_N[other])
    wanted = rewards(exact, direction, images_BCHW.double(), labels_B, "forward", "float32")
    v = {name: tensor.float() for name, tensor in direction.items()}
    print(f"{args.model}, {args.image_size} px, {args.steps} steps, loss {loss:.3f}, {len(labels_B)} rewards")
    rows = []
    for way, precision in CASES:
        found = rewards(network, v, images_BCHW, labels_B, way, precision)
        rows.append({"way": way, "precision": precision, "error": float((found - wanted).norm() / wanted.norm()),
                     "cosine": float(F.cosine_similarity(found, wanted, 0))})
        print(f"{way:8} {precision:9} error {rows[-1]['error']:9.4%}  cosine {rows[-1]['cosine']:.6f}", flush=True)
    return rows


def body(args: argparse.Namespace) -> None:
    if not Path(args.data, "train").is_dir():
        raise UserError(f"{args.data} has no folder train/; give the folder that holds it with --data")
    rows = measure(args)
    if args.json:
        from dada_det.report.measurements import write_rows

        write_rows(args.json, rows, {"model": args.model, "image_size": args.image_size, "steps": args.steps,
                                     "batch_size": args.batch_size})
    print(f"reward_error  done: {len(rows)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = argparse.ArgumentParser(prog="reward_error.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/imagenet", metavar="DIR", help="holds train/ (default: %(default)s)")
    parser.add_argument("--model", default="resnet50", metavar="M", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=common.positive, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=common.positive, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--images", type=common.positive, default=1024, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="of training before (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write hardware, versions and rows")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
