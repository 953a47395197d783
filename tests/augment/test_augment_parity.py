"""Every operation against Pillow, called here through pillow_reference, and the table of tools/bench/parity.py."""

import json
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import OPERATION_NAMES, RANGES, apply_operation
from pillow_reference import pillow_reference
from tests.conftest import load_bench
from tests.messages import assert_error

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return load_bench("parity")


def to_pil(image_CHW):
    return Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy())


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def assert_equal(parity, name, device):
    """All kinds of images and sizes, 22 magnitudes, both signs and tables of ranges."""
    generator = torch.Generator().manual_seed(1)
    batches = [parity.pictures(*size, generator) for size in parity.SIZES]
    for row in parity.compare(name, batches, torch.device(device), seed=1):
        assert row == {"operation": name, "path": row["path"], "max_difference": 0, "share_differing": 0.0}


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_batch_and_pil_equal_pillow(name, parity):
    assert_equal(parity, name, "cpu")


@pytest.mark.gpu
def test_a_batch_on_a_gpu_equals_pillow(parity):
    for name in OPERATION_NAMES:
        assert_equal(parity, name, "cuda")


def test_on_photographs(parity, shared):
    photographs = parity.photographs(str(shared / "data" / "imagenette-mini" / "val"), side=64)
    assert len(photographs) >= 8
    for name in OPERATION_NAMES:
        assert all(row["max_difference"] == 0 for row in parity.compare(name, [photographs[-2:]], CPU)), name


def test_a_kernel_that_is_off_shows_in_the_table(parity, tmp_path, monkeypatch, capsys):
    """One level on one of a thousand pixels, on the batch's side only."""
    def off(images, *rest):
        images = apply_operations(images, *rest)
        images[..., 0, 0] ^= 1
        return images

    apply_operations = parity.apply_operations
    monkeypatch.setattr(parity, "apply_operations", off)
    monkeypatch.setattr(parity, "SIZES", ((25, 40),))
    monkeypatch.setattr(parity, "photographs", lambda folder: torch.empty(0, 3, 1, 1))
    arguments = ["--operations", "Invert", "--device", "cpu", "--json", str(tmp_path / "parity.json")]
    assert parity.main(arguments) == 0
    assert json.loads((tmp_path / "parity.json").read_text())["rows"] == [
        {"operation": "Invert", "path": "image", "max_difference": 0, "share_differing": 0.0},
        {"operation": "Invert", "path": "batch", "max_difference": 1, "share_differing": 0.001}]
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(parity.COLUMNS)
    assert [line.split() for line in lines[:2]] == [["Invert", "image", "0", "0.0000%"], ["Invert", "batch", "1", "0.1000%"]]


def test_a_folder_without_photographs_ends_in_one_sentence(parity, tmp_path, capsys):
    assert parity.main(["--data", str(tmp_path)]) == 2
    assert_error(capsys.readouterr().err, "parity.py", f"--data {tmp_path}", ".jpg, .jpeg", ".png")


@pytest.mark.parametrize("width", [10, 25, 30, 50, 90, 100, 250])
def test_translations_that_end_between_two_pixels(width):
    """Round magnitudes give shifts of k + 1/2, where PIL's own running sum decides (0.45 · 10 and the like)."""
    image = torch.arange(width, dtype=torch.uint8).expand(3, 1, width)
    magnitudes = torch.arange(101, dtype=torch.float64) / 100
    for ranges in RANGES:
        for sign in (1.0, -1.0):
            batch = apply_operation(image.expand(101, 3, 1, width), "TranslateX", magnitudes,
                                    torch.full((101,), sign), ranges)
            for m, moved in zip(magnitudes.tolist(), batch, strict=True):
                expected = pillow_reference(to_pil(image), "TranslateX", m, sign, ranges, (0, 0))
                assert torch.equal(moved, to_tensor(expected))


def test_strength_zero_is_the_identity_where_there_is_one(parity):
    images = parity.pictures(20, 30, torch.Generator().manual_seed(3))
    for name in OPERATION_NAMES:
        same = torch.equal(apply_operation(images, name, torch.zeros(5), None, "strength"), images)
        assert same == (name not in ("AutoContrast", "Invert", "Equalize")), name
