import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dada_det.augment.policy import NamedPolicy
from dada_det.commands.common import ROOT
from dada_det.commands.pretrain import main
from dada_det.data.folders import scan_folder
from dada_det.engine.pretrain import run as pretrain
from dada_det.engine.pretrain.classifier import TopK
from dada_det.engine.pretrain.data import training_images
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.engine.runtime.identity import demand_same
from dada_det.models.backbone import load_backbone
from tests.messages import assert_error, assert_names, refused

CLASSES, PER_CLASS = 3, 8


def write_images(root):
    """Three classes that differ in colour: noise around red, green and blue."""
    for split, count in (("train", PER_CLASS), ("val", 4)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                random = np.random.default_rng([label, index, count])
                pixels = random.integers(0, 120, (24, 24, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def flags(images, work_dir, *more, policy="one-op", options=()):
    return ["--policy", policy, "--data", str(images), "--work-dir", str(work_dir), "--image-size", "16",
            "--batch-size", "8", "--epochs", "2", *more, "--cfg-options", "classifier.name=convnet", "workers=0", *options]


def prepare(arguments):
    """(config, policy) that the command with these arguments trains with."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "run_pretraining", lambda config, policy, *_: seen.append((config, policy)))
        assert main(arguments) == 0
    return seen[0]


def weights(work_dir, epoch=2):
    return check_checkpoint(work_dir / f"epoch_{epoch}.pth")["state_dict"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_top_1_and_top_5_are_percentages_of_all_images():
    metric = TopK()
    logits_BK = torch.arange(8.0).repeat(4, 1)  # class 7 first, then 6, 5, 4, 3
    metric.process({"label": torch.tensor([7, 3, 2, 6])}, list(logits_BK))
    metric.process({"label": torch.tensor([7])}, [logits_BK[0]])
    assert metric.evaluate(5) == {"top1": 40.0, "top5": 80.0}
    metric.process({"label": torch.tensor([1])}, [torch.tensor([2.0, 1.0])])
    assert metric.evaluate(1) == {"top1": 0.0, "top5": 100.0}


def test_equal_seeds_give_equal_weights_with_any_number_of_workers(images, tmp_path, capsys):
    assert main(flags(images, tmp_path / "a")) == 0
    assert main(flags(images, tmp_path / "b", options=["workers=2"])) == 0
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert (tmp_path / "a" / "metrics.json").read_text() == (tmp_path / "b" / "metrics.json").read_text()
    assert main(flags(images, tmp_path / "c", "--seed", "1")) == 0
    assert not torch.equal(*(next(iter(weights(tmp_path / name).values())) for name in "ac"))
    output = capsys.readouterr().out
    assert re.search(r"^pretrain  epoch 2/2  step 3/3  loss [\d.]+  lr [\d.e-]+  ETA 0:00:00$", output, re.MULTILINE)
    (closing,) = re.findall("^pretrain  done: .*$", output, re.MULTILINE)[:1]
    assert_names(closing, tmp_path / "a", "metrics.json", re.compile(r"top-1 [\d.]+ %"), "top-5 100.00 %", "12 images",
                 images / "val", "2 epochs", "policy one-op", re.compile(r"0:00:\d\d"))


@pytest.mark.parametrize(("policys", "option", "flag", "flips"), [
    (None, None, None, True), (False, None, None, False), (True, None, None, True), (False, True, None, True),
    (True, False, None, False), (False, None, "--mirror", True), (None, True, "--no-mirror", False)])
def test_flips_follow_flag_then_config_then_policy(images, tmp_path, policys, option, flag, flips):
    NamedPolicy("none", mirror=policys).save(tmp_path / "policy.json")
    config, policy = prepare(flags(images, tmp_path / "w", *filter(None, [flag]), policy=str(tmp_path / "policy.json"),
                                   options=[f"mirror={option}"] if option is not None else []))
    assert policy is None and config.mirror is flips
    assert training_images(config, scan_folder(images / "train"), policy).mirror is flips
    assert pretrain.identity_of(config, policy, scan_folder(images / "train"))["mirror"] is flips


def test_a_policy_without_flips_trains_and_says_so(images, tmp_path, capsys):
    NamedPolicy("one-op", mirror=False).save(tmp_path / "policy.json")
    assert main(flags(images, tmp_path / "w", "--epochs", "1", policy=str(tmp_path / "policy.json"))) == 0
    assert "pretrain  no image is flipped" in capsys.readouterr().out
    assert main(flags(images, tmp_path / "w", "--epochs", "1", policy="none", options=["mirror=3"])) == 2
    assert_names(capsys.readouterr().err, "mirror is 3", "True", "False", "None")


DEVICE = ["policy_on=device"]


@pytest.fixture
def interrupted(monkeypatch):
    """Runs the command with these arguments until Ctrl-C at the end of the first epoch."""
    def run(arguments):
        original = pretrain.WatchImages.before_train_epoch

        def stop(self, runner):
            if runner.epoch == 1:
                raise KeyboardInterrupt
            original(self, runner)

        with monkeypatch.context() as patch:
            patch.setattr(pretrain.WatchImages, "before_train_epoch", stop)
            assert main(arguments) == 130
    return run


def test_the_policy_on_the_device_gives_the_weights_that_it_gives_in_the_workers(images, tmp_path, interrupted):
    assert main(flags(images, tmp_path / "workers")) == 0
    assert main(flags(images, tmp_path / "none", policy="none")) == 0
    assert main(flags(images, tmp_path / "device", options=DEVICE)) == 0
    assert main(flags(images, tmp_path / "two", options=[*DEVICE, "workers=2"])) == 0
    assert_equal(weights(tmp_path / "workers"), weights(tmp_path / "device"))
    assert_equal(weights(tmp_path / "workers"), weights(tmp_path / "two"))
    assert not torch.equal(*(next(iter(weights(tmp_path / name).values())) for name in ("none", "device")))
    assert main(flags(images, tmp_path / "none-device", policy="none", options=DEVICE)) == 0
    assert_equal(weights(tmp_path / "none"), weights(tmp_path / "none-device"))

    # A resume goes on as if nothing had happened, in the other place too.
    for name, before, after in (("parts", DEVICE, DEVICE), ("mixed", [], DEVICE)):
        interrupted(flags(images, tmp_path / name, options=before))
        assert main(flags(images, tmp_path / name, "--resume", options=after)) == 0
        assert_equal(weights(tmp_path / "workers"), weights(tmp_path / name))


def test_policies_that_the_device_cannot_apply_are_refused(images, tmp_path, capsys):
    for policy in ("trivial", "rand"):
        assert main(flags(images, tmp_path / "w", policy=policy, options=DEVICE)) == 2
        assert_error(capsys.readouterr().err, "pretrain_r50.sh", f"policy {policy}", "device", "policy_on = 'workers'")
    assert main(flags(images, tmp_path / "w", options=["policy_on=gpu"])) == 2
    assert_error(capsys.readouterr().err, "pretrain_r50.sh", "'gpu'", "policy_on = 'workers'", "policy_on = 'device'")
    assert main(flags(images, tmp_path / "w", "--epochs", "1", policy="rand")) == 0


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(images, tmp_path, interrupted, capsys):
    assert main(flags(images, tmp_path / "whole")) == 0
    interrupted(flags(images, tmp_path / "parts"))
    assert not (tmp_path / "parts" / "metrics.json").exists()
    assert main(flags(images, tmp_path / "parts", "--resume")) == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))

    # Once more: nothing is left to train, and the metrics are measured again.
    expected = (tmp_path / "whole" / "metrics.json").read_text()
    (tmp_path / "parts" / "metrics.json").unlink()
    assert main(flags(images, tmp_path / "parts", "--resume")) == 0
    assert (tmp_path / "parts" / "metrics.json").read_text() == expected

    assert main(flags(images, tmp_path / "parts", "--resume", policy="none")) == 2
    assert_names(capsys.readouterr().err, "epoch_2.pth", re.compile(r"policy \w{12} instead of none"), "--work-dir")


@pytest.mark.parametrize(("before", "after"), [("none", "trivial"), ("trivial", "none"), ("rand", "one-op")])
def test_a_file_that_holds_another_policy_now_is_another_run(images, tmp_path, before, after):
    path, listed, found = tmp_path / "policy.json", scan_folder(images / "train"), {}
    for name in (before, after, before):
        NamedPolicy(name).save(path)
        config, policy = prepare(flags(images, tmp_path / "w", policy=str(path)))
        found.setdefault(name, []).append(pretrain.identity_of(config, policy, listed))
    demand_same(tmp_path, *found[before])
    with refused(re.compile(f"policy {before} instead of ({after}|[0-9a-f]{{12}})"), "--work-dir"):
        demand_same(tmp_path, found[before][0], found[after][0])
    # By its name a policy is the same one.
    config, policy = prepare(flags(images, tmp_path / "w", policy=before))
    demand_same(tmp_path, found[before][0], pretrain.identity_of(config, policy, listed))


def test_a_checkpoint_with_code_is_not_resumed(images, tmp_path, capsys):
    work_dir = tmp_path / "w"
    work_dir.mkdir()
    torch.save({"meta": {}, "state_dict": {}, "code": print}, work_dir / "epoch_1.pth")
    assert main(flags(images, work_dir, "--resume")) == 2
    assert_names(capsys.readouterr().err, "epoch_1.pth", "pickle")


def test_resuming_from_nothing_says_so_and_starts(images, tmp_path, capsys):
    assert main(flags(images, tmp_path / "w", "--resume", "--epochs", "1")) == 0
    assert_names(capsys.readouterr().out.splitlines()[0], "--resume", tmp_path / "w")


def test_two_processes_share_the_images_and_measure_every_one_once(images, tmp_path, monkeypatch, capfd):
    # 23 training and 11 validation images: neither divides by two.
    for name in ("train/class2/7.png", "val/class2/3.png"):
        (images / name).unlink()
    (images / "train" / "class1" / "0.png").write_bytes(b"no image")
    arguments = flags(images, tmp_path / "w", "--gpus", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(arguments) == 0
    said = capfd.readouterr().out  # of the processes too
    assert "on 11 images of" in said
    assert said.count("pretrain  1 of 23 images in") == 1 and "class1/0.png" in said
    state = weights(tmp_path / "w")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert state["network.1.num_batches_tracked"] == 2 * 3  # epochs times steps: the ranks' mean, not their sum


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_two_processes_with_one_sentence(images, tmp_path):
    arguments = flags(images, tmp_path / "w", "--gpus", "2", options=["optimizer.lr=1e38", "warmup_epochs=0"])
    result = subprocess.run([sys.executable, "-m", "dada_det.commands.pretrain", *arguments], capture_output=True,
                            text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    (error,) = errors
    assert_names(error, "NaN", re.compile(r"step [12] \(epoch 1\)"), "no checkpoint")
    assert not list((tmp_path / "w").glob("*.pth"))


def test_broken_images_are_named_and_more_than_one_percent_stops(images, tmp_path, capsys):
    (images / "train" / "class0" / "2.png").write_bytes(b"no image")
    assert main(flags(images, tmp_path / "one", "--epochs", "1")) == 0
    assert_names(capsys.readouterr().out, "1 of 24", images / "train", "class0/2.png")
    (images / "train" / "class1" / "5.png").write_bytes(b"no image")
    assert main(flags(images, tmp_path / "two", "--epochs", "1")) == 2
    assert_names(capsys.readouterr().err, "2 of 24", images / "train", "1 %", "class0/2.png, class1/5.png", "repair")
    assert not list((tmp_path / "two").glob("*.pth")) and not (tmp_path / "two" / "metrics.json").exists()


def test_a_sentence_from_a_loader_process_stays_one_sentence(images, tmp_path, capsys):
    for path in (images / "train" / "class0").iterdir():
        path.write_bytes(b"no image")
    assert main(flags(images, tmp_path / "w", options=["workers=1"])) == 2
    assert_error(capsys.readouterr().err, "pretrain_r50.sh", "'class0'", images / "train", re.compile(r"class0/\d+\.png"))


def test_mistakes_are_told_in_one_sentence(images, tmp_path, capsys):
    def error_of(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    assert_names(error_of(*flags(images, tmp_path / "w", policy="nonsense")), "nonsense", "none, random")
    assert_names(error_of("--policy", "none", "--data", tmp_path / "gone"), tmp_path / "gone", "--data")
    assert_names(error_of(*flags(images / "val", tmp_path / "w")), images / "val", "train/<class>/", "--data")
    assert_names(error_of("--policy", "none", "--data", images, "--batch-size", 7, "--gpus", 2, "--work-dir", tmp_path),
                 "--batch-size 7", "--gpus 2")
    assert_names(error_of(*flags(images, tmp_path / "w", options=["classifier.name=convent"])), "'convent'",
                 "timm.list_models()")
    (tmp_path / "file").write_text("")
    assert_names(error_of(*flags(images, tmp_path / "file" / "w")), tmp_path / "file/w", "Not a directory", "another place")
    (images / "val" / "class1").rename(images / "val" / "stranger")
    assert_names(error_of(*flags(images, tmp_path / "w")), images / "val", "1 classes", "'stranger'")
    assert error_of(*flags(images, tmp_path / "w", "--val-data", images / "train", options=["workers"])).count("\n") == 1
    (images / "val").rename(images / "test")
    assert_names(error_of(*flags(images, tmp_path / "w")), images, "val/<class>/", "--val-data")
    assert not list(tmp_path.glob("w/*.pth"))


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    example = "tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --data data/imagenet"
    assert example in capsys.readouterr().out


def test_resnet_50_is_exported_with_what_belongs_to_it(images, tmp_path):
    work_dir = tmp_path / "w"
    arguments = flags(images, work_dir, "--config", "configs/debug/pretrain.py", "--image-size", "32", "--epochs", "1",
                      policy="dada-imagenet", options=["classifier.name=resnet50", "ema.momentum=0.1", *DEVICE])
    assert main(arguments) == 0
    tensors, meta = load_backbone(work_dir / "r50.pth")
    assert meta["classes"] == ["class0", "class1", "class2"] and meta["channel_order"] == "RGB"
    assert meta["mean"] == [123.675, 116.28, 103.53] and re.fullmatch(r"[0-9a-f]{64}", meta["policy_sha256"])
    assert meta["policy"] == meta["policy_sha256"]  # of a fixed policy its name
    assert meta["weights"] == "ema"
    trained = weights(work_dir, epoch=1)  # a checkpoint's state_dict is the average too
    assert all(torch.equal(tensor, trained[f"network.{name}"]) for name, tensor in tensors.items())
    assert set(json.loads((work_dir / "metrics.json").read_text())) == {"top1", "top5"}
    assert not list(work_dir.glob(".export*"))


def test_a_backbone_that_differs_from_the_trained_network_gets_no_name(tmp_path):
    network = torch.nn.Module()  # never asked: the draft is refused before it is verified
    meta = {"mean": [0.0] * 3, "std": [1.0] * 3, "channel_order": "RGB", "classes": [], "policy_sha256": None}
    with pytest.raises(ValueError, match="cannot be exported"):
        pretrain.write_verified(network, tmp_path / "r50.pth", meta, torch.zeros(1, 3, 32, 32))
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_cannot_be_verified_is_kept_and_said(tmp_path, capsys, monkeypatch):
    def fails(model, path, *rest):
        raise RuntimeError(f"the exported backbone {path} differs from the trained model by up to 0.25 in its features")

    monkeypatch.setattr(pretrain, "verify_export", fails)
    meta = {"mean": [0.0] * 3, "std": [1.0] * 3, "channel_order": "RGB", "classes": [], "policy_sha256": None}
    pretrain.write_verified(torchvision.models.resnet50(), tmp_path / "r50.pth", meta, torch.zeros(1, 3, 32, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r50.json", "r50.pth"]
    load_backbone(tmp_path / "r50.pth")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: {tmp_path}/r50.pth is kept" in line and f"backbone {tmp_path}/r50.pth differs" in line
    assert "by up to 0.25" in line


@pytest.mark.slow
def test_real_photographs_give_a_backbone_and_figures(shared, tmp_path):
    arguments = ["--policy", "dada-imagenet", "--data", str(shared / "data" / "imagenette-mini"), "--epochs", "2",
                 "--image-size", "64", "--batch-size", "16", "--work-dir", str(tmp_path)]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["top1"] > 12  # of ten classes; 22 was seen
    load_backbone(tmp_path / "r50.pth")
