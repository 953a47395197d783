"""tools/bench/evaluation.py: its columns and its JSON; no time decides a test."""

import json

import pytest

from tests.conftest import load_bench


def test_a_table_and_its_json(shared, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    bench = load_bench("evaluation")
    argv = ["--fixture", str(shared / "data" / "cocoapi-fixture"), "--images", "30", "--objects", "200", "--detections", "8"]
    assert bench.main([*argv, "--json", str(tmp_path / "e.json")]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert [(row["what"], row["kind"]) for row in rows] == [(what, kind) for what in ("fixture", "synthetic")
                                                           for kind in ("bbox", "segm")]
    assert all(row["difference"] < 1e-9 and row["reference"] > 0 for row in rows)
    assert (rows[2]["images"], rows[2]["objects"], rows[2]["detections"]) == (30, 200, 240)
    assert capsys.readouterr().out.splitlines()[0].split() == list(bench.COLUMNS)


def test_without_the_faster_evaluator_it_says_so(monkeypatch, capsys):
    bench = load_bench("evaluation")
    monkeypatch.setattr(bench, "has_faster_evaluator", lambda: False)
    assert bench.main([]) == 2
    assert "faster-coco-eval is not installed" in capsys.readouterr().err
