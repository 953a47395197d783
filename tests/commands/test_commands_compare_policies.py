"""tools/compare_policies.py: tables and files, pairs of seeds, resumption, and every promised sentence."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dada_det.augment.named import resolve_policy
from dada_det.augment.policy import NamedPolicy
from dada_det.commands import compare_policies
from dada_det.commands.compare_policies import main, named_policies
from dada_det.engine.compare import trials
from dada_det.engine.runtime import processes
from dada_det.report.comparison import summarise, table
from tests.conftest import write_noise
from tests.messages import assert_error, assert_names, refused

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class>/*.png and val/<class>/*.png: noise around a brightness of each of three classes."""
    root = tmp_path_factory.mktemp("data")
    write_noise(root / "train", classes=3, images=10, side=20, spread=90)
    write_noise(root / "val", classes=3, images=8, side=20, spread=90, seed=1)
    return root


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two policies, searched once for each seed."""
    folder = tmp_path_factory.mktemp("searched")
    for seed, name in enumerate(("one-op", "cutout")):
        resolve_policy(name).save(folder / f"s{seed}" / "policy.json")
    return f"{folder}/s{{seed}}/policy.json"


def compare(data: Path, work_dir: Path, *policies: str, flags: tuple[str, ...] = (), epochs: int = 2) -> int:
    return main(["--data", str(data), "--work-dir", str(work_dir), "--model", "convnet", "--epochs", str(epochs),
                 "--image-size", "16", "--batch-size", "10", "--seeds", "2", *flags, "--policies", *policies])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_csv_and_plot_of_policies_paired_by_seed(data: Path, searched: str, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture) -> None:
    assert compare(data, tmp_path, f"learned={searched}", "none") == 0
    out = capsys.readouterr().out.splitlines()
    assert sum("ETA" in line for line in out) == 6
    assert [line.split()[0] for line in out[-5:]] == ["policy", "learned", "none", "random", "compare"]
    assert_names(out[-1], "compare", "comparison.csv, comparison.png, runs.csv", "6 runs", "runs/", tmp_path)

    runs = rows(tmp_path / "runs.csv")
    assert [(run["policy"], run["seed"]) for run in runs] == [(name, str(seed)) for name in ("learned", "none", "random")
                                                              for seed in range(2)]
    assert {(run["epochs"], run["model"], run["train_images"], run["test_images"]) for run in runs} == {
        ("2", "convnet", "30", "24")}
    assert all(run["hardware"] and run["torch"] for run in runs)
    hashes = [run["policy_hash"] for run in runs]
    expected = [resolve_policy(*policy).sha256[:16] for policy in (("one-op",), ("cutout",), ("random", 0), ("random", 1))]
    assert hashes == [*expected[:2], "none", "none", *expected[2:]] and expected[2] != expected[3]

    accuracies = {name: [float(run["top1"]) for run in runs if run["policy"] == name]
                  for name in ("learned", "none", "random")}
    for summary, row in zip(summarise(accuracies), rows(tmp_path / "comparison.csv"), strict=True):
        assert (row["policy"], row["n"]) == (summary.policy, "2")
        assert float(row["top1_mean"]) == pytest.approx(np.mean(accuracies[row["policy"]]))
        if row["policy"] != "random":
            differences = np.subtract(accuracies[row["policy"]], accuracies["random"])
            assert float(row["difference_mean"]) == pytest.approx(differences.mean())
            assert float(row["difference_interval"]) == pytest.approx(12.70620 * differences.std(ddof=1) / 2**0.5, abs=1e-3)
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.format == "PNG" and picture.width > 600


@pytest.mark.parametrize(("said", "flag", "flips"), [
    ((None, None), None, True), ((False, None), None, False), ((True, True), None, True), ((False, False), "--mirror", True),
    ((True, False), "--no-mirror", False)])
def test_flips_are_those_of_the_policies_or_of_the_flag(said: tuple, flag: str | None, flips: bool, data: Path,
                                                       tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mirror in zip("ab", said, strict=True):
        NamedPolicy("trivial", mirror=mirror).save(tmp_path / f"{name}.json")
    seen: list = []
    monkeypatch.setattr(compare_policies, "compare", lambda args, *_: seen.append(args.mirror))
    monkeypatch.setattr(compare_policies, "report", lambda *_: None)
    assert compare(data, tmp_path / "w", f"a={tmp_path}/a.json", f"b={tmp_path}/b.json", "none",
                   flags=(flag,) if flag else ()) == 0
    assert seen == [flips]


def test_policies_that_differ_in_flips_need_a_flag(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for mirror in (True, False):
        NamedPolicy("uniform", mirror=mirror).save(tmp_path / f"{mirror}.json")
    assert compare(data, tmp_path / "w", f"a={tmp_path}/True.json", f"b={tmp_path}/False.json") == 2
    assert_names(capsys.readouterr().err, "policy a", "flips", "b", "--mirror", "--no-mirror")


def test_runs_that_are_done_are_skipped_and_more_seeds_and_policies_join(data: Path, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch,
                                                                         capsys: pytest.CaptureFixture) -> None:
    assert compare(data, tmp_path, "none", flags=("--seeds", "1")) == 0
    out = capsys.readouterr().out
    assert "are done already" not in out and "nan" not in out
    none = rows(tmp_path / "comparison.csv")[0]
    assert none["n"] == "1" and none["top1_interval"] == none["difference_interval"] == "nan"
    started = []

    def one(run, *arguments, one=trials.one):
        started.append((run.label, run.seed))
        return one(run, *arguments)

    monkeypatch.setattr(trials, "one", one)
    assert compare(data, tmp_path, "none", "uniform") == 0
    assert "2 of 6 runs are done already and skipped" in capsys.readouterr().out
    assert started == [("uniform", 0), ("none", 1), ("uniform", 1), ("random", 1)]
    before = [(tmp_path / name).read_bytes() for name in ("runs.csv", "comparison.csv", "comparison.png")]
    assert compare(data, tmp_path, "none", "uniform") == 0 and len(started) == 4
    assert [(tmp_path / name).read_bytes() for name in ("runs.csv", "comparison.csv", "comparison.png")] == before


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_side_by_side(data: Path, tmp_path: Path) -> None:
    for name, number in (("one", "1"), ("two", "2")):
        assert compare(data, tmp_path / name, "none", flags=("--seeds", "1", "--processes", number)) == 0
    files = all_files(tmp_path / "two")
    assert sorted(files) == ["comparison.csv", "comparison.png", "runs.csv", "runs/none-s0/metrics.json",
                             "runs/random-s0/metrics.json"]
    assert files == all_files(tmp_path / "one")


def test_side_by_side_gives_the_same_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thread in the place of the processes, which take 20 s to import what they need."""
    started = []

    def pool(number, context, initializer, arguments):
        started.append((number, context.get_start_method()))
        return ThreadPoolExecutor(1, initializer=initializer, initargs=arguments)

    monkeypatch.setattr(processes, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(processes, "end_with_parent", lambda: None)
    monkeypatch.setattr(trials, "_images", [])
    monkeypatch.setattr(trials.torch, "set_num_threads", lambda threads: None)
    check_side_by_side(data, tmp_path)
    assert started == [(2, "spawn")]


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check_side_by_side(data, tmp_path)


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(data: Path, tmp_path: Path,
                                                                            capsys: pytest.CaptureFixture) -> None:
    assert compare(data, tmp_path, "none", flags=("--seeds", "1"), epochs=1) == 0
    written = (tmp_path / "runs/none-s0/metrics.json").read_bytes()
    capsys.readouterr()
    assert compare(data, tmp_path, "trivial", "none", epochs=2) == 2
    captured = capsys.readouterr()
    assert_error(captured.err, "compare_policies.py", tmp_path / "runs/none-s0/metrics.json", "epochs 1 instead of 2",
                 "--work-dir")
    assert "ETA" not in captured.out and not (tmp_path / "runs/trivial-s0").exists()
    assert (tmp_path / "runs/none-s0/metrics.json").read_bytes() == written


def test_a_trial_that_breaks_off_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert compare(data, tmp_path, "none", flags=("--lr", "1e5")) == 2
    assert_error(capsys.readouterr().err, "compare_policies.py", "none, seed 0", "NaN")


def test_an_interrupt_says_how_to_go_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture) -> None:
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "one", interrupt)
    assert compare(data, tmp_path, "none") == 130
    assert_names(capsys.readouterr().err, "compare", "same command")


@pytest.mark.parametrize(("texts", "expected"), [
    (["none"], {"none": "none", "random": "random"}),
    (["random", "dada-imagenet"], {"random": "random", "dada-imagenet": "dada-imagenet"}),
    (["a=w/s{seed}/policy.json", "w/b {seed}.json", "w=1/c.json"],
     {"a": "w/s{seed}/policy.json", "b-": "w/b {seed}.json", "w": "1/c.json", "random": "random"}),
    (["./w=1/c.json"], {"c": "./w=1/c.json", "random": "random"})])
def test_what_the_rows_are_called(texts: list[str], expected: dict[str, str]) -> None:
    assert named_policies(texts) == expected


@pytest.mark.parametrize(("texts", "names"), [
    (["a/policy.json", "b/policy.json"], ("called policy", "NAME=b/policy.json")),
    (["random=x.json"], ("random", "reference")),
    (["a b=none"], ("a b=none", "letters")), (["a="], ("a=", "NAME=VALUE"))])
def test_names_that_do_not_do(texts: list[str], names: tuple[str, ...]) -> None:
    with refused("--policies", *names):
        named_policies(texts)


@pytest.mark.parametrize(("flags", "names"), [
    (["--policies", "nonesuch"], ("nonesuch", "none, random")),
    (["--policies", "x=s{seed}.json"], ("s0.json", "none, random")),
    (["--data", "{tmp}"], ("{tmp}", "train/<class>/")), (["--val-data", "{tmp}/missing"], ("{tmp}/missing",)),
    (["--batch-size", "31"], ("--batch-size", "31", "8 px", "2 to 30")),
    (["--image-size", "7"], ("--image-size", "7")), (["--model", "nonet"], ("'nonet'", "timm")),
    (["--work-dir", "{data}/train/class0/0.png"], ("{data}/train/class0/0.png", "another place"))])
def test_mistakes_get_one_sentence_before_any_image_is_decoded(flags: list[str], names: tuple[str, ...], data: Path,
                                                               tmp_path: Path, capsys: pytest.CaptureFixture,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compare_policies, "compare")
    arguments = ["--data", str(data), "--work-dir", str(tmp_path / "w"), "--policies", "none", "--model", "convnet",
                 "--epochs", "1", "--image-size", "16", "--batch-size", "8"]
    assert main([*arguments, *(flag.format(tmp=tmp_path, data=data, seed="{seed}") for flag in flags)]) == 2
    captured = capsys.readouterr()
    assert_error(captured.err, "compare_policies.py", *(name.format(tmp=tmp_path, data=data) for name in names))
    assert captured.out == ""


@pytest.mark.parametrize("flags", [["--seeds", "0"], ["--epochs", "0"], ["--lr", "-1"], ["--processes", "0"], []])
def test_numbers_out_of_range_and_missing_flags(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    needed = ["--data", "d", "--policies", "none", "--model", "m", "--epochs", "1"] if flags else ["--data", "d"]
    with pytest.raises(SystemExit) as stopped:
        main([*needed, *flags])
    assert stopped.value.code == 2 and "compare_policies.py: error: " in capsys.readouterr().err


def test_the_tool_shows_an_example_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = subprocess.run([sys.executable, ROOT / "tools/compare_policies.py", "--help"], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout and "--policies" in done.stdout and "{seed}" in done.stdout


def test_a_single_seed_has_no_interval() -> None:
    lines = table(summarise({"learned": [80.0], "random": [77.5]})).splitlines()
    assert [line.split() for line in lines[1:]] == [["learned", "1", "80.00", "-", "+2.50", "-"],
                                                    ["random", "1", "77.50", "-", "-", "-"]]


def test_broken_images_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "val"
    for label in range(3):
        (other / f"class{label}").mkdir(parents=True)
        Image.new("RGB", (30, 20), (80 * label,) * 3).save(other / f"class{label}" / "a.png")
    (other / "class0" / "b.png").write_bytes(b"no image")
    assert compare(data, tmp_path / "w", "none", flags=("--seeds", "1", "--val-data", str(other)), epochs=1) == 0
    assert "1 of 4 images in" in capsys.readouterr().out
    assert json.loads((tmp_path / "w/runs/none-s0/metrics.json").read_text())["identity"]["classes"] == 3
