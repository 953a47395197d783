"""tools/bench/planted_detection.py: its table, that it goes on row by row, its sentences, and a detector trial in memory."""

import json
import math

import pytest
import torch
from mmengine.config import Config

from dada_det.engine.search.detection import build_detector
from detector_trial import average_precision, train_detector
from planted_coco import detector_oracle, write_coco
from tests.conftest import load_bench
from tests.engine.search.test_search_detection import CONFIG, squares


@pytest.fixture(scope="module")
def bench():
    return load_bench("planted_detection")


def row(seed, policy, ap, **more):
    return {"operation": "Invert", "seed": seed, "policy": policy, "AP": ap, "AP50": 2 * ap, "AP75": 0.0, **more}


def test_the_table_has_means_intervals_and_paired_differences(bench):
    rows = [row(seed, policy, base + seed) for seed in range(3)
            for policy, base in (("none", 1.0), ("random", 20.0), ("oracle", 31.0))]
    rows += [row(seed, "found", 28.0 + 2 * seed, rank=1 + seed % 2, first="Invert") for seed in range(3)]
    lines = bench.summary(rows)
    half = 4.302653 / math.sqrt(3)  # Student's t for two degrees of freedom
    assert f"Invert         none     AP   2.0 ± {half:.1f}  (n = 3)" in lines
    assert f"Invert         found minus none    +28.0 ± {half:.1f}  (n = 3 pairs)" in lines
    assert f"Invert         found minus oracle   -2.0 ± {half:.1f}  (n = 3 pairs)" in lines
    assert lines[-1] == "Invert         first in 2 of 3 searches, ranks [1, 2, 1]"


def test_another_tables_file_and_missing_data_are_refused(bench, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"settings": {"epochs": 99}, "rows": []}))
    assert bench.main(["--data", str(tmp_path), "--json", str(path)]) == 2
    assert "was not measured with" in capsys.readouterr().err
    assert bench.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "the data folder" in capsys.readouterr().err


def test_equal_seeds_give_equal_detectors_and_other_policies_others():
    train, results = squares(8, 0), []
    for policy in (None, None, detector_oracle("Invert")):
        torch.manual_seed(3)
        detector = build_detector(Config.fromfile(CONFIG).model, classes=1)
        train_detector(detector, train, policy=policy, epochs=1, batch_size=4, lr=1e-3, weight_decay=1e-4, seed=3)
        results.append(torch.cat([parameter.detach().flatten() for parameter in detector.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_average_precision_is_that_of_the_boxes_that_are_there():
    images = squares(3, 5)

    class Perfect(torch.nn.Module):
        """Detects what is there, and one box beside it with a higher score."""

        data_preprocessor = build_detector(Config.fromfile(CONFIG).model, classes=1).data_preprocessor

        def predict(self, inputs, samples, rescale):
            for sample in samples:
                boxes = torch.cat([sample.gt_instances.bboxes, torch.tensor([[50.0, 50, 60, 60]])])
                sample.pred_instances = type(sample.gt_instances)(
                    bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long), scores=torch.tensor([0.5, 0.4, 0.9]))
            return samples

    figures = average_precision(Perfect(), images)
    # Of nine detections, best first, the three first are wrong: precision at full recall is 6/9, and nowhere more.
    assert figures == {name: pytest.approx(100 * 6 / 9, abs=0.01) for name in ("AP", "AP50", "AP75")}


@pytest.mark.slow
def test_the_bench_runs_and_goes_on_row_by_row(bench, tmp_path, capsys):
    data = write_coco(tmp_path / "data", train=squares(18, 0), val=squares(18, 1))
    flags = ["--data", str(data), "--seeds", "1", "--image-size", "32", "--epochs", "1", "--search-epochs", "2", "--json",
             str(tmp_path / "rows.json"), "--operations", "Rotate"]
    assert bench.main(flags) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [entry["policy"] for entry in content["rows"]] == list(bench.POLICIES)
    assert "rank" in content["rows"][-1]
    content["rows"] = content["rows"][:2] + content["rows"][3:]
    (tmp_path / "rows.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert bench.main(flags) == 0
    out, progress = capsys.readouterr()
    assert "planted  1/1  Rotate seed 0 one-op" in progress
    assert out.strip().splitlines()[-1] == f"planted  done: 5 rows in {tmp_path / 'rows.json'}"
