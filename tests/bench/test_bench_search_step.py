"""tools/bench/search_step.py: its columns, its JSON and its counting; no time decides a test."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.messages import assert_error


def test_a_table_and_its_json(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--models", "convnet", "--rounds", "2", "--device", "cpu", "--json", str(tmp_path / "step.json")]
    assert bench.main(arguments) == 0
    found = json.loads((tmp_path / "step.json").read_text())
    assert set(found) >= {"command", "commit", "hardware", "settings", "versions", "rows"} and "torch" in found["versions"]
    assert [(row["model"], row["mode"]) for row in found["rows"]] == [("convnet", "default"), ("convnet", "paper")]
    for row in found["rows"]:
        assert row["low"] <= row["ratio"] <= row["high"] and 1 < row["memory_ratio"] < 3
        # Nought would mean that what is to be timed or counted is no longer called under the name that is watched.
        assert all(row[name] > 0 for name in ("augmentation", "data", "weights_update", "policy_update"))
    default, paper = found["rows"]
    assert [(row["rewards_per_step"], row["baseline"]) for row in (default, paper)] == [(64, "batch"), (1, "none")]
    header, *lines = capsys.readouterr().out.splitlines()[1:4]
    assert header.split() == list(bench.COLUMNS) and [line.split()[:2] for line in lines] == [["convnet", "default"],
                                                                                             ["convnet", "paper"]]


def test_a_row_of_ddas(bench: ModuleType, tmp_path: Path) -> None:
    arguments = ["--models", "convnet", "--modes", "ddas", "--rounds", "1", "--device", "cpu"]
    assert bench.main([*arguments, "--json", str(tmp_path / "step.json")]) == 0
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert (row["mode"], row["rewards_per_step"], row["baseline"]) == ("ddas", 3, "unaugmented")
    assert all(row[name] > 0 for name in ("augmentation", "data", "weights_update", "policy_update"))


def test_settings_are_changed_by_name(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shape = ["--models", "convnet", "--modes", "default", "--rounds", "1", "--device", "cpu"]
    assert bench.main([*shape, "--json", str(tmp_path / "step.json"), "--settings", "draws_per_image=1", "spread=0.8"]) == 0
    (row,) = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert (row["mode"], row["baseline"]) == ("default draws_per_image=1 spread=0.8", "batch")
    assert bench.main([*shape, "--settings", "drawz=1"]) == 2
    assert "search has no entry drawz" in capsys.readouterr().err


def test_a_device_that_is_not_there_and_a_file_that_cannot_be_written_are_said_first(
        bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it was measured"))
    assert bench.main(["--device", "cuda"]) == 2
    assert_error(capsys.readouterr().err, "search_step.py", "--device cuda", "--device cpu")
    (tmp_path / "file").write_text("")
    assert bench.main(["--device", "cpu", "--json", str(tmp_path / "file/step.json")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_peak_bytes_are_those_alive_at_once(bench: ModuleType) -> None:
    case = bench.build("convnet", "paper", [], torch.device("cpu"))

    def run(number: int) -> None:
        first = torch.empty(3_000_000, dtype=torch.uint8)
        del first
        pair = torch.empty(1_000_000, dtype=torch.uint8), torch.empty(1_000_000, dtype=torch.uint8)
        del pair

    held = sum(tensor.nbytes for tensor in (*case.searcher.parameters(), *case.searcher.buffers()))
    assert bench.peak_bytes(case, run) - held == pytest.approx(3_000_000, rel=0.01)


def test_what_plain_training_holds_is_the_network_and_its_momentum(bench: ModuleType) -> None:
    """The running means of a search and what it learns are not among it."""
    case = bench.build("convnet", "default", [], torch.device("cpu"))
    case.steps(0)
    network = sum(tensor.nbytes for tensor in (*case.searcher.network.parameters(), *case.searcher.network.buffers()))
    momentum = sum(tensor.nbytes for tensor in case.searcher.network.parameters())
    assert sum(tensor.nbytes for tensor in case.held()) - case.own_bytes() == network + momentum
    assert case.own_bytes() > 2 * momentum  # the means of the gradient's squares and of the validation gradient


@pytest.mark.parametrize(("n", "ends"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (12, (3, 10)), (25, (8, 18))])
def test_the_interval_of_a_median(n: int, ends: tuple[int, int], bench: ModuleType) -> None:
    """The places of the order statistics in the table of the sign test at 5 %."""
    assert bench.interval(list(range(n, 0, -1))) == ends
