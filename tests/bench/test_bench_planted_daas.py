"""tools/bench/planted_daas.py: the space is whole, the images are what they should be, and the table's arithmetic."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dada_det.models.genotype import Edge
from tests.conftest import load_bench
from tests.messages import assert_names

SKIP, SEP = "skip_connect", "sep_conv_3x3"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    pytest.importorskip("sklearn")
    return load_bench("planted_daas")


def test_every_pair_of_the_space_once(bench: ModuleType) -> None:
    pairs = bench.pairs()
    assert len(pairs) == len(set(pairs)) == 12 * 3
    assert {policy for _, policy in pairs} == {"TranslateX+Rotate", "TranslateX+Invert", "Rotate+Invert"}
    assert bench.canonical((SKIP, SEP, SKIP, SEP)) == bench.canonical((SEP, SKIP, SKIP, SEP)) != \
        bench.canonical((SEP, SKIP, SEP, SKIP))
    genotype = bench.genotype_of((SEP, SKIP, SKIP, SEP))
    assert genotype.normal == ((Edge(SEP, 0), Edge(SKIP, 1)),) and genotype.reduction == ((Edge(SKIP, 0), Edge(SEP, 1)),)


def test_only_validation_and_unseen_images_are_transformed(bench: ModuleType) -> None:
    train, val, unseen = bench.images(0)
    assert len(train) == len(val) == len(unseen) == 599 and train.images_NCHW.shape[2:] == (9, 9)
    means = [part.images_NCHW.float().mean().item() for part in (train, val, unseen)]
    assert means[1] > means[0] + 30 and abs(means[1] - means[2]) < 10  # inverted: a digit's ground becomes bright
    assert all(torch.equal(a.images_NCHW, b.images_NCHW) for a, b in zip(bench.images(0), (train, val, unseen), strict=True))


def row(seed: int, architecture: tuple[str, ...], policy: str, accuracy: float, pair: bool) -> dict[str, Any]:
    return {"key": [seed, [list(architecture), policy] if pair else None], "seed": seed, "architecture": list(architecture),
            "policy": policy, "accuracy": accuracy}


def test_the_table_ranks_by_means_over_seeds_and_looks_the_found_pairs_up(bench: ModuleType) -> None:
    first, second = (SEP, SEP, SEP, SEP), (SKIP, SEP, SEP, SEP)
    rows = [row(0, first, "Rotate+Invert", 60, True), row(1, first, "Rotate+Invert", 64, True),
            row(0, second, "Rotate+Invert", 61, True), row(1, second, "Rotate+Invert", 55, True),
            row(0, first, "TranslateX+Rotate", 10, True), row(1, first, "TranslateX+Rotate", 14, True),
            row(5, first, "Rotate+Invert", 70, False), row(6, second, "Rotate+Invert", 50, False)]
    lines = bench.report(rows)
    assert lines[1].split() == ["1", "sep,sep", "sep,sep", "Rotate+Invert", "62.0", "0.0", "±", "0.0"]
    assert lines[2].split()[:6] == ["2", "skip,sep", "sep,sep", "Rotate+Invert", "58.0", "4.0"]
    assert lines[5].split() == ["5", "sep,sep", "sep,sep", "Rotate+Invert", "1", "0.0", "70.0"]
    assert lines[6].split() == ["6", "skip,sep", "sep,sep", "Rotate+Invert", "2", "4.0", "50.0"]
    assert_names(lines[7], "3 pairs", "1 of 2 searches", "mean rank 1.5 (chance 2.0)",
                 "mean regret 2.0 points (chance 18.0)", "best architecture in 1", "best policy in 2")


def test_runs_that_the_file_holds_are_not_run_again(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.json"
    monkeypatch.setattr(bench, "pairs", lambda: [((SEP,) * 4, "Rotate+Invert"), ((SKIP,) * 4, "Rotate+Invert")])
    monkeypatch.setattr(bench, "EPOCHS", 1)
    command = ["--seeds", "1", "--search-seeds", "0", "--json", str(table)]
    assert bench.main(command) == 0
    once = capsys.readouterr().out
    assert len(json.loads(table.read_text())["rows"]) == 2
    assert "2 rows" in once.splitlines()[-1] and str(table) in once.splitlines()[-1]
    monkeypatch.setattr(bench, "run", lambda task: pytest.fail(f"{task} was run again"))
    assert bench.main(command) == 0 and capsys.readouterr().out == once
    monkeypatch.setattr(bench, "EPOCHS", 2)
    assert bench.main(command) == 2
    assert f"{table} was not measured with" in capsys.readouterr().err


@pytest.mark.slow
def test_the_planted_policy_is_found_with_cells_that_convolve(bench: ModuleType) -> None:
    (found,) = bench.run(bench.Task(2))
    assert found["policy"] == "Rotate+Invert" and SEP in found["architecture"], found
