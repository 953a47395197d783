"""tools/bench/paper_ablation.py: each arm searches its own set in its own mode and trains on the full one, as saved."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dada_det.augment.policy import Policy
from dada_det.data.cifar import write_cifar10
from dada_det.errors import UserError
from measuring import run_search, side_by_side
from tests.conftest import load_bench
from tests.messages import assert_error


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    pytest.importorskip("sklearn")
    return load_bench("paper_ablation")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """100 training and 20 test images of noise, ten and two a class."""
    def noise(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 10

    return write_cifar10(tmp_path, noise(100), noise(20))


def test_each_arm_searches_its_set_and_trains_on_all(ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture) -> None:
    searches: list[tuple[int, str]] = []
    trained: list[tuple[int, str | None]] = []
    saved: list[str] = []
    run_trial: Callable[..., Any] = ablation.run_trial

    def search(flags: list[str]) -> None:
        run_search(flags)
        given = dict(itertools.pairwise(flags))
        policy = Policy.load(Path(given["--work-dir"], "policy.json"))
        estimator = next((flag for flag in flags if flag.startswith("search.estimator")), "")
        searches.append((len(list(Path(given["--data"], "train").rglob("*.png"))),
                         f"{policy.provenance['mode']} {estimator}".strip()))
        saved.append(policy.sha256)

    def trial(train: Any, test: Any, **options: Any) -> dict[str, float]:
        trained.append((len(train), getattr(options["policy"], "sha256", None)))
        return run_trial(train, test, **options)

    monkeypatch.setattr(ablation, "run_search", search)
    monkeypatch.setattr(ablation, "run_trial", trial)
    file = tmp_path / "ablation.json"
    assert ablation.main(["--seeds", "1", "--epochs", "1", "--search-epochs", "1", "--estimators", "gumbel",
                          "--json", str(file)]) == 0

    assert searches == [(120, "paper search.estimator=gumbel"), (120, "default"),
                        (300, "paper search.estimator=gumbel"), (300, "default")]
    assert [n for n, _ in trained] == [300] * 6 and trained[0][1] is None
    assert [policy for _, policy in trained[2:]] == saved and len(set(saved)) == 4
    found = json.loads(file.read_text())
    assert set(found) >= {"command", "commit", "hardware", "settings", "versions", "rows"}
    assert [(row["set"], row["estimator"]) for row in found["rows"]] == [
        ("-", "none"), ("-", "random"), ("reduced", "gumbel"), ("reduced", "default"), ("full", "gumbel"),
        ("full", "default")]
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"paper_ablation  done: 6 rows in {file}"
    assert "6/6  full    default, seed 0" in said.err and "ETA 0:00:00" in said.err

    lost = found["rows"].pop()
    file.write_text(json.dumps(found))
    again = ["--seeds", "1", "--epochs", "1", "--estimators", "gumbel", "--json", str(file), "--search-epochs"]
    assert ablation.main([*again, "1"]) == 0
    assert "1/1  full    default, seed 0" in capsys.readouterr().err  # the one that the file does not hold
    assert json.loads(file.read_text())["rows"][-1]["top1"] == lost["top1"]
    assert ablation.main([*again, "2"]) == 2
    assert "was not measured with" in capsys.readouterr().err


def test_cifar10_is_searched_from_its_own_files(ablation: ModuleType, cifar: Path) -> None:
    recipe = replace(ablation.CIFAR10.recipe, model="convnet", epochs=1, batch_size=20)
    setup = replace(ablation.CIFAR10, search_epochs=1, search_batch=10, reduced=40, recipe=recipe)
    arms = [ablation.Task(setup, cifar, searched, "relax", 0) for searched in ablation.SETS]
    train, test = ablation.full_set(cifar, 0)
    assert (len(train), len(test)) == (100, 20)
    for arm, per_class in zip(arms, (4, 10), strict=True):
        assert f"data.images_per_class={per_class}" in ablation.search_flags(arm, train, cifar)
    assert 0 <= ablation.run(arms[0])[0]["top1"] <= 100


def test_the_table_pairs_by_seed_whichever_run_ended_first(ablation: ModuleType) -> None:
    tasks = ablation.tasks_for(ablation.DIGITS, None, ["relax"], seeds=2)
    top1 = {"none": (80.0, 80.0), "random": (90.0, 92.0), "relax": (91.0, 95.0), "default": (92.0, 94.0)}
    rows = [{"set": task.searched, "estimator": task.estimator, "seed": task.seed, "top1": top1[task.estimator][task.seed]}
            for task in reversed(tasks)]
    lines = {line[:15].strip(): line[15:].split() for line in ablation.result(rows, tasks).splitlines()}
    assert list(lines)[1:] == ["none", "random", "reduced relax", "reduced default", "full    relax", "full    default"]
    # Student's t for one degree of freedom is 12.706; the differences are 1 and 3.
    assert lines["full    relax"] == ["2", "93.00", "±", "25.41", "+2.00", "±", "12.71"]
    assert lines["full    default"][-3:] == ["+2.00", "±", "0.00"]


def test_mistakes(ablation: ModuleType, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ablation.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no CIFAR-10" in capsys.readouterr().err
    assert ablation.main(["--data", str(cifar), "--seeds", "1"]) == 2
    assert_error(capsys.readouterr().err, "paper_ablation.py", "128", "100 training images")
    task = ablation.Task(ablation.CIFAR10, cifar, "full", "relax", 0)
    with pytest.raises(UserError, match="--batch-size 128 is more than the 50 images"):
        run_search(ablation.search_flags(task, ablation.full_set(cifar, 0)[0], tmp_path))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])  # a process imports for seconds
def test_tasks_side_by_side(processes: int) -> None:
    assert sorted(side_by_side(math.sqrt, [4.0, 9.0], processes)) == [(4.0, 2.0), (9.0, 3.0)]
    with pytest.raises(ValueError, match="math domain"):
        list(side_by_side(math.sqrt, [-1.0], processes))
