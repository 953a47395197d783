"""A search on a detector as a command: artefacts, --resume, --val-data, both methods, and every promised sentence."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from pycocotools import mask as coco_mask

from dada_det.augment import Policy
from dada_det.commands.search import main
from dada_det.data.detection import MemoryDetection
from dada_det.data.random import generator_for
from dada_det.engine.search import detection as search_detection
from dada_det.engine.search import leaks
from dada_det.engine.search import problems as search_problems
from dada_det.engine.search.detector_losses import DetectorLosses
from dada_det.search import alignment
from planted_coco import write_coco
from tests.engine.search.test_search_detector_losses import batch, tiny
from tests.messages import assert_error, assert_names

CONFIG = "configs/debug/search_det.py"
SIDE, IMAGES = 64, 12


def squares(images, seed):
    """Images with two bright squares on noise."""
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 90, (images, 3, SIDE, SIDE), generator=source, dtype=torch.uint8)
    boxes, masks = [], []
    for image in pixels:
        low = torch.randint(0, 40, (2, 2), generator=source)
        own = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
        for mask, (x, y) in zip(own, low.tolist(), strict=True):
            mask[y:y + 14, x:x + 14] = 1
            image[:, y:y + 14, x:x + 14] = 220
        boxes.append(torch.cat([low, low + 14], 1).float())
        masks.append([coco_mask.encode(mask.numpy().copy(order="F")) for mask in own])
    return MemoryDetection(pixels, boxes, [torch.zeros(2, dtype=torch.long)] * images, masks)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), train=squares(IMAGES, 0), val=squares(5, 1))


def search(data, work_dir, *flags, options=(), config=CONFIG):
    return main(["--config", config, "--data", str(data), "--work-dir", str(work_dir), "--image-size", str(SIDE),
                 "--batch-size", "3", "--epochs", "2", "--no-trial", *flags,
                 *(["--cfg-options", *options] if options else [])])


def test_the_policy_is_written_and_a_resumed_search_ends_in_the_same_file(data, tmp_path, capsys):
    assert search(data, tmp_path / "whole") == 0
    out = capsys.readouterr().out
    assert "ETA" in out
    assert_names(out.strip().splitlines()[-1], "25 of 105 sub-policies", tmp_path / "whole/policy.json")
    policy = Policy.load(tmp_path / "whole/policy.json")
    assert (len(policy.sub_policies), policy.provenance["config"]) == (25, "search_det")
    preferences = [entry["preference"] for entry in json.loads((tmp_path / "whole/search.json").read_text())["sub_policies"]]
    assert len(set(preferences)) > 5  # two steps of three draws each
    (tmp_path / "interrupted").mkdir()
    shutil.copy(tmp_path / "whole/epoch_1.pth", tmp_path / "interrupted")  # all that a kill in the second epoch leaves
    assert search(data, tmp_path / "interrupted", "--resume") == 0
    assert (tmp_path / "interrupted/policy.json").read_bytes() == (tmp_path / "whole/policy.json").read_bytes()
    capsys.readouterr()
    assert search(data, tmp_path / "interrupted", "--resume", options=["mirror=False"]) == 2
    assert "mirror" in capsys.readouterr().err


def test_images_of_one_tile_stay_in_one_half():
    images = squares(IMAGES, 0)
    names = [f"tile{row % 4}_{row}.png" for row in range(IMAGES)]
    first, second = search_detection.halves(replace(images, names=names), "auto", seed=0)
    parts = (first.train, first.val)
    assert [len(part) for part in parts] == [6, 6] and len(first.groups_V.unique()) == 2
    assert second.train is first.val and second.val is first.train  # in memory once
    assert {name[:5] for name in parts[0].names}.isdisjoint({name[:5] for name in parts[1].names})
    order = torch.randperm(IMAGES, generator=generator_for(3))
    for rule, own in (("none", names), ("auto", [f"{row:012d}.jpg" for row in range(IMAGES)])):  # image by image, as ever
        fold = search_detection.halves(replace(images, names=own), rule, seed=3)[0]
        assert [list(part.names) for part in (fold.train, fold.val)] == \
            [[own[row] for row in order[side::2].sort().values.tolist()] for side in (0, 1)]


def test_halves_that_leak_are_said_by_the_pixels(capsys):
    source = torch.Generator().manual_seed(0)
    scenes = torch.randint(0, 200, (12, 1, 3, 5, 5), generator=source).float()
    coarse = (scenes + torch.randint(0, 50, (12, 4, 3, 5, 5), generator=source)).flatten(0, 1)  # four frames of each
    pixels = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255).to(torch.uint8)
    count = len(pixels)
    images = MemoryDetection(pixels, [torch.tensor([[0.0, 0, 9, 9]])] * count, [torch.zeros(1, dtype=torch.long)] * count,
                             None, [f"scene{row // 4}_{row % 4}.png" for row in range(count)])
    search_detection.halves(images, "none", seed=0)
    assert "seem to stand in both halves" in capsys.readouterr().out
    search_detection.halves(images, "auto", seed=0)
    assert "stand in both halves" not in (out := capsys.readouterr().out) and "12 groups of file names" in out


def test_a_target_that_is_the_training_data_is_said(data, tmp_path, capsys):
    same = write_coco(tmp_path / "same", train=squares(24, 0), val=squares(24, 0))
    other = write_coco(tmp_path / "other", train=squares(24, 0), val=squares(24, 1))
    for root, said in ((same, True), (other, False)):
        config = Config.fromfile(CONFIG)
        config.merge_from_dict({"data.root": str(root), "data.val_root": f"{root}/annotations/instances_val.json",
                                "image_size": SIDE, "mirror": True})
        search_detection.load_detection(config)
        assert ("both among the training images and in --val-data" in capsys.readouterr().out) == said


def test_no_more_images_are_compared_for_leaks_than_the_classifiers_search_compares(monkeypatch):
    seen = []
    monkeypatch.setattr(leaks, "MOST", 7)
    monkeypatch.setattr(leaks, "leak_found_in_pixels", lambda *parts: seen.append([len(own) for own in parts[:4]]))
    leaks.say_leak(squares(20, 0).images_NCHW, squares(5, 1).images_NCHW)
    assert seen == [[7, 5, 7, 5]]


@pytest.mark.parametrize(("flags", "options"), [
    (("--val-data", "{data}/annotations/instances_val.json"), ()), (("--val-data", "{data}"), ("masks=True",)),
    ((), ("search.mode=paper",)), ((), ("search.draws_per_image=1",))],
    ids=["file", "folder, masks", "paper", "one draw"])
def test_other_searches_run_and_find_other_policies(flags, options, data, tmp_path):
    assert search(data, tmp_path, *(flag.format(data=data) for flag in flags), options=options) == 0
    assert len(Policy.load(tmp_path / "policy.json").sub_policies) == 25


def test_ddas_runs_on_a_detector(data, tmp_path):
    config = tmp_path / "ddas.py"
    config.write_text(f"_base_ = {str(Path(CONFIG).resolve())!r}\nmethod = 'ddas'\n"
                      "search = dict(_delete_=True, levels=(7, 14), draws_per_image=2, val_batches=1)\n")
    assert search(data, tmp_path / "w", config=str(config)) == 0
    assert (tmp_path / "w/policy.json").exists()


@pytest.mark.parametrize("kind", ["faster-rcnn", "mask-rcnn"])
def test_two_stage_detectors_are_searched_too(kind, data, tmp_path):
    config = tmp_path / "two_stage.py"
    config.write_text(f'''
_base_ = ["mmdet::_base_/models/{kind}_r50_fpn.py", "{Path("configs/_base_/search_detection.py").resolve()}"]
masks = {kind == "mask-rcnn"}
few = dict(num=16)
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8, anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=8), bbox_head=dict(in_channels=8, fc_out_channels=16),
                  {"mask_roi_extractor=dict(out_channels=8), mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1)"
                   if kind == "mask-rcnn" else ""}),
    train_cfg=dict(rpn=dict(sampler=few), rcnn=dict(sampler=few), rpn_proposal=dict(nms_pre=50, max_per_img=30)))
''')
    assert search(data, tmp_path / "w", config=str(config)) == 0
    assert len(Policy.load(tmp_path / "w/policy.json").sub_policies) == 25


def test_a_batch_is_the_same_for_one_process_and_for_two(data, monkeypatch):
    """Every second image of a batch, and together all: halves of a process's part are of the batch's halves."""
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({"data.root": str(data), "image_size": SIDE, "batch_size": 4, "masks": True, "seed": 3})
    problem = search_problems.LOADERS["coco"](config)
    algorithm = _algorithm()
    batches = problem.batches(algorithm)
    whole = batches.batch(1, 0)
    assert whole.number == len(batches) > 0
    assert whole.images_BCHW.shape == (4, 3, SIDE, SIDE)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("dada_det.engine.search.loop.world", lambda rank=rank: (rank, 2))
        parts.append(problem.batches(algorithm).batch(1, 0))
    for rank, part in enumerate(parts):
        assert part.number == whole.number
        assert torch.equal(part.images_BCHW, whole.images_BCHW[rank::2])
        assert torch.equal(part.noise.gumbel_BN, whole.noise.gumbel_BN[rank::2])
        assert torch.equal(part.val_images_VCHW, whole.val_images_VCHW[rank::2])
        boxes, own = part.targets_B.boxes_M4, whole.targets_B.boxes_M4[rank::2]
        assert len(boxes) == 2 and all(torch.equal(*pair) for pair in zip(boxes, own, strict=True))


def _algorithm():
    from dada_det.augment.space import SearchSpace
    from dada_det.search.dada import Dada
    from dada_det.search.settings import dada_settings

    return Dada(SearchSpace(), dada_settings())


def test_one_sided_and_central_rewards_agree_through_the_core():
    """The search's own rewards, of a two-stage detector: the losses of the training pass are an end of the difference."""
    network = DetectorLosses(tiny("faster-rcnn", norm_eval=True).float())
    images, targets = batch((3, 1, 5))
    images = images.float()
    gradient, losses = alignment.training_gradient(network, images, targets)
    weights = alignment.weights_of(network)
    sided = alignment.rewards(network, weights, gradient, images, targets, losses_B=losses)
    central = alignment.rewards(network, weights, gradient, images, targets)
    torch.testing.assert_close(sided, central, rtol=0.05, atol=0.02 * central.abs().max().item())
    torch.testing.assert_close(central.mean(), alignment.inner(gradient, gradient), rtol=0.02, atol=0)


@pytest.mark.parametrize(("flags", "options", "names"), [
    ((), ["model=3"], ("3", "`model`", "coco", "dict")),
    ((), ["model.data_preprocessor.bgr_to_rgb=False"], ("model.data_preprocessor.bgr_to_rgb=True",)),
    (("--val-data", "nowhere.json"), [], ("--val-data", "nowhere.json")),
    (("--val-data", "{tmp}/other/annotations/instances_val.json"), [], ("list different categories",)),
    (("--batch-size", "7"), [], ("--batch-size", "7", "6 images")),
    (("--data", "nowhere"), [], ("nowhere", "folder")),
])
def test_mistakes_get_one_sentence(flags, options, names, data, tmp_path, capsys):
    other = write_coco(tmp_path / "other", val=squares(2, 2)) / "annotations/instances_val.json"
    other.write_text(other.read_text().replace('"id": 1, "name": "object"', '"id": 1, "name": "cat"'))
    assert search(data, tmp_path / "w", *(flag.format(tmp=tmp_path) for flag in flags), options=options) == 2
    assert_error(capsys.readouterr().err, "search_imagenet.sh", *names)


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn", "mask_rcnn", "retinanet_ddas"])
def test_the_configs_for_coco_ask_for_their_backbone(name, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", f"configs/search_det_{name}.py", "--data", str(data)]) == 2
    assert_error(capsys.readouterr().err, "search_imagenet.sh", "work_dirs/pretrain_r50_none/r50.pth",
                 "`tools/pretrain_r50.sh --policy none --work-dir work_dirs/pretrain_r50_none`",
                 "--cfg-options model.backbone.init_cfg.checkpoint=FILE")


@pytest.mark.slow
def test_two_processes_search_over_gloo(data, tmp_path):
    command = [sys.executable, "-m", "dada_det.commands.search", "--config", CONFIG, "--data", str(data), "--work-dir",
               str(tmp_path), "--image-size", str(SIDE), "--batch-size", "4", "--epochs", "2", "--gpus", "2", "--no-trial"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("search  done: 25 of 105 sub-policies")
    assert len(Policy.load(tmp_path / "policy.json").sub_policies) == 25
