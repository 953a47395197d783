"""tools/bench/planted_alone.py: each operation alone is what it says, the table is right, what is done is not done again."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dada_det.augment import PolicyTransform
from dada_det.data.memory import MemoryImages
from planted_images import MADE, oracle, source, write_folders
from tests.conftest import load_bench
from tests.messages import assert_names

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def alone(planted: ModuleType) -> ModuleType:
    """Imports planted.py by its name, which the fixture has put among the modules."""
    return load_bench("planted_alone")


def test_an_operation_alone_acts_on_half_of_the_images_at_all_strengths(alone: ModuleType) -> None:
    draws = PolicyTransform(alone.alone("Invert")).draw(400, torch.Generator().manual_seed(0))
    assert 160 < draws.active_BK[:, 0].sum() < 240 and not draws.active_BK[:, 1:].any()
    strengths = draws.magnitudes_BK[:, 0]
    assert strengths.min() < 0.05 and strengths.max() > 0.95 and 0.45 < strengths.mean() < 0.55


def test_a_real_run_goes_on_where_it_was(alone: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["--operations", "Invert", "--seeds", "1", "--epochs", "2", "--json", str(tmp_path / "alone.json")]
    assert alone.main(argv) == 0
    (row,) = json.loads((tmp_path / "alone.json").read_text())["rows"]
    assert len(row["alone"]) == 15 and row["accuracy_oracle"] > row["accuracy_none"]
    assert row["alone"]["Invert"] > row["alone"]["Sharpness"]
    assert "ETA" in capsys.readouterr().err
    assert alone.main(argv) == 0
    out, err = capsys.readouterr()
    assert "ETA" not in err
    assert_names(out.splitlines()[-1], "planted_alone", "1 rows", tmp_path / "alone.json")


def test_the_folders_own_images_are_trained_on(planted: ModuleType, alone: ModuleType, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels_N = torch.randint(256, (12, 3, 24, 24), dtype=torch.uint8), torch.arange(12) % 2
    write_folders(tmp_path, images=MemoryImages(images, labels_N))
    trials = []

    def run_trial(train: MemoryImages, unseen: MemoryImages, **options: Any) -> dict[str, float]:
        trials.append((len(train), len(unseen), options["recipe"], options["policy"]))
        return {"top1": 50.0}

    monkeypatch.setattr(alone, "run_trial", run_trial)
    table = tmp_path / "alone.json"
    assert alone.main(["--data", str(tmp_path / "images"), "--image-size", "21", "--batch-size", "3", "--seeds", "1",
                       "--operations", "Invert", "--json", str(table)]) == 0
    assert len(trials) == 17 and {trial[:2] for trial in trials} == {(4, 4)}
    recipe = trials[0][2]
    assert (recipe.image_size, recipe.batch_size, recipe.classes, recipe.mirror) == (21, 3, 2, True)
    assert trials[0][3] is None and trials[1][3] == oracle("Invert")
    settings = json.loads(table.read_text())["settings"]
    assert settings.pop("data") == source(tmp_path / "images")
    assert settings == {"tool": "planted_alone", "epochs": 30, "batch_size": 3, "image_size": 21}


def test_the_table(alone: ModuleType) -> None:
    """By hand: means 20 and 60, so a gap of 40; Invert 50 is 75 % of the way, the best other, Color 40, 50 %."""
    rows = [{"operation": "Invert", "seed": seed, "accuracy_none": 10.0 + 20 * seed, "accuracy_oracle": 60.0,
             "alone": dict.fromkeys(alone.OPERATION_NAMES, 20.0) | {"Invert": 50.0, "Color": 35.0 + 10 * seed}}
            for seed in (0, 1)]
    none = {**rows[0], "operation": "Cutout", "accuracy_oracle": 10.0}
    assert alone.summary([none])[1].split() == ["Cutout", "1", "0.0", "-", "-"]
    assert alone.summary(rows)[1].split() == ["Invert", "2", "40.0", "75", "%", "50", "%", "(Color)"]


@pytest.mark.parametrize("other", [{"epochs": 30}, {"data": "the digits of another day"}, {"tool": "planted"}])
def test_a_file_of_other_epochs_or_images_is_refused(alone: ModuleType, other: dict, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture) -> None:
    table = tmp_path / "alone.json"
    own = {"tool": "planted_alone", "epochs": 2, "batch_size": 50, "image_size": 14, "data": MADE}
    table.write_text(json.dumps({"rows": [], "settings": own}))
    assert alone.rows_in(table, own) == []
    table.write_text(json.dumps({"rows": [], "settings": {**own, **other}}))
    assert alone.main(["--epochs", "2", "--json", str(table)]) == 2
    assert "was not measured with" in capsys.readouterr().err
