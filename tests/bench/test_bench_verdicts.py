"""tools/bench/verdicts.py: stored trainings judged by each rule, and looked up in whole trainings."""

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dada_det.engine.search.trainings import StoredTensors
from tests.conftest import load_bench

IMAGES = 40


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_bench("verdicts")


def stored(bench: ModuleType, folder: Path, better: dict[str, tuple[float, float]]) -> None:
    """Trainings of all candidates on two folds: `better` says by how many nats in each, all images with the same noise."""
    proposal = bench.policy_of("Rotate@0.6", 0)
    folder.mkdir(parents=True)
    (folder.parent / "proposal.json").write_text(json.dumps(proposal.to_dict()))
    results, noise = StoredTensors(folder), torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
    results.put("groups", [torch.arange(IMAGES)] * 2)
    for number, name in enumerate(bench.KINDS):
        for fold in range(2):
            score = better.get(name, (0.0, 0.0))[fold] + noise + 0.01 * number * torch.linspace(-1, 1, IMAGES)
            policy = proposal if name == "aligned" else bench.policy_of(name, 0)
            results.put(bench.result_name(name, fold, policy), torch.stack([score, (score > 0).float()]).double())


def table(bench: ModuleType, path: Path, without: str = "") -> Path:
    """Whole trainings: candidate number k scores 60 + k."""
    rows = [{"problem": "gtsrb12", "arm": name, "seed": 0, "training_seed": 0, "score": 60.0 + number}
            for number, name in enumerate(bench.KINDS) if name != without]
    rows.append({"problem": "gtsrb12", "arm": "learned", "seed": 0, "training_seed": 0, "score": 0.0})
    path.write_text(json.dumps({"rows": rows}))
    return path


def test_each_rule_hands_over_what_its_trainings_say(bench: ModuleType, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "gtsrb12-s0/search-learned/trainings"
    stored(bench, folder, {"tone": (2.0, 2.0), "geometry": (3.0, -3.0), "rand": (1.0, 1.0), "one-op": (math.nan, 0.0)})
    StoredTensors(folder).put("aligned_fold0_0123456789ab", torch.full((2, IMAGES), 9.0))  # of another proposal
    assert bench.main([str(table(bench, tmp_path / "rows.json")), "--work-dir", str(tmp_path), "--json",
                       str(tmp_path / "verdicts.json")]) == 0
    scores = {row["rule"]: row["score"] for row in json.loads((tmp_path / "verdicts.json").read_text())["rows"]}
    place = {name: 60.0 + number for number, name in enumerate(bench.KINDS)}
    assert scores["as shipped"] == scores["the largest mean: no shrinkage, no margin"] == place["tone"]
    assert scores["fixed policies alone"] == place["rand"]
    assert scores["no families: alignment's proposal and the fixed policies"] == place["rand"]
    assert scores["the first fold alone"] == place["geometry"]
    assert scores["no verdict: what alignment proposed"] == place["aligned"]
    assert scores["the best candidate, known afterwards"] == max(place.values())
    said = capsys.readouterr().out
    assert f"verdicts  done: {len(bench.RULES) + 2} rows" in said and "(n = 1)" in said


def test_a_search_whose_candidates_have_no_whole_trainings_does_not_count(bench: ModuleType, tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture) -> None:
    stored(bench, tmp_path / "gtsrb12-s0/search-learned/trainings", {})
    assert bench.main([str(table(bench, tmp_path / "rows.json", without="tone")), "--work-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "rows.json" in said and str(tmp_path) in said and "natural.py" in said
