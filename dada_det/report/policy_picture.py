"""A picture of a policy: every sub-policy applied to a few images, with its numbers in real units."""

import dataclasses
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dada_det.augment.policy import Policy
from dada_det.augment.transform import PolicyTransform
from dada_det.files import whole_file

MOST_ROWS = 25
ROWS_A_BLOCK = 13  # the originals and 25 sub-policies stand in two blocks side by side
SIDE, GAP, LABEL_WIDTH = 72, 4, 290


def policy_picture(policy: Policy, images: list[Image.Image], path: str | Path) -> None:
    """Writes a PNG: the images as they are, then one row for each of the (up to) 25 heaviest sub-policies.

    Every operation of a sub-policy is switched on, whatever its probability; signs, spreads and Cutout's centres are
    drawn with a fixed seed, so equal policies give equal pictures. Raises UserError where `path` cannot be written.
    """
    squares = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    rows = [("as they are (below: weight, value,\nand in brackets the probability)", squares), *_rows(policy, squares)]
    blocks = -(-len(rows) // ROWS_A_BLOCK)
    width, height = LABEL_WIDTH + (SIDE + GAP) * len(squares) + GAP, SIDE + GAP
    canvas = Image.new("RGB", (blocks * width, min(len(rows), ROWS_A_BLOCK) * height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    for index, (label, pictures) in enumerate(rows):
        left, top = index // ROWS_A_BLOCK * width + GAP, index % ROWS_A_BLOCK * height + GAP
        draw.multiline_text((left, top + SIDE // 2), label, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (left + LABEL_WIDTH + column * (SIDE + GAP), top))
    with whole_file(path) as temporary:
        canvas.save(temporary, format="PNG")


def _rows(policy: Policy, squares: list[Image.Image]) -> list[tuple[str, list[Image.Image]]]:
    """Label and pictures of the heaviest sub-policies, heaviest first."""
    pairs = sorted(zip(policy.sub_policies, policy.labels(), strict=True), key=lambda pair: -pair[0].weight)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for sub_policy, label in pairs[:MOST_ROWS]:
        alone = dataclasses.replace(sub_policy, weight=1.0)
        transform = PolicyTransform(dataclasses.replace(policy, sub_policies=(alone,)))
        draws = transform.draw(len(squares), generator)
        switched_on = torch.arange(2).expand(len(squares), 2) < len(sub_policy.operations)
        draws = dataclasses.replace(draws, active_BK=switched_on)
        pictures = [transform.apply(square, draws[index:index + 1]) for index, square in enumerate(squares)]
        rows.append((label.replace(", then ", ",\n            then "), pictures))
    return rows
