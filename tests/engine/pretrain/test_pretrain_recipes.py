"""What a pretraining config can ask for, through the Runner: sizes, rates, averages, parts of a batch."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper

from dada_det.commands.common import ROOT
from dada_det.commands.pretrain import main
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder
from dada_det.engine.pretrain import recipe
from dada_det.engine.pretrain import run as pretrain
from dada_det.engine.pretrain.classifier import Classifier
from dada_det.engine.pretrain.data import WholeBatches
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.engine.runtime.launch import read_config
from dada_det.models.backbone import load_backbone
from tests.engine.pretrain.recipe_runs import assert_close, assert_equal, flags, weights
from tests.messages import assert_names, refused

pytestmark = pytest.mark.usefixtures("without_gpu")
EMA = ["ema.momentum=0.3", "ema.update_buffers=True"]


def test_every_step_has_the_side_and_the_rate_of_its_update(images, tmp_path, recorded):
    notes = recorded(flags(images, tmp_path / "w", epochs=4, options=["progressive_size=8", "lr_drops=[0.5]"]))
    assert notes.sides == [8] * 6 + [16] * 2
    assert notes.rates == pytest.approx([8 / 256] * 4 + [0.8 / 256] * 4)  # lr 1 is for a batch of 256


def test_the_learning_rate_scales_with_the_batch_unless_the_config_turns_it_off(images, tmp_path, recorded):
    fixed = ["auto_scale_lr.enable=False", "lr_drops=[0.5]"]
    assert recorded(flags(images, tmp_path / "a", options=fixed)).rates == pytest.approx([1, 1, 0.1, 0.1])
    scaled = recorded(flags(images, tmp_path / "b", "--auto-scale-lr", options=fixed))
    assert scaled.rates == pytest.approx([1 / 32, 1 / 32, 0.1 / 32, 0.1 / 32])


def test_layers_learn_at_the_rates_of_timms_layer_wise_decay():
    config = read_config(str(ROOT / "configs/finetune.py"), ["layer_decay=0.5"])
    network = timm.create_model("resnet18", num_classes=3)
    model = torch.nn.Module()
    model.network = network
    found = build_optim_wrapper(model, recipe.optimizer(config)).optimizer.param_groups
    expected = timm.optim.param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.5)
    assert len(found) == len(expected) > 10
    for group, other in zip(found, expected, strict=True):
        assert all(one is two for one, two in zip(group["params"], other["params"], strict=True))
        assert group["lr"] == pytest.approx(5e-4 * other["lr_scale"]) and group["weight_decay"] == other["weight_decay"]
    rate_of = {id(parameter): group["lr"] for group in found for parameter in group["params"]}
    assert rate_of[id(network.fc.weight)] == 5e-4
    assert rate_of[id(network.conv1.weight)] == min(rate_of.values()) < 1e-5
    with refused("layer_decay", "2.0", "0..1"):
        recipe.optimizer(read_config(str(ROOT / "configs/finetune.py"), ["layer_decay=2.0"]))


def test_fine_tuning_from_a_file_ends_in_an_average(images, tmp_path, capsys):
    torch.manual_seed(1)
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path / "theirs.pth")
    assert main(["--config", "configs/finetune.py", "--policy", "trivial", "--data", str(images), "--work-dir",
                 str(tmp_path / "w"), "--image-size", "32", "--batch-size", "4", "--epochs", "1", "--weights",
                 str(tmp_path / "theirs.pth"), "--cfg-options", "classifier.name=resnet18", "workers=0"]) == 0
    assert_names(capsys.readouterr().out, "5 classes", "one of 2")
    meta = json.loads((tmp_path / "w/resnet18.json").read_text())
    assert (meta["weights"], meta["interpolation"], meta["crop_share"]) == ("ema", "bicubic", 0.95)


@pytest.mark.parametrize("name", ["a1", "a2", "a3"])
def test_a_step_of_resnet_strikes_back_is_the_step_of_timms_train_py(name):
    """Its parts as train.py puts them together: Mixup, BinaryCrossEntropy, create_optimizer_v2's Lamb."""
    config = read_config(str(ROOT / f"configs/pretrain_r50_rsb_{name}.py"), ["classifier.name=test_resnet"])
    torch.manual_seed(2)
    model = Classifier({**config.classifier, "num_classes": 5, "image_size": 32}, config.label_smoothing,
                       mixup=config.mixup, bce_threshold=config.bce_threshold).train()
    theirs = copy.deepcopy(model.network)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8) % 5
    wrapper = build_optim_wrapper(model, recipe.optimizer(config))
    mixup = timm.data.Mixup(**config.mixup, label_smoothing=config.label_smoothing, num_classes=5)
    criterion = timm.loss.BinaryCrossEntropy(target_threshold=config.bce_threshold)
    lamb = timm.optim.create_optimizer_v2(theirs, opt="lamb", lr=config.optimizer.lr,
                                          weight_decay=config.optimizer.weight_decay)
    for step in range(3):
        np.random.seed(step)
        torch.manual_seed(step)  # drop path
        ours = model.train_step({"image": images, "label": labels}, wrapper)["loss"]
        np.random.seed(step)
        torch.manual_seed(step)
        mixed, targets = mixup(model.data_preprocessor({"image": images, "label": labels})["images"], labels)
        loss = criterion(theirs(mixed), targets)
        loss.backward()
        lamb.step()
        lamb.zero_grad()
        assert float(ours) == pytest.approx(float(loss), abs=1e-6)
        # LAMB divides by the root of a mean square: a gradient near zero makes its last bits large from step to step.
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(model.network.state_dict()[name], tensor, atol=1e-6 * 4**step, rtol=1e-6)
    first = timm.create_model("test_resnet", num_classes=5).state_dict()["fc.weight"]
    assert not torch.allclose(first, theirs.state_dict()["fc.weight"])


def test_repeated_augmentation_shows_copies_with_draws_of_their_own(images):
    train = scan_folder(images / "train")
    folder = ImageFolder(train, 12, train=True, seed=3)
    sampler = WholeBatches(folder, batch=5, seed=1, repeats=3)
    order = list(sampler)
    assert len(order) == len(sampler) == 15 and [place % 16 for place in order[:3]] == [order[0] % 16] * 3
    assert sorted(place // 16 for place in order[:3]) == [0, 1, 2] and len({place % 16 for place in order}) == 5
    sampler.set_epoch(1)
    assert list(sampler) != order
    copies = [folder[order[0] % 16 + 16 * copy] for copy in range(3)]
    assert len({copy["label"] for copy in copies}) == 1
    assert not torch.equal(copies[0]["image"], copies[1]["image"])
    assert torch.equal(copies[1]["image"], folder[order[0] % 16 + 16]["image"])


def test_the_shortest_recipe_of_resnet_strikes_back_runs(images, tmp_path, recorded):
    notes = recorded(["--config", "configs/pretrain_r50_rsb_a3.py", "--policy", "one-op", "--data", str(images),
                      "--work-dir", str(tmp_path), "--image-size", "32", "--batch-size", "8", "--epochs", "1",
                      "--cfg-options", "classifier.name=test_resnet", "workers=0", "train_size=24", "repeats=3"])
    assert notes.sides == [24, 24]
    meta = json.loads((tmp_path / "test_resnet.json").read_text())
    assert (meta["interpolation"], meta["crop_share"]) == ("bicubic", 0.95)


def average_of(states, momentum, every=1):
    """The exponential moving average of the weights after each update; the first stands as it is."""
    average = {name: tensor.clone() for name, tensor in states[every - 1].items()}
    for state in states[2 * every - 1::every]:
        for name, tensor in average.items():
            if tensor.is_floating_point():
                tensor += momentum * (state[name] - tensor)
    return average


@pytest.mark.parametrize("parts", [1, 2])
def test_the_average_of_the_weights_is_saved_and_exported_and_measured(images, tmp_path, recorded, parts):
    arguments = flags(images, tmp_path, options=[*EMA, f"accumulation={parts}"], network="test_resnet", size=32)
    notes = recorded(arguments)
    assert len(notes.states) == 4 * parts
    saved, expected = weights(tmp_path, 2), average_of(notes.states, 0.3, every=parts)
    floating = {name for name, tensor in expected.items() if tensor.is_floating_point()}
    assert_close({name: saved[name] for name in floating}, {name: expected[name] for name in floating})
    assert not torch.allclose(saved["network.conv1.0.weight"], notes.states[-1]["network.conv1.0.weight"], rtol=1e-3)
    exported, meta = load_backbone(tmp_path / "test_resnet.pth")
    assert all(torch.equal(tensor, saved[f"network.{name}"]) for name, tensor in exported.items())
    assert meta["weights"] == "ema"

    # A resume of a finished run measures and exports the average too.
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.json", "test_resnet.json")}
    for name in before:
        (tmp_path / name).unlink()
    assert main([*arguments[:1], arguments[1], "--resume", *arguments[2:]]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_two_parts_of_four_images_train_as_a_batch_of_eight(images, tmp_path, recorded):
    options = ["optimizer.lr=3", "warmup_epochs=0", *EMA]
    network = {"network": "test_convnext", "size": 32}  # without BatchNorm, which would see four images
    whole = recorded(flags(images, tmp_path / "whole", options=options, **network))
    parts = recorded(flags(images, tmp_path / "parts", options=[*options, "accumulation=2"], **network))
    assert parts.rates == pytest.approx(np.repeat(whole.rates, 2).tolist())
    for update, state in enumerate(whole.states):
        assert_close(state, parts.states[2 * update + 1])
    assert_close(weights(tmp_path / "whole", 2), weights(tmp_path / "parts", 2))
    moved = whole.states[-1]["network.head.fc.weight"] - whole.states[0]["network.head.fc.weight"]
    assert moved.abs().max() > 1e-2


@pytest.mark.slow
def test_two_processes_in_two_parts_train_and_average_as_one(images, tmp_path):
    options = ["optimizer.lr=3", "warmup_epochs=0", *EMA]
    assert main(flags(images, tmp_path / "one", options=options, network="test_convnext", size=32)) == 0
    command = flags(images, tmp_path / "two", "--gpus", "2", options=[*options, "accumulation=2"], network="test_convnext",
                    size=32)
    result = subprocess.run([sys.executable, "-m", "dada_det.commands.pretrain", *command], capture_output=True, text=True,
                            cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    assert_close(weights(tmp_path / "one", 2), weights(tmp_path / "two", 2))


def test_a_resume_with_everything_on_ends_as_an_uninterrupted_run(images, tmp_path, monkeypatch):
    def interrupted(epoch, arguments):
        original = pretrain.WatchImages.before_train_epoch

        def stop(self, runner):
            if runner.epoch == epoch:
                raise KeyboardInterrupt
            original(self, runner)

        with monkeypatch.context() as patch:
            patch.setattr(pretrain.WatchImages, "before_train_epoch", stop)
            assert main(arguments) == 130

    options = [*EMA, "accumulation=2", "progressive_size=8", "warmup_epochs=2", "color_jitter.hue=0.1", "lighting=0.1"]
    assert main(flags(images, tmp_path / "whole", epochs=20, options=options)) == 0
    parts = [flags(images, tmp_path / "parts", *resume, epochs=20, options=[*options, workers])
             for resume, workers in (((), "workers=0"), (("--resume",), "workers=1"), (("--resume",), "workers=0"))]
    interrupted(1, parts[0])  # within the warm-up
    interrupted(15, parts[1])  # where the images grow
    assert main(parts[2]) == 0
    whole, resumed = (check_checkpoint(tmp_path / name / "epoch_20.pth") for name in ("whole", "parts"))
    assert_equal(whole["state_dict"], resumed["state_dict"])
    assert_equal(whole["ema_state_dict"], resumed["ema_state_dict"])
    assert (tmp_path / "whole" / "metrics.json").read_text() == (tmp_path / "parts" / "metrics.json").read_text()


def test_a_run_is_not_resumed_with_another_recipe(images, tmp_path, capsys):
    assert main(flags(images, tmp_path / "w", epochs=1)) == 0
    assert main(flags(images, tmp_path / "w", "--resume", epochs=1, options=EMA)) == 2
    assert_names(capsys.readouterr().err, "epoch_1.pth", "ema.momentum nothing instead of 0.3", "--work-dir")
