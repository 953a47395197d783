"""A picture of a policy: every sub-policy applied to a few images, its numbers in real units, and a heatmap of the pairs."""

import dataclasses
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.augment.transform import PolicyTransform
from dada_det.files import whole_file
from dada_det.report.policy_facts import heaviest_first, pair_shares

MOST_ROWS = 25
ROWS_A_BLOCK = 13  # the originals and 25 sub-policies stand in two blocks side by side
SIDE, GAP, LABEL_WIDTH = 72, 4, 290
CELL, NAMES_WIDTH, HEAD = 26, 96, 130  # of the heatmap: its cells, the names to their left, title and names above
HEATMAP = (2 * GAP + NAMES_WIDTH + CELL * len(OPERATION_NAMES), HEAD + CELL * len(OPERATION_NAMES) + GAP)
LIGHTEST, DARKEST = (238, 243, 250), (24, 79, 149)


def policy_picture(policy: Policy, images: list[Image.Image], path: str | Path) -> None:
    """Writes a PNG: the images as they are, one row for each of the (up to) 25 heaviest sub-policies, and the heatmap.

    Every operation of a sub-policy is switched on, whatever its probability; signs, spreads and Cutout's centres are drawn
    with a fixed seed, so equal policies give equal pictures.

    Raises:
        UserError: `path` cannot be written.
    """
    squares = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    rows = [("as they are (below: weight, value,\nand in brackets the probability)", squares)]
    rows += [(label.replace(", then ", ",\n            then "), pictures)
             for label, pictures in before_and_after(policy, squares, MOST_ROWS)]
    blocks = -(-len(rows) // ROWS_A_BLOCK)
    width, height = LABEL_WIDTH + (SIDE + GAP) * len(squares) + GAP, SIDE + GAP
    canvas = Image.new("RGB", (blocks * width + HEATMAP[0], max(min(len(rows), ROWS_A_BLOCK) * height + GAP, HEATMAP[1])),
                       "white")
    draw = ImageDraw.Draw(canvas)
    for index, (label, pictures) in enumerate(rows):
        left, top = index // ROWS_A_BLOCK * width + GAP, index % ROWS_A_BLOCK * height + GAP
        draw.multiline_text((left, top + SIDE // 2), label, "black", _font(12), anchor="lm")
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (left + LABEL_WIDTH + column * (SIDE + GAP), top))
    _draw_heatmap(canvas, blocks * width + GAP, policy)
    with whole_file(path) as temporary:
        canvas.save(temporary, format="PNG")


def before_and_after(policy: Policy, squares: list[Image.Image], most: int) -> list[tuple[str, list[Image.Image]]]:
    """Label (Policy.labels) and pictures, one for each of `squares`, of the `most` heaviest sub-policies, heaviest first.

    Drawn as `policy_picture` says.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    chosen = dataclasses.replace(policy, sub_policies=tuple(sub_policy for _, sub_policy in heaviest_first(policy)))
    for sub_policy, label in list(zip(chosen.sub_policies, chosen.labels(), strict=True))[:most]:
        alone = dataclasses.replace(sub_policy, weight=1.0)
        transform = PolicyTransform(dataclasses.replace(policy, sub_policies=(alone,), unaugmented=0.0))
        draws = transform.draw(len(squares), generator)
        switched_on = torch.arange(2).expand(len(squares), 2) < len(sub_policy.operations)
        draws = dataclasses.replace(draws, active_BK=switched_on)
        rows.append((label, [transform.apply(square, draws[index:index + 1]) for index, square in enumerate(squares)]))
    return rows


def _draw_heatmap(canvas: Image.Image, left: int, policy: Policy) -> None:
    """The share of images in % that each pair gets, row first, column second; single operations on the diagonal."""
    draw, cells = ImageDraw.Draw(canvas), pair_shares(policy)
    most = max(map(max, cells)) or 1.0
    draw.multiline_text((left, GAP), "% of images for each pair (row, then column);\nthe diagonal: one operation alone",
                        "black", _font(12))
    for index, name in enumerate(OPERATION_NAMES):
        middle = index * CELL + CELL // 2
        draw.text((left + NAMES_WIDTH - GAP, HEAD + middle), name, "black", _font(11), anchor="rm")
        upright = Image.new("RGB", (HEAD - 40, 15), "white")
        ImageDraw.Draw(upright).text((0, 7), name, "black", _font(11), anchor="lm")
        canvas.paste(upright.rotate(90, expand=True), (left + NAMES_WIDTH + middle - 7, 38))
    for row, shares in enumerate(cells):
        for column, share in enumerate(shares):
            x, y = left + NAMES_WIDTH + column * CELL, HEAD + row * CELL
            part = share / most
            color = tuple(round(a + part * (b - a)) for a, b in zip(LIGHTEST, DARKEST, strict=True)) if share else "#f7f7f7"
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), color)
            if share >= 0.0005:
                number = f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
                draw.text((x + CELL // 2 - 1, y + CELL // 2 - 1), number, "white" if part > 0.5 else "black", _font(9),
                          anchor="mm")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
