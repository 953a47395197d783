"""tools/bench/ablation.py: its rows are what they say, its table is right, and what is done is not done again."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dada_det.engine.runtime.launch import read_config
from dada_det.search.settings import dada_settings
from tests.conftest import load_bench
from tests.messages import assert_names


@pytest.fixture(scope="module")
def ablation(planted: ModuleType) -> ModuleType:
    """Imports planted.py by its name, which the fixture has put among the modules."""
    return load_bench("ablation")


@pytest.fixture
def searches(ablation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tasks that were run; each takes no time and finds the better policy the later its row stands in ROWS."""
    tasks: list[Any] = []

    def run(task: Any) -> list[dict[str, Any]]:
        tasks.append(task)
        place = list(ablation.ROWS).index(task.row)
        return [{**task.entries(), "auc": 0.5 + 0.02 * place + 0.1 * task.seed, "rank": 1 + place % 2, "first": "Invert",
                 "seconds": 2.0}]

    monkeypatch.setattr(ablation, "run", run)
    return tasks


def test_every_row_changes_the_search_in_its_own_way(ablation: ModuleType) -> None:
    found = set()
    for options in ablation.ROWS.values():
        config = read_config("configs/debug/search.py", options)
        found.add(f"{dada_settings(**config.search)} {config.policy_optimizer}")
    assert len(found) == len(ablation.ROWS)


def test_two_rows_of_real_searches(ablation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = tmp_path / "ablation.json"
    assert ablation.main(["--rows", "default", "no warm-up", "--operations", "Invert", "--seeds", "1", "--epochs", "3",
                          "--json", str(table)]) == 0
    content = json.loads(table.read_text())
    assert content["settings"] == {"tool": "ablation", "epochs": 3, "data": ablation.MADE, "default": str(dada_settings())}
    default, other = content["rows"]
    assert (default["row"], default["options"], default["operation"], default["seed"]) == ("default", [], "Invert", 0)
    assert (other["row"], other["options"]) == ("no warm-up", ["search.warmup_epochs=0"])
    assert 0.5 < default["auc"] <= 1 and default["auc"] != other["auc"] and 1 <= default["rank"] <= 15
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"ablation  done: 2 rows in {table}" and "ETA" in err


def test_the_table(ablation: ModuleType, searches: list[Any], capsys: pytest.CaptureFixture) -> None:
    """By hand: two seeds, 0.1 apart, so an interval of 12.706 * 0.05, and no spread between the differences."""
    assert ablation.main(["--rows", "default", "one draw", "spread 0.8", "--operations", "Rotate"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    cells = [line[max(map(len, ablation.ROWS)):].split() for line in table[1:]]
    assert cells[0] == ["2", "0.550", "±", "0.635", "-", "2/2", "2.0"]
    assert cells[1] == ["2", "0.570", "±", "0.635", "+0.020", "±", "0.000", "0/2", "2.0"]
    assert cells[2] == ["2", "0.690", "±", "0.635", "+0.140", "±", "0.000", "0/2", "2.0"]
    assert_names(last, "ablation", "6 rows", "--json")


def test_what_the_file_holds_is_not_run_again(ablation: ModuleType, searches: list[Any], tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    flags = ["--operations", "Rotate", "Invert", "--json", str(tmp_path / "a.json")]
    assert ablation.main([*flags, "--rows", "default", "--seeds", "1"]) == 0
    first = list(searches)
    assert len(first) == 2
    assert ablation.main([*flags, "--rows", "default", "one draw", "--seeds", "2"]) == 0
    assert len(searches) == len(set(searches)) == 8 and searches[:2] == first
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 8
    assert "2 of 8 searches are in" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    lambda content: content["settings"].update(epochs=4), lambda content: content["settings"].update(default="another"),
    lambda content: content["rows"][0].update(options=["mirror=True"]), lambda content: content["rows"][0].pop("seed"),
    lambda content: content["rows"][0].update(row="of another day"), lambda content: content.pop("settings")])
def test_a_file_of_another_ablation_is_refused(change: Callable, ablation: ModuleType, searches: list[Any], tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    flags = ["--rows", "default", "--operations", "Rotate", "--seeds", "1", "--json", str(tmp_path / "a.json")]
    assert ablation.main(flags) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert ablation.main(flags) == 2
    error = capsys.readouterr().err
    assert "give" in error and error.count("\n") == 1 and len(searches) == 1
