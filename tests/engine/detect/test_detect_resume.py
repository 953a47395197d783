"""What a detector's training may go on from: its own checkpoints, and nobody else's, by --resume and by load_from."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config

from dada_det.augment.named import resolve_policy
from dada_det.augment.policy import NamedPolicy
from dada_det.commands import train_det
from dada_det.data.checks import CocoLayout
from dada_det.engine.detect import config as change
from dada_det.engine.detect.guard import BackboneGuardHook, Guarded, LearningRateNote
from dada_det.engine.detect.identity import identity_of
from dada_det.engine.detect.policy_transform import use_policy
from dada_det.engine.runtime.identity import demand_same
from dada_det.errors import UserError
from tests.messages import assert_names, refused

ROOT = Path(__file__).resolve().parents[3]
FASTER_RCNN = str(ROOT / "configs/debug/faster_rcnn.py")


def make(folder: Path, name: str = "one", policy: str = "none", weights: str = "weights",
         options: dict[str, Any] | None = None, processes: int = 1) -> dict[str, Any]:
    """The identity of a training on folder/<name>.json, with backbone file folder/<weights>.pth."""
    return identity_of(config_of(folder, name, policy, weights, options), processes)


def config_of(folder: Path, name: str = "one", policy: str = "none", weights: str = "weights",
              options: dict[str, Any] | None = None) -> Config:
    """The config of that training."""
    for path in (folder / f"{name}.json", folder / f"{weights}.pth"):
        path.write_text(path.stem)
    config = Config.fromfile(FASTER_RCNN, import_custom_modules=False, format_python_code=False)
    config.merge_from_dict({"model.backbone.init_cfg.checkpoint": str(folder / f"{weights}.pth"), **(options or {})})
    use_policy(config, policy)
    change.use_data(config, CocoLayout(folder / f"{name}.json", folder, None, None, None, None), ("cell",))
    return config


@pytest.mark.parametrize(("other", "named"), [
    ({"name": "two"}, "annotations "), ({"policy": "dada-imagenet"}, "policy nothing instead of ['"),
    ({"weights": "others"}, "backbone "), ({"processes": 2}, "batch_size 4 instead of 8"),
    ({"options": {"optim_wrapper.optimizer.lr": 0.1}}, "optim_wrapper.optimizer.lr 0.0005 instead of 0.1"),
    ({"options": {"model.neck.out_channels": 32}}, "model.neck.out_channels 64 instead of 32"),
    ({"options": {"train_dataloader.dataset.pipeline.2.scale": (64, 64)}}, "train_dataloader.dataset.pipeline.2.scale"),
    ({"options": {"auto_scale_lr.enable": True}}, "scaled_from nothing instead of 4"),
    ({"options": {"param_scheduler.1.end": 90}}, "param_scheduler.1.end 50 instead of 90"),
    ({"options": {"randomness.seed": 3}}, "randomness.seed 0 instead of 3")])
def test_what_the_weights_depend_on_is_compared(other: dict[str, Any], named: str, tmp_path: Path) -> None:
    first = make(tmp_path)
    with pytest.raises(UserError) as caught:
        demand_same(Path("epoch_1.pth"), first, make(tmp_path, **other))
    assert f"epoch_1.pth is of another run ({named}" in str(caught.value) and str(caught.value).count(" instead of ") == 1


def test_what_may_change_on_the_way_is_not(tmp_path: Path) -> None:
    first = make(tmp_path, policy="random")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/policy.json").write_text(json.dumps(resolve_policy("random", 0).to_dict()))
    (tmp_path / "moved/one.json").write_text("one")
    free = {"train_cfg.max_iters": 99, "train_cfg.val_interval": 3, "train_dataloader.num_workers": 2, "model.test_cfg.x": 1,
            "default_hooks.checkpoint.interval": 7}
    demand_same(Path("epoch_1.pth"), first, make(tmp_path, policy=str(tmp_path / "moved/policy.json"), options=free))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_run_goes_on_from_its_copy_where_broken_images_were_left_out(wrapped: bool, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    if wrapped:
        config.train_dataloader.dataset = {"type": "RepeatDataset", "times": 2, "dataset": config.train_dataloader.dataset}
    first = identity_of(config, 1)
    change.leave_out(config, ["1.jpg"])
    change.use_training_hooks(config, "faster_rcnn")
    config.dump(tmp_path / "copy.py")
    copy = Config.fromfile(tmp_path / "copy.py", import_custom_modules=False, format_python_code=False)
    change.drop_training_hooks(copy)
    with refused(re.compile("left_out")):
        demand_same(Path("epoch_1.pth"), first, identity_of(copy, 1))
    change.take_back(copy)
    demand_same(Path("epoch_1.pth"), first, identity_of(copy, 1))
    assert change.innermost(copy.train_dataloader.dataset).type == "CocoDataset"


def test_the_policy_of_a_pipeline_that_a_hook_switches_to_is_known_by_what_it_does(tmp_path: Path) -> None:
    switch = {"custom_hooks": [{"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": [
        {"type": "LoadAnnotations", "with_bbox": True}]}]}
    found = []
    for folder in ("one", "moved"):
        (tmp_path / folder).mkdir()
        NamedPolicy("one-op").save(tmp_path / folder / "policy.json")
        found.append(make(tmp_path, policy=str(tmp_path / folder / "policy.json"), options=switch))
    assert found[0] == found[1] and len(found[0]["policy"]) == 2
    with refused("policy"):
        demand_same(tmp_path, found[0], make(tmp_path, policy="uniform", options=switch))


def test_a_file_that_holds_another_policy_now_is_another_run(tmp_path: Path) -> None:
    path, found = tmp_path / "policy.json", {}
    for name in ("none", "one-op"):
        NamedPolicy(name).save(path)
        found[name] = make(tmp_path, policy=str(path))
    with refused(re.compile(r"policy \['none'\] instead of \['[0-9a-f]{12}'\]")):
        demand_same(path, found["none"], found["one-op"])
    as_dict = {"train_dataloader.dataset.pipeline.2": {"type": "ApplyPolicy", "policy": NamedPolicy("none").to_dict()}}
    assert make(tmp_path, options=as_dict)["policy"] == ["none"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from tests.engine.detect.test_detect_detection_commands import write_coco

    return write_coco(tmp_path / "coco", [{"id": 3, "name": "cell"}])


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    from torchvision.models import resnet50

    path = tmp_path / "r50.pth"
    torch.save(resnet50(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("how", [["--resume"], ["--resume", "w/iter_1.pth"], ["--cfg-options", "resume=True"],
                                 ["--cfg-options", "resume=True", "load_from=w/iter_1.pth"]])
def test_a_checkpoint_of_another_run_is_refused_before_the_detector_is_built(
        how: list[str], data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w").mkdir()
    command = [FASTER_RCNN, "--backbone", str(backbone), "--data", str(data), "--work-dir", "w", *how]
    for identity, sentence in (({"backbone": "another"}, "w/iter_1.pth is of another run (backbone another instead of "),
                               (None, "w/iter_1.pth does not say of which run it is, so it cannot go on as this one")):
        torch.save({"state_dict": {}, "meta": {"iter": 1, "epoch": 0, "identity": identity}}, "w/iter_1.pth")
        assert train_det.main(command) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_that_had_ended_names_no_figure_of_another_validation(
        exact: bool, data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """ExactResume makes up for the validation of the last checkpoint; without it nothing is validated."""
    config = tmp_path / "detector.py"
    hooks = ["BackboneGuardHook", *(["ExactResume"] if exact else [])]
    config.write_text(f"_base_ = {FASTER_RCNN!r}\ncustom_hooks = {[{'type': hook} for hook in hooks]}\n")
    command = [str(config), "--backbone", str(backbone), "--data", str(data), "--work-dir", str(tmp_path / "w"), "--resume",
               "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=1", "train_dataloader.batch_size=2",
               "default_hooks.checkpoint.interval=1", "model.test_cfg.rcnn.score_thr=0.0"]
    figures = []
    for _ in range(2):
        assert train_det.main(command) == 0
        figures.append(capsys.readouterr().out.strip().splitlines()[-1].partition("; ")[2])
    assert_names(figures[0], re.compile(r"^box AP \d"))
    if exact:
        assert figures[1] == figures[0]
    else:
        assert "AP" not in figures[1]
        assert_names(figures[1], "nothing", "tools/test_det.py")


class Loaded(Guarded):
    meta, sha256 = {"mean": []}, "ours"


def runner_with(backbone: Any) -> Any:
    return SimpleNamespace(model=SimpleNamespace(backbone=backbone), _load_from="detector.pth")


@pytest.mark.parametrize("meta", [{}, {"backbone_sha256": "theirs"}])
def test_a_checkpoint_that_would_replace_the_checked_backbone_is_refused(meta: dict[str, Any]) -> None:
    """Under MMDetection's own tools too, where a hook is all that looks."""
    hook, runner = BackboneGuardHook(), runner_with(Loaded({"type": "Pretrained", "checkpoint": "r50.pth"}))
    checkpoint: dict[str, Any] = {"state_dict": {"module.backbone.conv1.weight": torch.zeros(1)}, "meta": meta}
    with refused("detector.pth", "r50.pth"):
        hook.after_load_checkpoint(runner, checkpoint)
    hook.before_save_checkpoint(runner, checkpoint)
    hook.after_load_checkpoint(runner, checkpoint)  # of a detector that began with r50.pth
    hook.after_load_checkpoint(runner, {"state_dict": {"bbox_head.weight": torch.zeros(1)}})  # heads alone
    hook.after_load_checkpoint(runner_with(Guarded()), {"state_dict": {"backbone.conv1.weight": torch.zeros(1)}})  # a test


@pytest.mark.parametrize(("steps", "stated"), [(0, "0.02"), (7, "0.003")])
def test_the_rate_in_the_first_line_is_the_optimisers(steps: int, stated: str, capsys: pytest.CaptureFixture) -> None:
    """At the start that which the warm-up leads to; after a resume the checkpoint's, not what this config would give."""
    cfg = Config({"train_dataloader": {"batch_size": 2}, "optim_wrapper": {"optimizer": {"lr": 0.04}}})
    runner: Any = SimpleNamespace(auto_scale_lr={"enable": True, "base_batch_size": 4}, world_size=1, cfg=cfg, iter=steps,
                                  optim_wrapper=SimpleNamespace(param_groups=[{"lr": 0.003, "initial_lr": 0.02}]))
    LearningRateNote("faster_rcnn").before_train(runner)
    assert_names(capsys.readouterr().out, "faster_rcnn", f"learning rate {stated}", "0.04", "4 images")
