"""tools/bench/train_det.py: MMDetection's own tool and ours give the same losses; no time decides a test."""

import json
import math

import pytest

from dada_det.data.synthetic import DemoSize, write_demo
from tests.conftest import load_bench


def test_what_counts_as_differing():
    bench = load_bench("train_det")
    lines = [{"loss": 0.1, "time": 3.0, "step": 1}, {"loss": math.nan, "step": 2}, {"coco/bbox_mAP": 0.5, "step": 2}]
    scalars = bench.compared(lines)
    assert len(scalars) == 6 and (0, "time") not in scalars
    assert bench.differing([scalars, bench.compared([{**lines[0], "time": 9.0}, *lines[1:]])]) == 0
    assert bench.differing([scalars, bench.compared([{**lines[0], "loss": 0.1 + 1e-16}, *lines[1:]])]) == 1
    assert bench.differing([scalars, bench.compared(lines[:2])]) == 2


def test_the_ratio_is_ours_over_mmdetections_with_its_interval():
    bench = load_bench("train_det")
    rounds = [{"ours": {"step": ours}, "mmdet": {"step": 2.0}} for ours in (1.0, 4.0)]
    mean, low, high = bench.ratio(rounds, "step")
    assert mean == pytest.approx(1.0) and low < 0.01 and high > 100 and low * high == pytest.approx(1.0)
    assert bench.ratio(rounds[1:], "step") == [pytest.approx(2.0)]
    row = {"config": "x", "steps": 3, "scalars": 30, "differing": 0, "step": [1.0, 0.5, 2.0], "process": [1.01, 1.0, 1.02],
           "cpu": [1.0, 0.99, 1.01], "seconds": [{}]}
    assert bench.line_of(row).split() == ["x", "3", "30", "0", "1.000", "(0.500", "to", "2.000)", "1.010", "(1.000", "to",
                                          "1.020)", "1.000", "(0.990", "to", "1.010)"]


@pytest.mark.slow
def test_mmdetections_own_tool_and_ours_log_the_same_losses(tmp_path, capsys):
    bench = load_bench("train_det")
    write_demo(tmp_path / "demo", size=DemoSize(classes=1, train_per_class=1, val_per_class=1, det_train=12, det_val=3,
                                                det_test=1))
    argv = ["--data", str(tmp_path / "demo" / "coco"), "--image-size", "64", "--rounds", "1"]
    argv += ["--configs", "configs/retinanet_r50_dada.py", "--json", str(tmp_path / "r.json")]
    assert bench.main(argv) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["config"], row["steps"], row["differing"]) for row in rows] == [("retinanet_r50_dada", 6, 0)]
    assert all(row["scalars"] > 3 * row["steps"] and row["step"][0] > 0 for row in rows)
    header, row, last = capsys.readouterr().out.splitlines()[-3:]
    assert header.split() == list(bench.COLUMNS) and row.split()[:2] == ["retinanet_r50_dada", "6"]
    assert last == f"wrote {tmp_path / 'r.json'}"
