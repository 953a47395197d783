"""Every stage, killed at any moment, however often, and resumed ends as if nothing had happened, bit for bit on the CPU.

What is special to the search is in test_search_faults.py.
"""

import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.commands.common import ROOT
from dada_det.engine.runtime.checkpoint import check_checkpoint, find_checkpoint
from dada_det.engine.runtime.hooks import ProgressLine
from tests.messages import assert_names

SIDE = 48  # px

# Debug detectors that are quick: the backbone stays as it is, small images, a checkpoint every other step.
QUICK = """_base_ = "{root}/configs/debug/{detector}.py"
size = ({side}, {side})
pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask={masks}),
            dict(type="Resize", scale=size, keep_ratio=True), dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
model = dict(backbone=dict(frozen_stages=4))
train_dataloader = dict(batch_size=2, num_workers={workers}, dataset=dict(pipeline=pipeline))
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=1e-3, momentum=0.9))
"""
# Epochs of four batches, the learning rate by epoch and, as MMDetection does it, batches of like aspect ratio.
BY_EPOCH = """
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
train_dataloader.update(sampler=dict(type="DefaultSampler", shuffle=True),
                        batch_sampler=dict(type="AspectRatioBatchSampler"))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=4),
                   dict(type="MultiStepLR", by_epoch=True, begin=0, end=2, milestones=[1], gamma=0.1)]
default_hooks = dict(checkpoint=dict(_delete_=True, type="CheckpointHook", interval=1, steps=2))
log_processor = dict(by_epoch=True)
"""
BY_STEP = """
train_cfg = dict(max_iters=9, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,val}/class<k>/*.png: noise around a colour each."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(60 + 70 * label, 40, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and two validation images, upright and lying, with a bright rectangle each."""
    root, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, count in {"train2017": 8, "val2017": 2}.items():
        (root / split).mkdir()
        infos, annotations = [], []
        for number in range(1, count + 1):
            width, height = (SIDE, 40) if number % 3 else (40, SIDE)
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            x, y = (int(v) for v in random.integers(2, 12, 2))
            pixels[y:y + 24, x:x + 20] += 150
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            infos.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
            annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [x, y, 20, 24],
                                "area": 480, "segmentation": [[x, y, x + 20, y, x + 20, y + 24, x, y + 24]]})
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(
            {"images": infos, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}))
    return root


def search(data: Path, work_dir: Path) -> list[str]:
    """Four epochs of three steps."""
    return ["--config", "configs/debug/search.py", "--data", str(data), "--work-dir", str(work_dir), "--resume",
            "--image-size", "16", "--batch-size", "4", "--epochs", "4", "--no-trial"]


def pretraining(data: Path, work_dir: Path) -> list[str]:
    """Three epochs of three steps, a checkpoint every two; convnet has BatchNorm, and an average is kept."""
    return ["--policy", "dada-imagenet", "--data", str(data), "--work-dir", str(work_dir), "--image-size", "16",
            "--batch-size", "8", "--epochs", "3", "--resume", "--cfg-options", "classifier.name=convnet", "workers=0",
            "ema.momentum=0.1", "ema.update_buffers=True", "checkpoint.steps=2"]


def detection(config: Path, loop: str, workers: int, data: Path, backbone: Path, work_dir: Path) -> list[str]:
    config.write_text(QUICK.format(root=ROOT, detector=config.stem, side=SIDE, masks=config.stem == "mask_rcnn",
                                   workers=workers) + loop)
    return [str(config), "--backbone", str(backbone), "--data", str(data), "--work-dir", str(work_dir), "--resume"]


@dataclass(frozen=True)
class Stage:
    """A stage, and a run of it that nobody killed: where, and how many seconds it took."""

    name: str
    argv: Callable[[Path], list[str]]
    whole: Path
    seconds: float


@pytest.fixture(scope="module", params=["search", "pretrain", "train_det"])
def stage(request: pytest.FixtureRequest, nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder, whole = tmp_path_factory.mktemp("config"), tmp_path_factory.mktemp("whole")
    if request.param == "train_det":
        coco, backbone = request.getfixturevalue("coco"), request.getfixturevalue("backbone")

        def argv(work_dir: Path) -> list[str]:
            return detection(folder / "mask_rcnn.py", BY_EPOCH, 0, coco, backbone, work_dir)
    else:
        images, flags = request.getfixturevalue("images"), search if request.param == "search" else pretraining

        def argv(work_dir: Path) -> list[str]:
            return flags(images, work_dir)
    nursery.run(request.param, ["--help"], whole / "log")  # so that the imports do not count
    start = time.monotonic()
    assert nursery.run(request.param, argv(whole), whole / "log") == 0, (whole / "log").read_text()
    return Stage(request.param, argv, whole, time.monotonic() - start)


# (moment, what is called or written, how manieth time in that process) -> the checkpoint that the kill leaves.
MOMENTS = {
    "pretrain": [
        (("during", "step", 1), None),
        (("during", "iter_2.pth", 1), None),  # half of the first is written
        (("after", "iter_2.pth", 1), "iter_2.pth"),  # no last_checkpoint names it yet, nor another
        (("during", "epoch_1.pth", 1), "iter_2.pth"),  # behind the rest of the epoch that was broken off
        (("after", "epoch_1.pth", 1), "epoch_1.pth"),  # before its validation, and beside iter_2.pth
        (("during", "step", 2), "iter_4.pth"),
        (("during", "step", 4), "epoch_2.pth"),
        (("after", "last_checkpoint", 2), "epoch_3.pth"),  # all is done but the last validation
        (("before", "metrics.json", 1), "epoch_3.pth"),
    ],
    "train_det": [
        (("during", "step", 3), "iter_2.pth"),
        (("during", "step", 5), "iter_6.pth"),
        (("after", "last_checkpoint", 1), "epoch_2.pth"),  # all is done but the last validation
    ],
}


@pytest.mark.parametrize("stage", ["pretrain", pytest.param("train_det", marks=pytest.mark.slow)], indirect=True)
def test_killed_at_chosen_moments_within_an_epoch_and_resumed(stage: Stage, nursery: Any, tmp_path: Path) -> None:
    for moment, checkpoint in MOMENTS[stage.name]:
        assert nursery.run(stage.name, stage.argv(tmp_path), tmp_path / "log", moment) == nursery.killed, moment
        found = find_checkpoint(tmp_path)
        assert (found.name if found else None) == checkpoint, moment
    assert nursery.run(stage.name, stage.argv(tmp_path), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(tmp_path, stage.whole)


KILLS = {"few": {"search": 4, "pretrain": 4, "train_det": 2}, "many": {"search": 40, "pretrain": 40, "train_det": 15}}


@pytest.mark.parametrize("how_many", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(stage: Stage, how_many: str, nursery: Any, tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    """A run that has ended is begun again in the next folder, so that every kill may hit."""
    kills = KILLS[how_many][stage.name]
    hits = nursery.kill_at_random(stage.name, stage.argv, tmp_path, kills, within=stage.seconds, seed=kills)
    folders = sorted(tmp_path.iterdir())
    for folder in folders:
        assert_same(folder, stage.whole)
    with capsys.disabled():
        print(f"\n{stage.name}: {hits} kills at random moments; {len(folders)} runs ended as the uninterrupted one")
    assert hits == kills, "most runs ended before the kill: nothing was tested"


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "workers"), [("retinanet", 0), ("faster_rcnn", 2)])
def test_a_loop_by_iteration_killed_and_resumed(detector: str, workers: int, nursery: Any, coco: Path, backbone: Path,
                                                tmp_path: Path) -> None:
    argv = {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        argv[name] = detection(tmp_path / f"{detector}.py", BY_STEP, workers, coco, backbone, tmp_path / name)
    assert nursery.run("train_det", argv["whole"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    for moment, checkpoint in ((("during", "step", 4), "iter_2.pth"), (("during", "iter_6.pth", 1), "iter_4.pth")):
        assert nursery.run("train_det", argv["parts"], tmp_path / "log", moment) == nursery.killed
        assert find_checkpoint(tmp_path / "parts") == tmp_path / "parts" / checkpoint
    assert nursery.run("train_det", argv["parts"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("stage", ["pretrain", pytest.param("train_det", marks=pytest.mark.slow)], indirect=True)
def test_a_stage_whose_images_vanish(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    argv = stage.argv(tmp_path / "w")
    place = argv.index("--data") + 1
    data = argv[place] = str(shutil.copytree(argv[place], tmp_path / "data"))
    folder = Path(data, "train2017" if stage.name == "train_det" else "train")
    after_step = ProgressLine.after_train_iter

    def watch(self: ProgressLine, runner: Any, *arguments: Any, **options: Any) -> None:
        after_step(self, runner, *arguments, **options)
        if runner.iter + 1 == 3:
            shutil.rmtree(folder)

    monkeypatch.setattr(ProgressLine, "after_train_iter", watch)
    assert importlib.import_module(f"dada_det.commands.{stage.name}").main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    last = find_checkpoint(tmp_path / "w")
    assert last is not None and check_checkpoint(last)
    (error,) = errors
    assert_names(error, f"data folder {folder}", last, "--resume")


@pytest.mark.parametrize("stage", ["search", "pretrain", pytest.param("train_det", marks=pytest.mark.slow)], indirect=True)
def test_keep_is_how_many_checkpoints_stay(stage: Stage, nursery: Any, tmp_path: Path) -> None:
    assert nursery.run(stage.name, ["--keep", "1", *stage.argv(tmp_path)], tmp_path / "log") == 0
    last = find_checkpoint(stage.whole)
    assert last is not None and [path.name for path in tmp_path.glob("*.pth")] == [last.name]


@pytest.mark.slow
def test_two_processes_killed_with_their_launcher_and_resumed(nursery: Any, images: Path, tmp_path: Path) -> None:
    """Within an epoch: the ranks' BatchNorm statistics and averages, which differ until its end, are one's in the file."""
    def command(name: str) -> list[str]:
        argv = pretraining(images, tmp_path / name)
        return [sys.executable, "-m", "dada_det.commands.pretrain", "--gpus", "2", *argv]

    with subprocess.Popen(command("parts"), cwd=ROOT, env=nursery.environment, stdout=subprocess.DEVNULL) as launcher:
        while find_checkpoint(tmp_path / "parts") is None:
            assert launcher.poll() is None
            time.sleep(0.02)
        launcher.kill()
    killed_at = find_checkpoint(tmp_path / "parts")
    assert killed_at is not None and killed_at.name in ("iter_2.pth", "epoch_1.pth", "iter_4.pth"), "ended before the kill"
    for name in ("parts", "whole"):
        done = subprocess.run(command(name), cwd=ROOT, env=nursery.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "parts", tmp_path / "whole")


def assert_same(found: Path, wanted: Path) -> None:
    """Every number of the last checkpoint's weights, average, optimiser and schedule, and every JSON file; bit for bit."""
    paths = [find_checkpoint(folder) for folder in (found, wanted)]
    assert paths[0] is not None and paths[1] is not None and paths[0].name == paths[1].name
    ours, theirs = (leaves(check_checkpoint(path), PARTS) for path in paths if path)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
    names = sorted(path.name for path in wanted.glob("*.json"))
    assert names == sorted(path.name for path in found.glob("*.json"))
    assert [name for name in names if (found / name).read_bytes() != (wanted / name).read_bytes()] == []


PARTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")


def leaves(value: Any, only: tuple[str, ...] = (), name: str = "") -> dict[str, Any]:
    """What is inside dicts and lists, by its place; of the outermost dict only the entries `only`, where there are any."""
    if isinstance(value, dict):
        entries = [(key, entry) for key, entry in value.items() if not only or key in only]
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    else:
        return {name: value}
    return {place: leaf for key, entry in entries for place, leaf in leaves(entry, (), f"{name}/{key}").items()}


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
