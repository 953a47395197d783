"""tools/bench/gpu.sh: each check under its own limit, a table that says what failed, and all of it on a CPU at toy sizes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, load_bench, write_noise
from tests.messages import assert_names


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load_bench("gpu")


def lines_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "gpu.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_check_that_hangs_costs_no_other(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture) -> None:
    def missing(left: object) -> float:
        raise KeyError("x")

    monkeypatch.setattr(gpu, "CHECKS", (
        gpu.Check("hangs", 0.5, "python -c \"import subprocess; subprocess.run(['sleep', '600'])\""),
        gpu.Check("fails", 60, "python -c \"raise SystemExit('out of memory')\""),
        gpu.Check("passes", 60, "python -c 'import sys; print(sys.argv[1:])' {OUT} {DEVICE}", "--toy", [
            gpu.Figure("share", lambda left: 0.02, (0, 0.03)), gpu.Figure("slow", lambda left: 0.5, (0.95, 9)),
            gpu.Figure("none", missing), gpu.Figure("of a GPU", lambda left: 1.0, gpu=True)])))
    monkeypatch.setattr(gpu, "SLOWER", 1)
    assert gpu.main([str(tmp_path), "--cpu"]) == 2
    output = capsys.readouterr()
    found = lines_of(tmp_path)
    assert [(line["check"], line["result"], line["figure"], line["value"]) for line in found] == [
        ("hangs", "timeout", "", ""), ("fails", "fail", "", ""), ("passes", "pass", "share", "0.02"),
        ("passes", "fail", "slow", "0.5"), ("passes", "fail", "none", "missing (KeyError)")]
    assert found[2]["aim"] == "0..0.03" and float(found[0]["seconds"]) < 60
    assert "out of memory" in (tmp_path / "fails.log").read_text()
    assert (tmp_path / "passes.log").read_text() == f"{[str(tmp_path), 'cpu', '--toy']}\n"
    assert_names(output.err, "3 of 3", "fails, hangs, passes", f"{tmp_path}/<check>.log")
    assert len([line for line in output.out.splitlines() if line.startswith(("hangs", "fails", "passes"))]) == 5


def test_what_the_time_does_not_allow_is_not_run(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0)
    monkeypatch.setattr(gpu, "CHECKS", (gpu.Check("late", 60, "python -c pass"),))
    assert gpu.main([str(tmp_path)]) == 2
    assert [line["result"] for line in lines_of(tmp_path)] == ["not run"]


def test_an_unknown_check_is_refused(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu.main([str(tmp_path), "--only", "speed"]) == 2
    assert_names(capsys.readouterr().err, "--only", "speed", "images, parity, tests, search")


def test_images_are_made_on_the_spot(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main([str(tmp_path), "--images", "--cpu"]) == 0
    files = sorted((tmp_path / "imagenet/train").rglob("*.jpg"))
    assert len(files) == 4 * 12 and len({file.parent for file in files}) == 4
    assert Image.open(files[0]).size == (60, 45)
    assert gpu.search_steps(cpu=False) == 23 * gpu.EPOCHS and gpu.search_steps(cpu=True) == 2


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
    # Without a GPU operands are rounded to TF32's by hand.
    assert rows["forward", "float32"]["error"] < rows["forward", "tf32"]["error"] < rows["central", "bfloat16"]["error"]
    numbers = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -3.1415927])
    assert reward_error.as_tf32(numbers).tolist() == [1.0, 1 + 2.0**-10, 1.0, 1 + 2.0**-9, -3.140625]
    assert reward_error.main(["--data", str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_every_check_passes_on_a_cpu(gpu: ModuleType, tmp_path: Path) -> None:
    result = subprocess.run(["bash", "tools/bench/gpu.sh", str(tmp_path), "--cpu"], cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=5400)
    assert result.returncode == 0, result.stdout + result.stderr
    found = lines_of(tmp_path)
    assert {line["result"] for line in found} == {"pass"} and len({line["check"] for line in found}) == len(gpu.CHECKS)
    assert all(float(line["value"]) >= 0 for line in found if line["figure"])
    plans = [json.loads(path.read_text()) for path in tmp_path.glob("plan_*.json")]
    assert [row["stage"] for row in plans[0]["rows"]] == ["pretraining", "search", "detection"] and len(plans) == 1


def test_every_check_is_a_command_that_exists(gpu: ModuleType, tmp_path: Path) -> None:
    """On a GPU and with --cpu: the file or module is there, and so are the configs that it names."""
    for left in (gpu.Left(tmp_path, False), gpu.Left(tmp_path / "a b", True)):
        for check in gpu.CHECKS:
            command = gpu.command_of(check, left)
            assert all((ROOT / word).is_file() for word in command if word.startswith(("configs/", "tests/"))
                       and word.endswith(".py")), command
            own = [word for word in command if word.startswith("dada_det.commands.")]
            assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in own)
            assert command[0] == sys.executable and (command[1] == "-m" or Path(command[1]).is_file())
            assert not any("{" in word for word in command) and not any(word == "b" for word in command)
