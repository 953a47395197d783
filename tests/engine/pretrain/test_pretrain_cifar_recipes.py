"""The recipes of the CIFAR and SVHN tables, and data sets in their own files, through the pretraining command."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from dada_det.augment.named import resolve_policy
from dada_det.commands.common import load_config
from dada_det.commands.pretrain import main
from dada_det.engine.pretrain import run as pretrain
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.models.classifiers import OWN, build_classifier
from dada_det.models.pyramidnet import PyramidNet
from dada_det.models.shake import ShakeShake
from tests.data.standard_files import (
    write_aircraft,
    write_cars,
    write_cifar10_binary,
    write_cifar100_binary,
    write_svhn,
)
from tests.engine.pretrain.test_pretrain_data import curve
from tests.messages import assert_error, assert_names

WRITERS = {"cifar10": write_cifar10_binary, "cifar100": write_cifar100_binary, "svhn": write_svhn}
# DADA's released confs/*.yaml: network, epochs, batch, lr, weight decay, Cutout. Where they warm up, it is from a quarter of
# this lr in 5 epochs.
RECIPES = {
    "cifar10_wrn40_2": ("wide_resnet40_2", 200, 512, 0.4, 2e-4, 16),
    "cifar10_wrn28_10": ("wide_resnet28_10", 200, 512, 0.4, 5e-4, 16),
    "cifar10_shake26_2x32d": ("shake_shake26_2x32d", 1800, 512, 0.04, 1e-3, 16),
    "cifar10_shake26_2x96d": ("shake_shake26_2x96d", 1800, 512, 0.04, 1e-3, 16),
    "cifar10_shake26_2x112d": ("shake_shake26_2x112d", 1800, 512, 0.04, 2e-3, 16),
    "cifar10_pyramidnet272": ("pyramidnet272_a200_shakedrop", 1800, 64, 0.05, 5e-5, 16),
    "cifar100_wrn40_2": ("wide_resnet40_2", 200, 512, 0.4, 5e-4, 16),
    "cifar100_wrn28_10": ("wide_resnet28_10", 200, 512, 0.4, 5e-4, 16),
    "cifar100_shake26_2x96d": ("shake_shake26_2x96d", 1800, 512, 0.04, 2.5e-3, 16),
    "cifar100_pyramidnet272": ("pyramidnet272_a200_shakedrop", 1800, 64, 0.025, 5e-4, 16),
    "svhn_wrn28_10": ("wide_resnet28_10", 200, 1024, 0.08, 5e-4, 20),
    "svhn_shake26_2x96d": ("shake_shake26_2x96d", 200, 1024, 0.08, 1.5e-4, 20),
}
# README of the released code: test error with the policy, with Cutout alone, baseline.
ERRORS = {"cifar10_wrn40_2": (3.6, 4.1, 5.3), "cifar10_wrn28_10": (2.7, 3.1, 3.9), "cifar10_shake26_2x32d": (2.7, 3.0, 3.6),
          "cifar10_shake26_2x96d": (2.0, 2.6, 2.9), "cifar10_shake26_2x112d": (2.0, 2.6, 2.8),
          "cifar10_pyramidnet272": (1.7, 2.3, 2.7), "cifar100_wrn40_2": (20.9, 25.2, 26.0),
          "cifar100_wrn28_10": (17.5, 18.4, 18.8), "cifar100_shake26_2x96d": (15.3, 16.0, 17.1),
          "cifar100_pyramidnet272": (11.2, 12.2, 14.0), "svhn_wrn28_10": (1.2, 1.3, 1.5),
          "svhn_shake26_2x96d": (1.1, 1.2, 1.4)}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Kind -> folder of a data set of some forty images."""
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in WRITERS.items()}


class Recorder(Hook):
    """Notes of each step the learning rate, the images as the network gets them, and what was drawn for them."""

    def __init__(self):
        self.rates, self.images, self.batches = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        self.batches.append(data_batch)
        self.images.append(runner.model.data_preprocessor(data_batch)["images"])
        self.options = runner.optim_wrapper.clip_grad_kwargs, runner.optim_wrapper.optimizer.defaults


@pytest.fixture
def recorded(monkeypatch):
    def run(arguments):
        recorder = Recorder()
        averaging = pretrain.averaging
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "averaging", lambda config: [*averaging(config), recorder])
            assert main(arguments) == 0
        return recorder
    return run


def flags(config, root, work_dir, *more, policy="none", options=("classifier.name=convnet",)):
    return ["--config", f"configs/{config}.py", "--policy", policy, "--data", str(root), "--work-dir", str(work_dir),
            "--epochs", "1", "--batch-size", "16", *more, "--cfg-options", "workers=0", *options]


def test_there_is_a_recipe_for_every_config_of_these_data_sets():
    root = Path(__file__).resolve().parents[3] / "configs"
    assert {path.stem for kind in WRITERS for path in root.glob(f"{kind}_*.py")} == set(RECIPES) == set(ERRORS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_its_source_and_the_published_figures_and_that_it_was_not_run(name):
    docstring = Path(load_config(f"configs/{name}.py").filename).read_text().split('"""')[1]
    policy, cutout, baseline = ERRORS[name]
    assert re.search(rf"not run by this project; published: test error {policy} %, with Cutout alone {cutout} %,\s+baseline "
                     rf"{baseline} %", docstring)
    assert "released code, fast-autoaugment/confs/" in docstring and "Hours: not run" in docstring
    command = re.search(r"Command: tools/pretrain_r50.sh --config (\S+) --policy (\S+) --data data/(\S+)\n", docstring)
    kind = name.partition("_")[0]
    assert command.groups() == (f"configs/{name}.py", f"dada-{kind}", kind)
    assert resolve_policy(command[2]) is not None


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_run_of_every_recipe(name, roots, tmp_path, recorded, capsys):
    network, epochs, batch, lr, weight_decay, cutout = RECIPES[name]
    config, kind = load_config(f"configs/{name}.py"), name.partition("_")[0]
    assert (config.classifier.name, config.epochs, config.batch_size) == (network, epochs, batch) and network in OWN
    assert config.auto_scale_lr.base_batch_size == batch and config.optimizer.lr == lr and config.label_smoothing == 0
    assert (config.warmup_epochs, config.warmup_from) == ((0 if batch == 64 else 5), 0.25)

    notes = recorded(flags(name, roots[kind], tmp_path, policy=f"dada-{kind}"))
    images = 42 if kind == "svhn" else 40  # SVHN: train and extra
    assert len(notes.rates) == images // 16
    assert notes.rates[0] == pytest.approx(lr * 16 / batch)  # at most a tenth of two steps warms up
    clip, defaults = notes.options
    assert clip == {"max_norm": 5}
    assert (defaults["weight_decay"], defaults["momentum"], defaults["nesterov"]) == (weight_decay, 0.9, True)
    boxes = torch.cat([batch["cutout"] for batch in notes.batches])
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], torch.full((len(boxes), 2), cutout))
    assert all(images.shape == (16, 3, 32, 32) for images in notes.images)
    assert_names(capsys.readouterr().out.splitlines()[-1], "metrics.json", tmp_path, re.compile(r"top-1 [\d.]+ %"),
                 re.compile(r"top-5 [\d.]+ %"), "4 images", roots[kind], "1 epochs", f"policy dada-{kind}")
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"top1", "top5"}
    classes = check_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]["network.13.weight"].shape[0]
    assert classes == (100 if kind == "cifar100" else 10)


def test_the_rate_warms_up_from_a_quarter_in_five_epochs():
    rates = curve(load_config("configs/cifar10_wrn40_2.py"), 4)
    assert [rates[step] for step in (0, 10, 20)] == pytest.approx([0.1, 0.25, 0.4]) and max(rates) == rates[20]
    assert rates[20 + 390] == pytest.approx(0.2) and 0 < rates[-1] < 1e-4
    rates = curve(load_config("configs/cifar10_pyramidnet272.py"), 1)
    assert rates[0] == 0.05 and rates[900] == pytest.approx(0.025)


def test_images_are_normalised_by_cifars_mean_and_the_cut_square_is_that_mean(roots, tmp_path, recorded):
    notes = recorded(flags("cifar10_wrn40_2", roots["cifar10"], tmp_path))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in
                 ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]))  # torchvision's figures of CIFAR-10, as all use them
    for batch, images in zip(notes.batches, notes.images, strict=True):
        whole = (batch["image"] / 255 - mean) / std
        for index, (left, top, right, bottom) in enumerate(batch["cutout"].tolist()):
            whole[index, :, max(top, 0):bottom, max(left, 0):right] = 0
        torch.testing.assert_close(images, whole, rtol=1e-5, atol=1e-5)


def test_the_baseline_of_the_tables_is_without_cutout(roots, tmp_path, recorded):
    notes = recorded(flags("cifar10_wrn40_2", roots["cifar10"], tmp_path,
                           options=["classifier.name=convnet", "cutout=None"]))
    assert len(notes.batches) == 2 and not any("cutout" in batch for batch in notes.batches)


def small(classes):
    """A network with the draws of Shake-Shake and of ShakeDrop."""
    return nn.Sequential(ShakeShake(8, 4, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 1), PyramidNet(11, 4, classes))


def test_a_resume_draws_the_same_squares_and_the_same_branches(roots, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(OWN, "small", small)
    original = pretrain.WatchImages.before_train_epoch

    def stop(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt
        original(self, runner)

    def two_epochs(name, *more):
        arguments = flags("cifar10_wrn40_2", roots["cifar10"], tmp_path / name, options=["classifier.name=small", *more])
        arguments[arguments.index("--epochs") + 1] = "2"
        return arguments

    assert main(two_epochs("whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.WatchImages, "before_train_epoch", stop)
        assert main(two_epochs("parts")) == 130
    assert main(["--resume", *two_epochs("parts")]) == 0
    whole, resumed = (check_checkpoint(tmp_path / name / "epoch_2.pth")["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert main(["--resume", *two_epochs("parts", "cutout=8")]) == 2
    assert "(cutout 16 instead of 8)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({recipe[0] for recipe in RECIPES.values()}))
def test_one_step_of_every_network_of_the_tables(name):
    torch.manual_seed(0)
    network = build_classifier(name, num_classes=10, image_size=32).train()
    loss = nn.functional.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([3, 7]))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in network.parameters())
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


FINE_GRAINED = {"stanford_cars": write_cars, "fgvc-aircraft-2013b": write_aircraft}


@pytest.mark.parametrize("name", FINE_GRAINED)
def test_fine_grained_data_sets_train_as_they_are_unpacked(name, tmp_path, capsys):
    root = FINE_GRAINED[name](tmp_path / "data")
    arguments = flags("pretrain_r50", root, tmp_path / "w", "--image-size", "32", policy="dada-imagenet",
                      options=["classifier.name=test_resnet"])
    arguments[arguments.index("16")] = "6"
    assert main(arguments) == 0
    assert_names(capsys.readouterr().out, "test_resnet.pth, test_resnet.json, metrics.json", tmp_path / "w")
    classes = json.loads((tmp_path / "w" / "test_resnet.json").read_text())["classes"]
    assert ("F/A-18" in classes) == (name == "fgvc-aircraft-2013b") and len(classes) == 3


def test_another_mean_goes_with_the_exported_weights(roots, tmp_path):
    assert main(flags("svhn_wrn28_10", roots["svhn"], tmp_path, options=["classifier.name=test_resnet",
                                                                         "data.extra=False"])) == 0
    meta = json.loads((tmp_path / "test_resnet.json").read_text())
    assert meta["mean"] == [125.307, 122.961, 113.8575] and meta["classes"] == list("0123456789")


def test_mistakes_are_told_in_one_sentence(roots, tmp_path, capsys):
    def told(arguments, *names):
        assert main(arguments) == 2
        assert_error(capsys.readouterr().err, "pretrain_r50.sh", *names)

    cifar = roots["cifar10"]
    told(flags("cifar100_wrn28_10", cifar, tmp_path), cifar, "no CIFAR-100", "cifar-100-binary/train.bin", "unpack")
    told(flags("svhn_wrn28_10", cifar, tmp_path), cifar, "train_32x32.mat", "download")
    told(flags("cifar10_wrn40_2", cifar, tmp_path, "--val-data", str(cifar)), "cifar10", f"leave --val-data {cifar} out")
    told(flags("cifar10_wrn40_2", cifar, tmp_path, options=["kind=mnist"]), "kind", "'mnist'", "imagenet",
         "cifar10, cifar100, svhn")
    told(flags("cifar10_wrn40_2", cifar, tmp_path, "--image-size", "48"), "32 x 32", "padding = 4", "48 px", "--image-size")
    told(flags("cifar10_wrn40_2", cifar, tmp_path, options=["cutout=-1"]), "cutout", "-1", "pixels", "None")
    told(flags("cifar10_wrn40_2", cifar, tmp_path, options=["padding=four"]), "padding", "'four'", "pixels", "None")


@pytest.mark.slow
def test_two_processes_train_on_arrays(roots, tmp_path, capfd):
    assert main(flags("cifar10_wrn40_2", roots["cifar10"], tmp_path / "w", "--gpus", "2")) == 0
    assert "on 4 images of" in capfd.readouterr().out
    assert main(flags("cifar100_wrn40_2", roots["cifar10"], tmp_path / "w", "--gpus", "2")) == 2
    assert capfd.readouterr().err.count("holds no CIFAR-100") == 1
