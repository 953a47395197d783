"""tools/export_policy.py: a policy as code for torchvision v2, timm, mmpretrain and mmdet, or as data."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import write_text

TARGETS = ("torchvision", "timm", "mmpretrain", "mmdet", "data")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the code; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "export_policy.py", "Prints a policy as Python code that runs where dada_det is not installed (mmdet's needs it), "
        "or as JSON in real units (--to data). What the target's own functions render in other pixels is said by name, in "
        "the code's head and on stderr.",
        "python tools/export_policy.py dada-imagenet --to timm --out augmentation_policy.py")
    parser.add_argument("policy", metavar="POLICY",
                        help="a policy.json, a published name such as dada-imagenet, or random, uniform, one-op, cutout")
    parser.add_argument("--to", required=True, choices=TARGETS, help="the package that is to run it")
    parser.add_argument("--out", metavar="FILE", help="write it there instead of printing it")
    return common.run(body, parser, argv)


def body(args: Namespace) -> None:
    from dada_det.augment.export import export, limits
    from dada_det.augment.named import TorchvisionAugment, resolve_policy

    policy = resolve_policy(args.policy)
    if policy is None:
        raise UserError("the policy none leaves every image as it is; leave it out there too")
    if isinstance(policy, TorchvisionAugment):
        raise UserError(f"the policy {policy.name} is torchvision's {policy.transform} and has no sub-policies to export; "
                        f"use torchvision.transforms.v2.{policy.transform}() itself")
    code = export(policy, args.to)
    if args.out:
        write_text(args.out, code)
    else:
        sys.stdout.write(code)
    for sentence in limits(policy, args.to):
        print(f"export_policy  {sentence}", file=sys.stderr)
