"""DDAS through the search's command: its two files, --resume, and the schedule's replay in pretraining."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from dada_det.augment import Policy
from dada_det.augment.schedule import Schedule, ScheduleTransform
from dada_det.commands.pretrain import main as pretrain
from dada_det.commands.search import main
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder
from dada_det.engine.pretrain.data import training_images
from dada_det.engine.pretrain.preprocessor import DrawnImages, ImagePreprocessor
from dada_det.engine.search.run import METHODS
from dada_det.search.ddas import Ddas
from tests.conftest import write_noise
from tests.messages import assert_error, assert_names


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_noise(root / split, 3, 8, side=24, spread=40)
    return root


def search(data: Path, work_dir: Path, *flags: str) -> int:
    return main(["--config", "configs/debug/search_ddas.py", "--data", str(data), "--work-dir", str(work_dir),
                 "--image-size", "16", "--batch-size", "4", "--epochs", "3", *flags])


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("found")
    assert search(data, folder) == 0
    return folder


def test_writes_the_schedule_of_its_epochs_and_their_average(found: Path) -> None:
    schedule = Schedule.load(found / "schedule.json")
    assert [stage.until for stage in schedule.stages] == pytest.approx([1 / 3, 2 / 3, 1]) and len(schedule.atoms) == 28
    assert schedule.stages[0].probability == pytest.approx(0.35, abs=0.03) and schedule.ranges == "strength"
    assert len({stage.preferences for stage in schedule.stages}) == 3
    assert max(schedule.stages[-1].preferences) > 1.05 / 28
    assert Policy.load(found / "policy.json") == schedule.average() and schedule.mirror is True
    provenance = dict(schedule.provenance)
    assert provenance.pop("data") and provenance == {"method": "ddas", "config": "search_ddas", "seed": 0, "groups": "auto",
                                                     "epoch": 3, "version": "0.1.0"}


def test_the_closing_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, "--epochs", "1") == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert_names(last, "28 atoms", tmp_path / "schedule.json", "policy.json",
                 re.compile(r"probability of augmentation 0\.3\d"), re.compile("most used: [A-Z]"))


def test_a_resumed_search_ends_in_the_same_files(data: Path, found: Path, tmp_path: Path) -> None:
    shutil.copy(found / "epoch_2.pth", tmp_path)  # all that a kill in the third epoch leaves
    assert search(data, tmp_path, "--resume") == 0
    for name in ("policy.json", "schedule.json"):
        assert (tmp_path / name).read_bytes() == (found / name).read_bytes()


@pytest.mark.parametrize(("flags", "names"), [
    (["--cfg-options", "method=dads"], ("'dads'", "dada, ddas")),
    (["--cfg-options", "search.mode=paper"], ("mode", "ddas", "levels, draws_per_image")),
    (["--cfg-options", "search.draws_per_image=0"], ("search.draws_per_image is 0", "whole number of at least 1")),
    (["--cfg-options", "operations=[Blur]"], ("'Blur'",))])
def test_mistakes_get_one_sentence(flags: list[str], names: tuple[str, ...], data: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, *flags) == 2
    assert_error(capsys.readouterr().err, "search_imagenet.sh", *names)


def test_a_checkpoint_of_another_method_is_refused(data: Path, found: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture) -> None:
    shutil.copy(found / "epoch_3.pth", tmp_path)
    assert main(["--config", "configs/debug/search.py", "--data", str(data), "--work-dir", str(tmp_path), "--image-size",
                 "16", "--batch-size", "4", "--epochs", "3", "--resume"]) == 2
    assert "is of another run" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("place", ["workers", "device"])
def test_the_draws_follow_the_epoch(place: str, workers: int, data: Path) -> None:
    """Two of four epochs leave the images as they are, two invert some; persistent workers see the epoch change."""
    schedule = Schedule.from_dict({"schema": 1, "ranges": "strength", "atoms": [
        {"name": None, "magnitude": 0.0}, {"name": "Invert", "magnitude": 0.0}], "schedule": [
            {"until": 0.5, "probability": 1.0, "preferences": [1.0, 0.0]},
            {"until": 1.0, "probability": 0.8, "preferences": [0.5, 0.5]}]})
    images = scan_folder(data / "train")
    config = Config({"policy_on": place, "epochs": 4, "image_size": 16, "seed": 3, "classifier": {"name": "convnet"}})
    dataset = training_images(config, images, schedule)
    assert isinstance(dataset, DrawnImages) == (place == "device")
    plain = ImageFolder(images, 16, train=True, seed=3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=24, num_workers=workers, persistent_workers=workers > 0)
    preprocessor, same = ImagePreprocessor([0.0] * 3, [1.0] * 3), ScheduleTransform(schedule)
    for epoch in range(4):
        for own in (dataset, plain):
            own.set_epoch(epoch)
        (batch,) = loader
        got = preprocessor(batch)["images"].to(torch.uint8)
        bare = torch.stack([plain[index]["image"] for index in range(24)])
        assert torch.equal(got, bare) == (epoch < 2)
        same.progress = epoch / 4
        wanted = ImageFolder(images, 16, train=True, transform=same, seed=3)
        wanted.set_epoch(epoch)
        assert torch.equal(got, torch.stack([wanted[index]["image"] for index in range(24)]))


def test_pretraining_replays_a_schedule_and_resumes_into_the_same_weights(data: Path, found: Path, tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture) -> None:
    def flags(folder: str, policy: str = "schedule.json") -> list[str]:
        return ["--policy", str(found / policy), "--data", str(data), "--work-dir", str(tmp_path / folder), "--image-size",
                "16", "--batch-size", "8", "--epochs", "3", "--cfg-options", "classifier.name=convnet", "workers=0"]

    assert pretrain(flags("whole")) == 0
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole/epoch_2.pth", tmp_path / "resumed")
    assert pretrain([*flags("resumed")[:-3], "--resume", *flags("resumed")[-3:]]) == 0
    first, second = (torch.load(tmp_path / name / "epoch_3.pth", weights_only=False) for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, second["state_dict"][name]) for name, tensor in first["state_dict"].items())
    assert first["meta"]["identity"]["policy"] == Schedule.load(found / 'schedule.json').sha256[:12]
    shutil.copy(tmp_path / "whole/epoch_2.pth", tmp_path / "resumed")
    capsys.readouterr()
    assert pretrain([*flags("resumed", "policy.json")[:-3], "--resume", *flags("resumed")[-3:]]) == 2
    assert "is of another run" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "atoms", "lr", "val_batches"), [
    ("ddas_cifar10", 37, 0.05, 8), ("ddas_imagenet", 28, 0.05, 1), ("ddas_cifar10_paper", 37, 5e-3, 8),
    ("ddas_imagenet_paper", 28, 3e-3, 1), ("det_retinanet_ddas", 28, 0.05, 1)])
def test_the_configs_have_the_measured_rates_or_the_paper_s(name: str, atoms: int, lr: float, val_batches: int) -> None:
    config = Config.fromfile(f"configs/search_{name}.py")
    algorithm = METHODS[config.method](config)(nn.Identity())
    assert isinstance(algorithm, Ddas) and len(algorithm.space) == atoms
    settings, paper = algorithm.settings, name.endswith("paper")
    assert (config.policy_optimizer.lr, settings.probability_lr, settings.running_v) == \
        (lr, 1e-3 if paper else 0.02, not paper)
    assert (settings.draws_per_image, settings.val_batches) == (3, val_batches)
    assert json.dumps(settings.levels) == ("[2, 10, 14]" if "cifar10" in name else "[7, 14]")


def test_planted_py_measures_the_ddas_that_the_shipped_config_runs() -> None:
    measured, shipped = (Config.fromfile(f"configs/{name}.py") for name in ("debug/search_ddas", "search_ddas_imagenet"))
    for entry in ("method", "search", "policy_optimizer", "precision", "clip_grad", "mirror"):
        assert measured[entry] == shipped[entry]


def test_more_epochs_than_a_schedule_has_stages_are_refused_before_the_search(data: Path, tmp_path: Path,
                                                                              capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, "--epochs", "201") == 2
    assert_names(capsys.readouterr().err, "DDAS", "200", "--epochs", "201")


def test_what_another_method_has_left_in_the_folder_is_gone(data: Path, tmp_path: Path) -> None:
    for name in ("search.json", "history.json", "genotype.json", "proposal.json", "verdict.json"):
        (tmp_path / name).write_text("{}")
    assert search(data, tmp_path, "--epochs", "1") == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"policy.json", "schedule.json"}
