"""tools/train_arch.py: both kinds of data, what it writes, --resume, and every promised sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dada_det.commands.train_arch import main
from dada_det.data.cifar import write_cifar10
from dada_det.engine.compare import trial
from dada_det.engine.compare.trial import UNFINISHED
from dada_det.engine.pretrain import classifier
from dada_det.engine.runtime.identity import own_folder
from dada_det.models.genotype import Genotype
from tests.conftest import write_noise
from tests.messages import assert_error, assert_names

CELLS = Genotype.from_text("sep_conv_3x3:0,skip_connect:1|max_pool_3x3:0,skip_connect:1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """genotype.json, and train/ and val/ of images whose class is their brightness."""
    root = tmp_path_factory.mktemp("data")
    CELLS.save(root / "genotype.json")
    for part, seed in (("train", 0), ("val", 1)):
        write_noise(root / part, 3, 8, side=20, spread=20, seed=seed)
    return root


def train(folder: Path, work_dir: Path, *flags: str) -> int:
    return main([str(folder / "genotype.json"), "--policy", "none", "--data", str(folder), "--work-dir", str(work_dir),
                 "--epochs", "3", "--channels", "4", "--layers", "3", "--batch-size", "8", "--image-size", "16", *flags])


def test_it_trains_on_folders_and_says_what_it_wrote(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(folder, tmp_path, "--epochs", "20") == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert_names(out[0], "train", "3 cells", "4 channels", "20 epochs", "24 + 24 images", "16 px")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert_names(out[-1], "train", f"top-1 {written['top1']:.2f} %", "top-5 100.00 %", tmp_path / "metrics.json")
    assert written["top1"] > 60
    assert written["identity"]["model"] == f"darts/4/3/0.2/1/{CELLS}" and written["identity"]["policy"] == "none"
    assert written["identity"]["lr"] == pytest.approx(0.025 * 8 / 96) and written["identity"]["weight_decay"] == 3e-4


def test_it_trains_on_cifar10(folder: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randint(0, 256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(40) % 10
    write_cifar10(tmp_path / "cifar", (images, labels), (images[:10], labels[:10]))
    assert main([str(folder / "genotype.json"), "--policy", "cutout", "--data", str(tmp_path / "cifar"), "--work-dir",
                 str(tmp_path / "w"), "--epochs", "1", "--channels", "2", "--layers", "2", "--batch-size", "20"]) == 0
    identity = json.loads((tmp_path / "w/metrics.json").read_text())["identity"]
    assert (identity["classes"], identity["padding"], identity["image_size"], identity["mirror"]) == (10, 4, 32, True)


def test_drop_path_rises_and_the_auxiliary_head_joins_the_loss(folder: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float, bool]] = []

    def before_train_epoch(self: Any, runner: Any, before: Any = classifier.TellProgress.before_train_epoch) -> None:
        before(self, runner)
        network = runner.model.network
        seen.append((network.drop_path, network.progress, network.auxiliary is not None))

    monkeypatch.setattr(classifier.TellProgress, "before_train_epoch", before_train_epoch)
    assert train(folder, tmp_path) == 0
    assert seen == [(0.2, epoch / 3, True) for epoch in range(3)]
    seen.clear()
    assert train(folder, tmp_path, "--no-auxiliary", "--drop-path", "0", "--epochs", "1") == 0
    assert seen == [(0.0, 0.0, False)]


def test_a_resumed_training_ends_in_the_same_figures(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)
    weights = []

    def train_and_keep(runner: Any, run: Any = trial.TrialRunner.train) -> Any:
        model = run(runner)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model

    monkeypatch.setattr(trial.TrialRunner, "train", train_and_keep)
    kept = tmp_path / "kept"
    own_folder(kept / UNFINISHED, {}, keep=False)
    after = trial.TimedCheckpoint.after_train_epoch

    def copied(self: Any, runner: Any) -> None:
        after(self, runner)
        if (Path(runner.work_dir) / "epoch_2.pth").exists() and Path(runner.work_dir).parent != kept:
            shutil.copy(Path(runner.work_dir) / "epoch_2.pth", kept / UNFINISHED)

    monkeypatch.setattr(trial.TimedCheckpoint, "after_train_epoch", copied)
    assert train(folder, tmp_path / "whole", "--policy", "random") == 0
    assert [path.name for path in kept.rglob("*.pth")] == ["epoch_2.pth"]
    assert train(folder, kept, "--policy", "random", "--resume") == 0
    whole, resumed = weights
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (kept / "metrics.json").read_bytes() == (tmp_path / "whole/metrics.json").read_bytes()
    assert train(folder, kept, "--policy", "random", "--resume") == 0 and len(weights) == 2  # a finished one is read
    capsys.readouterr()
    assert train(folder, kept, "--policy", "none", "--resume") == 2
    assert "is of another run (policy " in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "names"), [
    (["--policy", "nobody"], ("nobody", "none, random")),
    (["--data", "nowhere"], ("nowhere", "CIFAR-10")),
    (["--batch-size", "99"], ("99", "24 training images")),
    (["--image-size", "4"], ("--image-size", "4", "8 px")),
])
def test_mistakes_get_one_sentence(flags: list[str], names: tuple[str, ...], folder: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    given = ["--image-size", "32", *flags] if "nowhere" in flags else flags
    assert train(folder, tmp_path, *given) == 2
    assert_error(capsys.readouterr().err, "train_arch.py", *names)


def test_mistakes_in_the_genotype_and_the_size(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.json").write_text('{"schema": 1}')
    for path, names in ((tmp_path / "bad.json", ("normal, reduction", "missing")), (tmp_path / "none.json", ("genotype",))):
        assert main([str(path), "--policy", "none", "--data", str(folder)]) == 2
        assert_error(capsys.readouterr().err, "train_arch.py", path, *names)
    assert main([str(folder / "genotype.json"), "--policy", "none", "--data", str(tmp_path), "--image-size", "16"]) == 2
    assert_names(capsys.readouterr().err, "--image-size", "16", "CIFAR-10", "32 px", "leave it out")
    (tmp_path / "train").mkdir()
    assert main([str(folder / "genotype.json"), "--policy", "none", "--data", str(tmp_path)]) == 2
    assert_error(capsys.readouterr().err, "train_arch.py")
    with pytest.raises(SystemExit):
        main([str(folder / "genotype.json"), "--policy", "none", "--drop-path", "1"])
    assert "1 is no probability below 1" in capsys.readouterr().err
