"""Files of results say how they were made."""

import json
import subprocess
import sys

import pytest

from dada_det.report import measurements
from dada_det.report.measurements import ROOT, command_line, commit, write_rows


@pytest.fixture
def run_as(monkeypatch):
    """Makes this process the run of a command at a commit."""
    def run(command, at):
        monkeypatch.setattr(sys, "argv", command.split())
        monkeypatch.setattr(measurements, "commit", lambda: at)
    return run


def test_a_command_is_said_without_the_machine_s_folders():
    said = command_line([str(ROOT / "tools/bench/planted.py"), "--data", "/home/me/data/nuclei", "--json", "results/a.json",
                         "--cfg-options", "weights=/home/me/w.pth", f"out={ROOT}/work_dirs", "a b"])
    assert said == ("python tools/bench/planted.py --data .../nuclei --json results/a.json --cfg-options weights=.../w.pth "
                    "out=work_dirs 'a b'")


def test_a_file_of_results_holds_command_commit_hardware_and_versions(tmp_path, run_as):
    run_as("tools/bench/planted.py --seeds 1", "abc1234")
    write_rows(tmp_path / "t.json", [{"seed": 0}], {"epochs": 3})
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["command"] == "python tools/bench/planted.py --seeds 1" and found["commit"] == "abc1234"
    assert found["hardware"] and set(found["versions"]) == {"torch", "timm", "dada_det"}
    assert found["rows"] == [{"seed": 0}] and found["settings"] == {"epochs": 3} and "earlier" not in found


def test_rows_that_were_there_before_keep_their_origin(tmp_path, run_as):
    table = tmp_path / "t.json"
    run_as("planted.py --seeds 1", "abc1234")
    write_rows(table, [{"seed": 0}])
    run_as("planted.py --seeds 3", "def5678")
    for seeds in (2, 3):  # as a measurement writes after every run
        write_rows(table, [{"seed": seed} for seed in range(seeds)])
    found = json.loads(table.read_text())
    assert (found["command"], found["commit"]) == ("python planted.py --seeds 3", "def5678")
    assert found["earlier"] == [{"command": "python planted.py --seeds 1", "commit": "abc1234"}]
    run_as("planted.py --first-seed 7", "def5678")
    write_rows(table, [{"seed": 7}])  # nothing of what was there is kept
    assert "earlier" not in json.loads(table.read_text())


def test_outside_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "ROOT", tmp_path)
    assert commit.__wrapped__() == "unknown"
    package = tmp_path / "site-packages"  # installed inside somebody else's repository
    package.mkdir()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(measurements, "ROOT", package)
    assert commit.__wrapped__() == "unknown"


def test_every_file_in_results_says_how_it_was_made():
    files = sorted((ROOT / "results").glob("*.json"))
    assert files
    missing = {path.name: [name for name in ("command", "commit", "hardware", "versions", "rows") if name not in found]
               for path in files for found in [json.loads(path.read_text())]}
    assert not any(missing.values()), missing
