"""The picture of a policy."""

import time

import pytest
from PIL import Image

from dada_det.augment.named import resolve_policy
from dada_det.errors import UserError
from dada_det.report.policy_picture import policy_picture

IMAGES = [Image.new("RGB", (90, 60), "teal"), Image.linear_gradient("L")]


@pytest.mark.parametrize(("name", "rows"), [("dada-imagenet", 13), ("uniform", 13), ("cutout", 2)])
def test_one_row_a_sub_policy_and_quick(tmp_path, name, rows):
    path = tmp_path / "policy.png"
    start = time.perf_counter()
    policy_picture(resolve_policy(name), IMAGES, path)
    assert time.perf_counter() - start < 5
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.height == rows * 76 + 4
    once = path.read_bytes()
    policy_picture(resolve_policy(name), IMAGES, path)
    assert path.read_bytes() == once and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        policy_picture(resolve_policy("cutout"), IMAGES, tmp_path / "file" / "policy.png")
