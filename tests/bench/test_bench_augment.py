"""tools/bench/augment.py: its rows and their JSON, and that those beside ours do the same work; no time decides a test."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import OPERATION_NAMES, Draws, apply_draws
from tests.conftest import load_bench


@pytest.fixture(scope="module")
def augment() -> ModuleType:
    return load_bench("augment")


def test_a_table_and_its_json(augment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert augment.main(["--rounds", "2", "--device", "cpu", "--json", str(tmp_path / "augment.json")]) == 0
    found = json.loads((tmp_path / "augment.json").read_text())
    assert set(found) >= {"command", "commit", "hardware", "settings", "versions", "rows"}
    assert [(row["path"], row["what"]) for row in found["rows"]] == [
        ("image", "dada"), ("image", "dada_autoaugment"), ("image", "timm"), ("image", "torchvision_v2"),
        ("image", "trivial"), ("image", "pil"), ("batch", "dada"), ("batch", "torchvision_by_group")]
    for row in found["rows"]:
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"] and row["n"] == 2
        assert (row["ratio"] == 1) == (row["what"] == augment.REFERENCE[row["path"]])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == list(augment.COLUMNS)
    assert [line.split()[:2] for line in lines[:8]] == [[row["path"], row["what"]] for row in found["rows"]]
    with pytest.raises(SystemExit):
        augment.main(["--rounds", "1"])


def test_ratios_are_those_of_the_same_round(augment: ModuleType) -> None:
    """A machine that is ten times slower in one round changes no ratio."""
    seconds = {"dada": [1.0, 10.0, 1.0], "torchvision_by_group": [4.0, 40.0, 4.0], "training_step": [20.0, 200.0, 20.0]}
    ours, theirs, step = augment.table_rows("batch", seconds, images=8)
    assert (ours["images_per_second"], ours["ratio"], ours["ratio_low"], ours["ratio_high"]) == (8.0, 4.0, 4.0, 4.0)
    assert (ours["share_of_training_step"], step["share_of_training_step"], theirs["ratio"]) == (0.05, 1.0, 1.0)
    assert (ours["low"], ours["n"]) == (pytest.approx(0.8 + 0.2 * 7.2), 3)


def test_plain_pil_makes_the_same_images(augment: ModuleType) -> None:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in augment.sample_images(8)]
    tasks = augment.image_tasks(pictures)
    changed = 0
    for number in range(8):
        for picture, ours, plain in zip(pictures, tasks["dada"](number)(), tasks["pil"](number)(), strict=True):
            assert ours.tobytes() == plain.tobytes()
            changed += ours.tobytes() != picture.tobytes()
    assert changed > 32


def test_torchvision_by_group_does_the_same_work(augment: ModuleType) -> None:
    """Equal but for single levels, and for Translate, which torchvision's own AutoAugment cuts to whole pixels."""
    images = augment.sample_images(30)
    generator = torch.Generator().manual_seed(0)
    for operation, name in enumerate(OPERATION_NAMES):
        draws = Draws(torch.full((30, 2), operation), torch.rand(30, 2, generator=generator) < 0.5,
                      torch.randint(0, 3, (30, 2), generator=generator) * 0.3 + 0.2,
                      torch.randint(0, 2, (30, 2), generator=generator) * 2.0 - 1,
                      torch.rand(30, 2, 2, generator=generator))
        ours = apply_draws(images, draws, "strength").numpy().astype(int)
        theirs = augment.by_group(images, draws, "strength").numpy().astype(int)
        share = np.mean(np.abs(ours - theirs) > 1)  # with the wrong sign a quarter and more
        assert share < (0.1 if name.startswith("Translate") else 0.01), (name, share)


def test_the_training_step_trains(augment: ModuleType) -> None:
    step = augment.training_step(augment.sample_images(4)[:, :, :64, :64])
    first, *_, last = [float(step()) for _ in range(4)]
    assert last < first
