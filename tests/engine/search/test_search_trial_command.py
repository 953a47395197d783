"""The search command with its trial: what it writes and says, cut short and resumed, on two processes, with a target."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dada_det.augment.named import resolve
from dada_det.commands.search import NEEDED, main
from dada_det.engine.search import trial
from dada_det.engine.search.trainings import ImageTrainings
from tests.conftest import write_noise
from tests.messages import assert_names

FILES = ("policy.json", "verdict.json", "effects.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_noise(root / "train", classes=3, images=8, side=24, spread=40)
    write_noise(root / "target", classes=3, images=6, side=24, spread=20, seed=1)
    return root


def flags(data: Path, work_dir: Path, *more: str) -> list[str]:
    return ["--config", "configs/debug/search.py", "--data", str(data), "--work-dir", str(work_dir), "--image-size", "16",
            "--batch-size", "4", "--epochs", "2", *more]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(flags(data, folder)) == 0
    return folder


def same(left: Path, right: Path, names: Sequence[str] = FILES) -> bool:
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def test_the_verdict_is_written_and_said(whole: Path, data: Path, tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(data, tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    names = [row["name"] for row in verdict["candidates"]]
    assert set(names) == {*ImageTrainings.fixed, "aligned", "tone", "geometry"} and verdict["winner"] in names
    assert verdict["validation_images"] == 24 and verdict["cost"] > 1
    assert any(line.startswith(verdict["winner"]) and "handed over" in line for line in lines)
    assert lines[-2].startswith(f"search  {verdict['sentence']}; {verdict['trainings']} trainings")
    assert lines[-1].startswith(f"search  done: `{verdict['winner']}` in {tmp_path}/policy.json")
    _, mirror = resolve(str(tmp_path / "policy.json"))
    assert mirror is True  # as the config has it
    provenance = json.loads((tmp_path / "policy.json").read_text())["provenance"]
    assert provenance["winner"] == verdict["winner"] and provenance["method"] == "dada" and provenance["epoch"] >= 1
    assert len(json.loads((tmp_path / "proposal.json").read_text())["sub_policies"]) == 25
    assert same(whole, tmp_path)  # equal searches give equal files


@pytest.mark.parametrize("moment", [1, 14])
def test_a_search_that_is_cut_short_in_its_trial_goes_on(moment: int, whole: Path, data: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the fixed policies, and in what was found."""
    trained, plain = [], trial.train

    def interrupted(*args: Any, **options: Any) -> None:
        trained.append(1)
        if len(trained) == moment + 1:
            raise KeyboardInterrupt
        plain(*args, **options)

    monkeypatch.setattr(trial, "train", interrupted)
    assert main(flags(data, tmp_path)) == 130
    assert not (tmp_path / "policy.json").exists()  # nothing is handed over unseen
    assert main(flags(data, tmp_path, "--resume")) == 0
    assert same(whole, tmp_path)
    assert len(trained) == json.loads((tmp_path / "verdict.json").read_text())["trainings"] + 1


def test_a_new_search_in_an_old_folder_starts_its_trainings_afresh(whole: Path, data: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path / "w")
    (tmp_path / "w/trainings/mine.txt").write_text("a user's own")
    counted, plain = [], trial.train
    monkeypatch.setattr(trial, "train", lambda *args, **options: (counted.append(1), plain(*args, **options)))
    assert main(flags(data, tmp_path / "w", "--resume")) == 0 and not counted
    assert main(flags(data, tmp_path / "w", "--seed", "1")) == 0 and len(counted) == 18
    assert not same(whole, tmp_path / "w", ["effects.json"]) and (tmp_path / "w/trainings/mine.txt").exists()


def test_what_an_earlier_search_handed_over_is_gone_while_a_new_one_runs(whole: Path, data: Path, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    shutil.copytree(whole, tmp_path / "w")
    assert all((tmp_path / "w" / name).exists() for name in FILES)
    monkeypatch.setattr(trial, "train", interrupted)
    assert main(flags(data, tmp_path / "w", "--seed", "1")) == 130
    assert not any((tmp_path / "w" / name).exists() for name in FILES)


def test_two_processes_share_the_trainings_and_give_the_policy_of_one(data: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, processes in (("one", "1"), ("two", "2")):
        # Without alignment's own steps the two differ in nothing that is averaged over processes.
        assert main(flags(data, tmp_path / name, "--gpus", processes, "--cfg-options", "policy_optimizer.lr=0.0",
                          "weights_optimizer.lr=0.05")) == 0
    one, two = (json.loads((tmp_path / name / "verdict.json").read_text()) for name in ("one", "two"))
    assert one["winner"] == two["winner"]
    for ours, theirs in zip(one["candidates"], two["candidates"], strict=True):
        assert ours["name"] == theirs["name"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-3)


def test_against_a_target_whose_images_train_or_do_not(data: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    target = ("--val-data", str(data / "target"))
    assert main(flags(data, tmp_path / "val", *target)) == 0
    assert main(flags(data, tmp_path / "both", *target, "--target-trains")) == 0
    val, both = (json.loads((tmp_path / name / "verdict.json").read_text()) for name in ("val", "both"))
    assert (val["validation_images"], both["validation_images"]) == (18, 9)  # half of them train
    assert val["trainings"] == both["trainings"] == 9
    assert both["cost"] == pytest.approx(val["cost"], 0.3)
    capsys.readouterr()
    assert main(flags(data, tmp_path / "w", "--target-trains")) == 2
    assert "--target-trains" in (error := capsys.readouterr().err) and "--val-data" in error


def test_without_a_trial_it_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(data, tmp_path, "--no-trial")) == 0
    assert_names(capsys.readouterr().out, "no trial", "--no-trial")
    assert (tmp_path / "policy.json").exists() and not (tmp_path / "verdict.json").exists()


def test_a_resumed_search_may_leave_its_trial_out_or_catch_up_on_it(whole: Path, data: Path, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "w")
    assert main(flags(data, tmp_path / "w", "--resume", "--no-trial")) == 0
    assert not any((tmp_path / "w" / name).exists() for name in ("verdict.json", "effects.json", "proposal.json"))
    proposed, alone = (json.loads((folder / name).read_text())
                       for folder, name in ((whole, "proposal.json"), (tmp_path / "w", "policy.json")))
    assert proposed == alone
    assert "<h2>Verdict</h2>" not in (tmp_path / "w/search.html").read_text()
    assert main(flags(data, tmp_path / "w", "--resume")) == 0
    assert same(whole, tmp_path / "w", [*FILES, "proposal.json"])


def test_a_config_of_the_needed_entries_alone_is_searched(data: Path, tmp_path: Path) -> None:
    values = {"kind": "imagenet", "data": {"root": str(data)}, "classifier": {"name": "convnet"}, "search": {},
              "weights_optimizer": {"lr": 0.1}, "policy_optimizer": {"betas": (0.5, 0.999)}, "image_size": 16,
              "batch_size": 4, "base_batch_size": 4, "epochs": 2, "seed": 0, "precision": "float32"}
    assert values.keys() == {*NEEDED, "classifier"}
    config = tmp_path / "config.py"
    config.write_text("\n".join(f"{name} = {value!r}" for name, value in values.items()))
    assert main(["--config", str(config), "--work-dir", str(tmp_path / "w"), "--no-trial"]) == 0
    assert (tmp_path / "w/policy.json").exists()
