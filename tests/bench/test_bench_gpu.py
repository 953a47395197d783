"""tools/bench/gpu.sh: each check under its own limit, a table that says what failed, and all of it on a CPU at toy sizes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.conftest import ROOT, load_bench, write_noise


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load_bench("gpu")


def lines_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "gpu.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_check_that_hangs_costs_no_other(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture) -> None:
    def python(text: str) -> list[str]:
        return [sys.executable, "-c", text]

    hangs = "import subprocess, time; print('began', flush=True); subprocess.run(['sleep', '600'])"
    monkeypatch.setattr(gpu, "checks", lambda out, cpu: [
        gpu.Check("hangs", 0.5, python(hangs)), gpu.Check("fails", 60, python("raise SystemExit('out of memory')")),
        gpu.Check("passes", 60, python("print(1)"), [gpu.Figure("share", lambda: 0.02, (0, 0.03)),
                                                     gpu.Figure("slow", lambda: 0.5, (0.95, 9)),
                                                     gpu.Figure("none", lambda: json.loads("{}")["x"])])])
    assert gpu.main([str(tmp_path), "--cpu"]) == 2
    output = capsys.readouterr()
    found = lines_of(tmp_path)
    assert [(line["check"], line["result"], line["figure"], line["value"]) for line in found] == [
        ("hangs", "timeout", "", ""), ("fails", "fail", "", ""), ("passes", "pass", "share", "0.02"),
        ("passes", "fail", "slow", "0.5"), ("passes", "fail", "none", "missing (KeyError)")]
    assert found[2]["aim"] == "0..0.03" and float(found[0]["seconds"]) < 60
    assert "out of memory" in (tmp_path / "fails.log").read_text()
    assert f"3 of 3 checks did not pass: fails, hangs, passes; {tmp_path}/<check>.log says why" in output.err
    assert len([line for line in output.out.splitlines() if line.startswith(("hangs", "fails", "passes"))]) == 5


def test_what_the_time_does_not_allow_is_not_run(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0)
    monkeypatch.setattr(gpu, "checks", lambda out, cpu: [gpu.Check("late", 60, ["false"])])
    assert gpu.main([str(tmp_path)]) == 2
    assert [line["result"] for line in lines_of(tmp_path)] == ["not run"]


def test_an_unknown_check_is_refused(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu.main([str(tmp_path), "--only", "speed"]) == 2
    assert "--only speed is no check; choose of images, parity, tests, search" in capsys.readouterr().err


def test_images_are_made_on_the_spot(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main([str(tmp_path), "--images", "--cpu"]) == 0
    files = sorted((tmp_path / "imagenet/train").rglob("*.jpg"))
    assert len(files) == 4 * 12 and len({file.parent for file in files}) == 4
    assert Image.open(files[0]).size == (60, 45)
    assert gpu.search_steps(cpu=False) == (460, 128) and gpu.search_steps(cpu=True) == (2, 16)


def test_reward_errors_of_each_way_and_precision(tmp_path: Path) -> None:
    reward_error = load_bench("reward_error")
    write_noise(tmp_path / "train", classes=2, images=12, side=20, spread=60)
    arguments = ["--data", str(tmp_path), "--model", "convnet", "--image-size", "16", "--batch-size", "8", "--steps", "3",
                 "--json", str(tmp_path / "error.json")]
    assert reward_error.main(arguments) == 0
    rows = {(row["way"], row["precision"]): row for row in json.loads((tmp_path / "error.json").read_text())["rows"]}
    assert set(rows) == set(reward_error.CASES)
    assert rows["forward", "float32"]["error"] < 1e-3 < rows["central", "bfloat16"]["error"]
    assert rows["central", "float32"]["cosine"] > 0.99
    assert reward_error.main(["--data", str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_every_check_passes_on_a_cpu(tmp_path: Path) -> None:
    result = subprocess.run(["bash", "tools/bench/gpu.sh", str(tmp_path), "--cpu"], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=4500)
    assert result.returncode == 0, result.stdout + result.stderr
    found = lines_of(tmp_path)
    assert {line["result"] for line in found} == {"pass"} and len({line["check"] for line in found}) == 18
    assert all(float(line["value"]) >= 0 for line in found if line["figure"])
