"""tools/train_det.py --policy: where ApplyPolicy stands, that the training runs with it, and every promised sentence."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torchvision.models import resnet50

from dada_det.augment import Policy
from dada_det.augment.policy import NamedPolicy, Operation, SubPolicy
from dada_det.commands import train_det
from dada_det.commands.common import load_config
from dada_det.engine.detect import run
from dada_det.engine.detect.config import dicts_in
from dada_det.engine.detect.policy_transform import ApplyPolicy, use_policy, without_flips
from dada_det.models.backbone import IMAGENET, export_backbone
from planted_coco import write_coco
from tests.engine.search.test_search_detection import squares
from tests.messages import assert_names, refused

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ROTATE = Policy("strength", (SubPolicy(1.0, (Operation("Rotate", probability=1.0, magnitude=0.5),)),), {})


def read(name):
    return Config.fromfile(CONFIGS / f"{name}.py", import_custom_modules=False, format_python_code=False)


@pytest.fixture
def policy(tmp_path):
    ROTATE.save(tmp_path / "policy.json")
    return str(tmp_path / "policy.json")


@pytest.mark.parametrize(("name", "masks", "repeated"), [
    ("retinanet_r50_dada", False, False), ("mask_rcnn_r50_baseline", True, False), ("debug/mask_rcnn", True, False),
    ("faster_rcnn_r50_dada_ms3x", False, True)])
def test_apply_policy_stands_behind_the_annotations(name, masks, repeated, policy):
    config, plain = read(name), read(name)
    use_policy(config, policy)
    dataset, before = (own.train_dataloader.dataset for own in (config, plain))
    if repeated:
        dataset, before = dataset.dataset, before.dataset
    place = [step["type"] for step in before.pipeline].index("LoadAnnotations") + 1
    assert bool(before.pipeline[place - 1].get("with_mask")) == masks
    assert dataset.pipeline[place] == {"type": "ApplyPolicy", "policy": policy, "recompute_bbox": masks, "seed": 0}
    assert [*dataset.pipeline[:place], *dataset.pipeline[place + 1:]] == list(before.pipeline)
    assert config.custom_hooks == [*plain.custom_hooks, {"type": "PolicyEpochHook"}]
    assert config.custom_imports.imports[-1] == "dada_det.engine.policy_transform"
    assert config.val_dataloader == plain.val_dataloader


def test_none_changes_nothing():
    config = read("retinanet_r50_dada")
    use_policy(config, "none")
    assert config.to_dict() == read("retinanet_r50_dada").to_dict()


@pytest.mark.parametrize("name", ["retinanet_r50_dada", "faster_rcnn_r50_dada_ms3x", "debug/mask_rcnn"])
def test_without_flips_every_random_flip_of_the_training_rests(name):
    config, plain = read(name), read(name)
    without_flips(config)
    flips, before = ([step for step in dicts_in(own.train_dataloader) if step.get("type") == "RandomFlip"]
                     for own in (config, plain))
    assert [step["prob"] for step in flips] == [0.0] and [step["prob"] for step in before] == [0.5]
    flips[0]["prob"] = 0.5
    assert config.to_dict() == plain.to_dict()


def test_a_pipeline_that_a_hook_switches_to_has_the_policy_and_no_flips(policy):
    """RTMDet's last epochs are without mosaics, and they flip as the others do."""
    config = load_config("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py")
    use_policy(config, policy)
    without_flips(config)
    (hook,) = [hook for hook in config.custom_hooks if hook.type == "PipelineSwitchHook"]
    types = [step.type for step in hook.switch_pipeline]
    assert types.index("ApplyPolicy") == types.index("LoadAnnotations") + 1 and types.count("ApplyPolicy") == 1
    assert [step.prob for step in hook.switch_pipeline if step.type == "RandomFlip"] == [0.0]
    config = load_config("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py")
    config.custom_hooks[-1].switch_pipeline = [{"type": "PackDetInputs"}]
    with refused("--policy", "switch_pipeline", "PipelineSwitchHook", "rtmdet_tiny_8xb32-300e_coco.py", "0 times"):
        use_policy(config, policy)


@pytest.mark.parametrize(("policys", "flag", "flips"), [
    (False, None, False), (True, None, True), (None, None, True), (False, "--mirror", True), (True, "--no-mirror", False)])
def test_train_det_flips_as_the_policy_or_the_flag_says(policys, flag, flips, tmp_path, monkeypatch):
    NamedPolicy("uniform", mirror=policys).save(tmp_path / "policy.json")
    seen = []
    monkeypatch.setattr(run, "run_training", lambda config, *_, **__: seen.append(config))
    monkeypatch.setattr(train_det, "check_backbone", lambda *_: None)
    data = write_coco(tmp_path / "data", train=squares(4, 0), val=squares(2, 1))
    assert train_det.main([str(CONFIGS / "debug/retinanet.py"), "--data", str(data), "--work-dir", str(tmp_path / "w"),
                           "--policy", str(tmp_path / "policy.json"), *filter(None, [flag])]) == 0
    (step,) = [step for step in dicts_in(seen[0].train_dataloader) if step.get("type") == "RandomFlip"]
    assert step.prob == (0.5 if flips else 0.0)


def test_what_does_not_fit_gets_one_sentence(policy):
    config = read("retinanet_r50_dada")
    with refused("trivial", "boxes"):
        use_policy(config, "trivial")
    use_policy(config, policy)
    with refused("retinanet_r50_dada.py", "ApplyPolicy", "--policy"):
        use_policy(config, policy)
    config = read("retinanet_r50_dada")
    config.train_dataloader.dataset.pipeline = [{"type": "LoadImageFromFile"}]
    with refused("--policy", "LoadAnnotations", "0 times", "ApplyPolicy"):
        use_policy(config, policy)


def test_a_detector_trains_with_it(policy, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    backbone = tmp_path / "r50.pth"
    export_backbone(resnet50(weights=None).state_dict(), backbone, {**IMAGENET, "classes": [], "policy_sha256": None})
    data = write_coco(tmp_path / "data", train=squares(4, 0), val=squares(2, 1))
    flags = [str(CONFIGS / "debug/retinanet.py"), "--backbone", str(backbone), "--data", str(data), "--work-dir",
             str(tmp_path / "w")]
    tiny = ["--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2"]
    moved, transform = [], ApplyPolicy.transform

    def watched(self, results):
        out = transform(self, results)
        moved.append("homography_matrix" in out)
        return out

    monkeypatch.setattr(ApplyPolicy, "transform", watched)
    assert train_det.main([*flags, "--policy", policy, *tiny]) == 0
    assert moved == [True, True]
    written = (tmp_path / "w/retinanet.py").read_text()
    assert "ApplyPolicy" in written
    assert "dada_det.engine.policy_transform" in written
    capsys.readouterr()
    assert train_det.main([*flags, "--policy", "nowhere.json"]) == 2
    assert_names(capsys.readouterr().err, "nowhere.json", "none, random")
