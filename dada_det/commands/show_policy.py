"""tools/show_policy.py: one page to look at a policy."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dada_det.commands import common
from dada_det.data.folders import IMAGE_SUFFIXES
from dada_det.errors import UserError

if TYPE_CHECKING:  # both take seconds to import, and a mistake in a path should be said before
    from PIL import Image

    from dada_det.augment.policy import Policy
    from dada_det.report.policy_movement import Search

PICTURES = 4
ALIGNED = "aligned"  # the trial's name of what alignment proposed
DEEPEST = 6  # folders inside --images that are looked into
KINDS = (3, 40, 77, 110)  # of the drawn pictures: different shapes, textures and hues


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "show_policy.py", "Writes one self-contained HTML page about a policy: its sub-policies in real units, a heatmap of "
        "operation pairs, pictures before and after, and how far the search moved its numbers against what noise alone "
        "would move them (from search.json in the policy's folder). Beside page.html stands page.png: sub-policies, "
        "pictures and heatmap in one image.",
        "python tools/show_policy.py work_dirs/search_imagenet/policy.json --images data/imagenet/val --out page.html")
    parser.add_argument("policy", metavar="POLICY", help="a policy.json, or a name such as dada-imagenet, random, one-op")
    parser.add_argument("--images", metavar="DIR", help="four images from this folder (or from its folders) for the "
                        "pictures; default: four drawn ones")
    parser.add_argument("--out", required=True, metavar="page.html", help="the page; the PNG has the same name with .png")
    return common.run(body, parser, argv)


def body(args: Namespace) -> None:
    out = Path(args.out)
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out} is no HTML file's name; give one that ends in .html")
    paths = image_paths(Path(args.images)) if args.images else []
    from dada_det.augment.named import FIXED, published_names, resolve_policy
    from dada_det.augment.policy import Policy

    policy = resolve_policy(args.policy)
    if not isinstance(policy, Policy):
        raise UserError(f"the policy {args.policy} is `{policy.name if policy else 'none'}`, which is no table of "
                        "sub-policies that could be shown; give another, such as the proposal.json of a search, or a name "
                        "such as dada-imagenet")
    file = Path(args.policy)
    if args.policy in (*FIXED, *published_names()):
        name, search, why = args.policy, None, f"{args.policy} comes with the project, without the search.json of a search."
    else:
        name = f"{file.resolve().parent.name}/{file.name}"
        search, why = search_beside(file, policy)
    images = load(paths, args.images) if args.images else drawn()
    from dada_det.report.policy_page import policy_page
    from dada_det.report.policy_picture import policy_picture

    policy_page(policy, name, images, out, search, why)
    policy_picture(policy, images, out.with_suffix(".png"))
    print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB) and {out.with_suffix('.png')}")


def search_beside(path: Path, policy: "Policy") -> tuple["Search | None", str]:
    """The search.json in the folder of a policy's file, if both were written together; else None and why."""
    from dada_det.report.policy_movement import load_search

    beside = path.with_name("search.json")
    if not beside.is_file():
        return None, "there is no search.json beside the policy; a search writes both into one folder."
    if (winner := policy.provenance.get("winner", ALIGNED)) != ALIGNED:
        return None, f"the policy is `{winner}`, which the trial chose; what alignment found is in proposal.json."
    search = load_search(beside)
    ours = {name: value for name, value in policy.provenance.items() if name != "winner"}
    theirs = {name: value for name, value in search.candidates.provenance.items() if name != "epoch" or name in ours}
    if ours != theirs:  # what a trial has handed over names its winner and no epoch
        return None, "the search.json beside the policy is of another search or epoch; their provenance differs."
    return search, ""


def image_paths(folder: Path, most: int = PICTURES, depth: int = DEEPEST) -> list[Path]:
    """Up to `most` images of `folder`, evenly over its sorted files, or over its folders where it holds no image itself.

    Hidden entries are left out.

    Raises:
        UserError: there is no folder, no image, or no permission.
    """
    found = _image_paths(folder, most, depth)
    if not found:
        raise UserError(f"--images {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}); give a folder with some, or leave "
                        "it out")
    return found


def _image_paths(folder: Path, most: int, depth: int) -> list[Path]:
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot read --images {folder}: {error.strerror or error}; give a folder of images") from error
    files = [Path(entry) for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(entry)]
    if files or not depth:
        return [files[index * len(files) // most] for index in range(most)] if len(files) > most else files
    folders = [Path(entry) for entry in entries if os.path.isdir(entry)]
    step = max(1, len(folders) // most)
    found: list[Path] = []
    for start in range(step):  # first evenly spread folders, then those between them while images are missing
        chosen = folders[start::step]
        for index, inner in enumerate(chosen):
            wanted = -(-(most - len(found)) // (len(chosen) - index))
            found += _image_paths(inner, wanted, depth - 1)
            if len(found) >= most:
                return found[:most]
    return found


def load(paths: list[Path], folder: str) -> "list[Image.Image]":
    """The images that decode.

    Raises:
        UserError: no image decodes.
    """
    from dada_det.data.decode import load_image
    from dada_det.report.policy_page import SIDE

    images = []
    for path in paths:
        try:
            images.append(load_image(path, at_least=SIDE))
        except OSError:
            print(f"show_policy.py: {path.name} does not decode and is left out")
    if not images:
        raise UserError(f"none of the images chosen from --images {folder} decodes; give a folder with readable ones")
    return images


def drawn() -> "list[Image.Image]":
    """Pictures of the demo's own kind, the same every time."""
    import numpy as np

    from dada_det.data.drawing import KINDS as LOOKS
    from dada_det.data.synthetic import draw_object

    return [draw_object(LOOKS[kind], 128, np.random.default_rng(kind)) for kind in KINDS]
