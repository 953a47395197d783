"""A search finds something: a planted shift, and what hurts on images that nobody has changed. Small, whole commands."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dada_det.augment.named import resolve_policy
from dada_det.commands.search import main
from dada_det.engine.compare.trial import run_trial
from planted_images import write_folders
from tests.conftest import load_bench

pytest.importorskip("sklearn")  # its digits


def test_a_planted_operation_comes_first_of_all(tmp_path: Path) -> None:
    """599 digits train, 599 inverted ones validate; alignment alone, six epochs (chance is an AUC of 0.5)."""
    planted = load_bench("planted")
    task = planted.Task("Invert", seed=0, modes=("default",), epochs=6, folder=None, image_size=14, options=())
    train, val, _ = task.thirds()
    write_folders(tmp_path / "data", train=train, val=val)
    preferences, names = planted.searched(tmp_path, "default", task, False, "--no-trial")
    assert names[0] == "Invert" and planted.ranking_auc(preferences, "Invert") > 0.9, names


def test_on_handwritten_digits_what_hurts_is_told_from_what_does_not(tmp_path: Path) -> None:
    """100 grey digits, the whole search. Tested on 1,597 others: TrivialAugment costs 15 points in so short a training."""
    natural: ModuleType = load_bench("natural_problems")
    problem = natural.PROBLEMS["digits-few"]
    parts = natural.digits_few(Path(), problem.side, 0)
    first = [row for label in range(10) for row in (parts.train.labels_N == label).nonzero()[:10, 0].tolist()]
    train, recipe = parts.train.select(first), replace(problem.recipe, epochs=20)
    natural.write_folders(tmp_path / "data", train=train)
    torch.set_flush_denormal(True)  # a network that has fitted its images slows down by half otherwise
    assert main(["--config", "configs/debug/search.py", "--data", str(tmp_path / "data"), "--work-dir", str(tmp_path / "w"),
                 "--image-size", str(recipe.image_size), "--batch-size", str(recipe.batch_size), "--epochs",
                 str(recipe.epochs), "--cfg-options", *problem.search_options()]) == 0
    verdict = json.loads((tmp_path / "w/verdict.json").read_text())
    places = [row["name"] for row in verdict["candidates"]]
    assert places.index(verdict["winner"]) < places.index("trivial"), verdict
    found, trivial = (run_trial(train, parts.test, policy=resolve_policy(name), recipe=recipe, seed=0, quiet=True,
                                work_dir=tmp_path / str(number))["top1"]
                      for number, name in enumerate((str(tmp_path / "w/policy.json"), "trivial")))
    assert found > trivial + 5, (found, trivial)
