"""The picture of a policy."""


import numpy as np
import pytest
from PIL import Image

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import INDEX
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.errors import UserError
from dada_det.report.policy_picture import CELL, HEAD, HEATMAP, NAMES_WIDTH, before_and_after, policy_picture

IMAGES = [Image.new("RGB", (90, 60), "teal"), Image.linear_gradient("L")]


@pytest.mark.parametrize(("name", "rows"), [("dada-imagenet", 13), ("uniform", 13), ("cutout", 2)])
def test_one_row_a_sub_policy_and_equal_pictures_for_equal_policies(tmp_path, name, rows):
    path = tmp_path / "policy.png"
    policy_picture(resolve_policy(name), IMAGES, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.height == max(rows * 76 + 4, HEATMAP[1])
    once = path.read_bytes()
    policy_picture(resolve_policy(name), IMAGES, path)
    assert path.read_bytes() == once and list(tmp_path.iterdir()) == [path]


def test_the_heatmap_is_darkest_at_the_heaviest_pair(tmp_path):
    rotate, color = Operation("Rotate", 1, 0.5), Operation("Color", 1, 0.5)
    policy_picture(Policy("strength", (SubPolicy(3, (rotate, color)), SubPolicy(1, (color,)))), IMAGES, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    left, top = pixels.shape[1] - HEATMAP[0] + 4 + NAMES_WIDTH, HEAD  # 4: the gap beside the rows

    def corner(row, column):  # inside the cell, beside its number
        return pixels[top + INDEX[row] * CELL + 2, left + INDEX[column] * CELL + 2]

    assert corner("Rotate", "Color") < corner("Color", "Color") < corner("Invert", "Color")


def test_every_operation_is_switched_on():
    square = Image.linear_gradient("L").convert("RGB")
    policy = Policy("strength", (SubPolicy(1, (Operation("Invert", 0.0, 0.5),)), SubPolicy(2, (Operation("Color", 0, 0),))))
    (first, (same,)), (second, (inverted,)) = before_and_after(policy, [square], most=5)
    assert "Color" in first and "66.7 %" in first and "Invert (0.00)" in second
    assert same.tobytes() == square.tobytes() and inverted.getpixel((0, 0)) == (255, 255, 255)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        policy_picture(resolve_policy("cutout"), IMAGES, tmp_path / "file" / "policy.png")
