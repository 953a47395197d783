"""tools/compare_backbones.py: files, nested fractions, pairs of seeds, resumption, and every promised sentence."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from dada_det.commands import common, compare_backbones
from dada_det.commands.compare_backbones import main
from dada_det.data.checks import find_coco
from dada_det.engine.runtime.checkpoint import how_to_go_on
from dada_det.errors import UserError
from tests.messages import assert_error, assert_names

ROOT = Path(__file__).resolve().parents[2]
RETINANET, MASK_RCNN = (str(ROOT / f"configs/debug/{name}.py") for name in ("retinanet", "mask_rcnn"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train/, val/: 12 and 8 images of 64 px, each with two bright rectangles of one of two classes."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in {"train": 12, "val": 8}.items():
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            for left in (2, 34):
                w, h = (int(side) for side in random.integers(12, 28, 2))
                pixels[4:4 + h, left:left + w] += 150
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1 + number % 2,
                                    "iscrowd": 0, "bbox": [left, 4, w, h], "area": w * h, "segmentation": [
                                        [left, 4, left + w, 4, left + w, 4 + h, left, 4 + h]]})
            Image.fromarray(pixels).save(root / split / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 64})
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "crystal"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def rle(entry):
    mask = masks.merge(masks.frPyObjects(entry["segmentation"], 64, 64))
    return {"size": [64, 64], "counts": mask["counts"].decode()}


@pytest.fixture
def trained(monkeypatch):
    """Training and validation played: detections as good as the seed and the work_dir's name say; a list of the runs."""
    from dada_det.engine.compare import backbone_trials
    from dada_det.engine.evaluate.results_stream import write_array

    runs = []

    def run_training(config, layout, summary, *, resume, amp, auto_scale_lr, launcher):
        folder = Path(config.work_dir)
        runs.append((folder.name, resume, config.randomness.seed, summary.images))
        truth = json.loads(layout.part("val")[0].read_text())["annotations"]
        random = np.random.default_rng(config.randomness.seed)
        noise = 1 if "-good-" in folder.name else 5
        found = [{"image_id": entry["image_id"], "category_id": entry["category_id"], "score": random.random(),
                  "bbox": random.normal(entry["bbox"], noise).clip(1).tolist()} for entry in truth]
        write_array(config.val_evaluator[-1].outfile_prefix + ".bbox.json", found)
        if folder.name.startswith("mask_rcnn"):
            masked = [{**entry, "segmentation": rle(truth[place])} for place, entry in enumerate(found)]
            write_array(config.val_evaluator[-1].outfile_prefix + ".segm.json", masked)
        (folder / "epoch_1.pth").touch()

    monkeypatch.setattr(backbone_trials, "run_training", run_training)
    return runs


def compare(backbone, data, work_dir, *flags, detectors=(RETINANET,)):
    return main(["--backbones", f"good={backbone}", f"plain={backbone}", "--detectors", *detectors, "--data", str(data),
                 "--work-dir", str(work_dir), "--epochs", "1", "--resamples", "20", "--seeds", "2", *flags])


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_table_csv_and_plot_of_both_kinds(backbone, data, tmp_path, trained, capsys):
    assert compare(backbone, data, tmp_path, detectors=(RETINANET, MASK_RCNN)) == 0
    assert [run[0] for run in trained] == [f"{detector}-{name}-100-s{seed}" for seed in range(2)
                                           for detector in ("retinanet", "mask_rcnn") for name in ("good", "plain")]
    assert [run[2] for run in trained] == [0] * 4 + [1] * 4
    out = capsys.readouterr().out
    assert out.count("ETA") == 8
    for heading in ("retinanet, box AP, 100 % of the images", "mask_rcnn, box AP, 100", "mask_rcnn, mask AP, 100"):
        assert heading in out
    last = f"compare  done: comparison.csv, comparison.png, runs.csv (12 rows) and runs/ in {tmp_path}"
    assert out.splitlines()[-1] == last

    runs = rows(tmp_path / "runs.csv")
    assert [(run["detector"], run["kind"], run["backbone"], run["seed"]) for run in runs[:4]] == [
        ("retinanet", "bbox", name, seed) for name in ("good", "plain") for seed in "01"]
    assert {(run["val_images"], run["APl"]) for run in runs} == {("8", "nan")} and all(run["hardware"] for run in runs)
    of = {(row["detector"], row["kind"], row["backbone"], row["figure"]): row for row in rows(tmp_path / "comparison.csv")}
    ours, theirs = (of["retinanet", "bbox", name, "AP"] for name in ("good", "plain"))
    assert float(ours["mean"]) == pytest.approx(np.mean([float(run["AP"]) for run in runs[:2]]), abs=1e-3)
    assert float(ours["difference"]) == pytest.approx(float(ours["mean"]) - float(theirs["mean"]))
    assert 0 < float(ours["difference_low"]) < float(ours["difference_high"]) and theirs["difference"] == "nan"
    assert {key[3] for key in of} >= {"AP", "APs", "class:cell", "class:crystal"}
    with Image.open(tmp_path / "comparison.png") as picture:
        assert picture.format == "PNG"


def test_fractions_are_nested_paired_and_drawn_by_the_seed(backbone, data, tmp_path, trained):
    assert compare(backbone, data, tmp_path, "--fraction", "0.25", "0.5", "1") == 0
    images = {}
    for seed in range(2):
        for percent, count in (("25", 3), ("50", 6)):
            part = json.loads((tmp_path / "data" / f"instances_train-{percent}-s{seed}.json").read_text())
            images[seed, percent] = {image["id"] for image in part["images"]}
            assert len(images[seed, percent]) == count
            assert {entry["image_id"] for entry in part["annotations"]} == images[seed, percent]
        assert images[seed, "25"] < images[seed, "50"]
    assert images[0, "50"] != images[1, "50"]
    assert {(name, count) for name, _, _, count in trained if "s0" in name} == {
        (f"retinanet-{name}-{percent}-s0", count) for name in ("good", "plain")
        for percent, count in (("25", 3), ("50", 6), ("100", 12))}


def test_runs_that_are_done_are_skipped_and_one_cut_short_goes_on(backbone, data, tmp_path, trained, capsys):
    assert compare(backbone, data, tmp_path, "--seeds", "1") == 0
    assert "are done already" not in capsys.readouterr().out
    folder = tmp_path / "runs" / "retinanet-good-100-s0"
    assert not list(folder.glob("*.pth")) and not list(folder.glob("results.*"))
    (folder / "result.json").unlink()
    torch.save({"state_dict": {}}, folder / "epoch_1.pth")
    before = [(tmp_path / name).read_bytes() for name in ("runs.csv", "comparison.csv", "comparison.png")]
    assert compare(backbone, data, tmp_path, "--seeds", "1") == 0
    assert "1 of 2 runs are done already and skipped" in capsys.readouterr().out
    assert [(name, resume) for name, resume, *_ in trained[2:]] == [("retinanet-good-100-s0", "auto")]
    assert [(tmp_path / name).read_bytes() for name in ("runs.csv", "comparison.csv", "comparison.png")] == before
    assert compare(backbone, data, tmp_path) == 0 and len(trained) == 5


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(backbone, data, tmp_path, trained, monkeypatch,
                                                                           capsys):
    assert compare(backbone, data, tmp_path, "--seeds", "1") == 0
    capsys.readouterr()
    assert compare(backbone, data, tmp_path, "--seeds", "1", "--image-size", "48") == 2
    assert_error(capsys.readouterr().err, "compare_backbones.py", tmp_path / "runs/retinanet-good-100-s0/identity.json",
                 "another run", re.compile(r"\(config\."))
    monkeypatch.setattr("dada_det.engine.compare.backbone_trials.started_processes", lambda: 8)
    assert compare(backbone, data, tmp_path, "--seeds", "2") == 2
    assert_error(capsys.readouterr().err, "compare_backbones.py", "identity.json", "batch_size 4 instead of 32")
    assert len(trained) == 2


def test_a_run_that_breaks_off_is_named_and_an_interrupt_says_how_to_go_on(backbone, data, tmp_path, monkeypatch, capsys):
    from dada_det.engine.compare import backbone_trials

    def run_training(*arguments, **options):
        raise UserError(f"the loss became NaN; {how_to_go_on()}")

    monkeypatch.setattr(backbone_trials, "run_training", run_training)
    assert compare(backbone, data, tmp_path) == 2
    assert_names(capsys.readouterr().err, "retinanet, good, 100 %", "seed 0", "became NaN; go on with the same command")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(backbone_trials, "run_training", interrupt)
    assert compare(backbone, data, tmp_path) == 130
    assert_names(capsys.readouterr().err, "compare", "same command")


def test_seed_in_a_name_is_the_seed_and_short_names_are_the_project_s_configs(backbone, data, tmp_path):
    for seed in range(2):
        (tmp_path / f"{seed}.pth").touch()
    args = compare_backbones.Namespace(seeds=2, fraction=[1.0, 0.5, 1.0], epochs=3, image_size=96, cfg_options=[])
    trials = compare_backbones.make_trials(args, {"a": f"{tmp_path}/{{seed}}.pth", "b": str(backbone)}, {
        "faster_rcnn": "faster_rcnn"}, find_coco(data), tmp_path)
    assert [(trial.backbone, trial.fraction, trial.seed) for trial in trials] == [
        (name, fraction, seed) for seed in range(2) for fraction in (1.0, 0.5) for name in "ab"]
    config = trials[4].config
    assert config.model.backbone.init_cfg.checkpoint == f"{tmp_path}/1.pth" and config.randomness.seed == 1
    assert config.train_cfg.max_epochs == 3 and config.train_dataloader.dataset.pipeline[2].scale == (96, 96)
    assert config.param_scheduler[1].milestones == [2, 3] and config.param_scheduler[0].end == 1  # a tenth of 18 steps


@pytest.mark.parametrize(("texts", "expected"), [
    (["a=w/s{seed}/r50.pth", "w/b {seed}.pth"], {"a": "w/s{seed}/r50.pth", "b-": "w/b {seed}.pth"}),
    (["./w=1/c.pth"], {"c": "./w=1/c.pth"})])
def test_what_the_rows_are_called(texts, expected):
    assert common.named(texts, "--backbones") == expected


@pytest.mark.parametrize(("flags", "names"), [
    (["--backbones", "a={r50}"], ("--backbones", "two")),
    (["--backbones", "a={r50}", "a={r50}"], ("--backbones", "called a", "NAME={r50}")),
    (["--backbones", "a b={r50}", "c={r50}"], ("a b={r50}", "letters")),
    (["--backbones", "a=no.pth", "b={r50}"], ("--backbones", "no.pth")),
    (["--backbones", "a={tmp}/s{{seed}}.pth", "b={r50}"], ("--backbones", "{tmp}/s0.pth")),
    (["--detectors", "no.py"], ("no.py",)),
    (["--detectors", "{root}/configs/debug/search.py"], ("{root}/configs/debug/search.py", "detector")),
    (["--data", "nowhere"], ("--data", "nowhere")), (["--data", "{tmp}"], ("{tmp}", "train part")),
    (["--image-size", "16"], ("--image-size", "16")),
    (["--work-dir", "{data}/train/1.jpg"], ("{data}/train/1.jpg", "another place"))])
def test_mistakes_get_one_sentence_before_anything_runs(flags, names, backbone, data, tmp_path, capsys, trained):
    flags, names = ([text.format(r50=backbone, tmp=tmp_path, data=data, root=ROOT) for text in texts]
                    for texts in (flags, names))
    assert compare(backbone, data, tmp_path / "w", *flags) == 2
    captured = capsys.readouterr()
    assert_error(captured.err, "compare_backbones.py", *names)
    assert not trained


@pytest.mark.parametrize("change", [lambda categories: categories[::-1], lambda categories: categories[:1],
                                    lambda categories: [{**entry, "id": entry["id"] + 1} for entry in categories]])
def test_parts_that_list_different_categories_are_refused(change, backbone, data, tmp_path, capsys, trained):
    root = shutil.copytree(data, tmp_path / "data")
    file = root / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["categories"] = change(content["categories"])
    known = {entry["id"] for entry in content["categories"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in known]
    file.write_text(json.dumps(content))
    assert compare(backbone, root, tmp_path / "w") == 2
    assert_error(capsys.readouterr().err, "compare_backbones.py", root / "annotations/instances_train.json", file,
                 "different categories", "same order")
    assert not trained


@pytest.mark.parametrize("flags", [["--seeds", "0"], ["--fraction", "0"], ["--fraction", "1.5"], ["--epochs", "0"], []])
def test_numbers_out_of_range_and_missing_flags(flags, capsys):
    needed = ["--data", "d", "--backbones", "a", "b", "--detectors", "retinanet"] if flags else ["--data", "d"]
    with pytest.raises(SystemExit) as stopped:
        main([*needed, *flags])
    assert stopped.value.code == 2 and "compare_backbones.py: error: " in capsys.readouterr().err


def test_the_tool_shows_an_example_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = subprocess.run([sys.executable, ROOT / "tools/compare_backbones.py", "--help"], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout and "--fraction" in done.stdout and "{seed}" in done.stdout


TINY = ["--image-size", "64", "--cfg-options", "train_dataloader.batch_size=2", "model.test_cfg.score_thr=0.0"]


@pytest.mark.slow
def test_two_backbones_one_detector_two_seeds_for_real(backbone, data, tmp_path, capsys, monkeypatch):
    from dada_det.engine.compare import backbone_trials

    def cut_short(folder, prefix, *arguments):
        Path(f"{prefix}.bbox.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # as if the validation after the last checkpoint had not ended
        patch.setattr(backbone_trials, "keep_result", cut_short)
        assert compare(backbone, data, tmp_path, *TINY) == 130
    assert {path.parent.name for path in tmp_path.rglob("*.pth")} == {"retinanet-good-100-s0"}
    assert compare(backbone, data, tmp_path, *TINY) == 0
    assert not list(tmp_path.rglob("*.pth"))
    assert "compare  done" in capsys.readouterr().out
    runs = rows(tmp_path / "runs.csv")
    # The same file under two names, so that nothing but the weights could differ, and they do not.
    assert [{name: run[name] for name in ("AP", "AP50", "APs")} for run in runs[:2]] == [
        {name: run[name] for name in ("AP", "AP50", "APs")} for run in runs[2:]]
    (row,) = (row for row in rows(tmp_path / "comparison.csv") if (row["backbone"], row["figure"]) == ("good", "AP"))
    assert float(row["difference"]) == float(row["difference_low"]) == float(row["difference_high"]) == 0


@pytest.mark.slow
def test_two_gloo_processes_compare_too(backbone, data, tmp_path):
    command = [sys.executable, ROOT / "tools/compare_backbones.py", "--backbones", f"good={backbone}", f"plain={backbone}",
               "--detectors", RETINANET, "--data", data, "--work-dir", tmp_path, "--epochs", "1", "--seeds", "1",
               "--gpus", "2", "--resamples", "10", *TINY]
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compare  run ") == 2 and done.stdout.count("compare  done") == 1
    assert len(rows(tmp_path / "runs.csv")) == 2
