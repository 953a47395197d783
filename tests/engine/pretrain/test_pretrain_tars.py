"""Pretraining from tar shards: the weights that the same images give as folders, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dada_det.commands.pretrain import main
from dada_det.engine.pretrain import run as pretrain
from dada_det.engine.runtime.checkpoint import check_checkpoint
from tests.conftest import write_noise, write_shard
from tests.messages import assert_error


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folders/{train,val}/class<k>/*.png, and shards/{train,val}/*.tar of the same in another order."""
    root = tmp_path_factory.mktemp("data")
    for split, images in (("train", 8), ("val", 3)):
        write_noise(root / "folders" / split, classes=3, images=images, side=24, spread=60)
        files = sorted((root / "folders" / split).glob("*/*.png"))
        np.random.default_rng(1).shuffle(files)  # type: ignore[arg-type]
        for shard in range(3):
            samples: list[tuple[str, bytes]] = []
            for path in files[shard::3]:  # keys need only be unique within their shard: here by the class in front
                key = f"{path.parent.name}/{path.stem}"
                samples += [(f"{key}.png", path.read_bytes()), (f"{key}.cls", path.parent.name[-1].encode())]
            write_shard(root / "shards" / split / f"{shard:05d}.tar", samples)
    (root / "shards" / "classes.txt").write_text("class0\nclass1\nclass2\n")
    return root


def flags(data: Path, work_dir: Path, *more: str, workers: int = 0) -> list[str]:
    return ["--policy", "dada-imagenet", "--data", str(data), "--work-dir", str(work_dir), "--image-size", "16",
            "--batch-size", "8", "--epochs", "2", *more, "--cfg-options", "classifier.name=convnet", f"workers={workers}"]


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return check_checkpoint(work_dir / "epoch_2.pth")["state_dict"]


def test_shards_give_the_weights_of_folders_after_a_resume_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture) -> None:
    assert main(flags(data / "folders", tmp_path / "folders")) == 0
    assert main(flags(data / "shards", tmp_path / "shards", workers=2)) == 0
    original = pretrain.WatchImages.before_train_epoch

    def stop(self: pretrain.WatchImages, runner: pretrain.Runner) -> None:
        if runner.epoch == 1:
            raise KeyboardInterrupt
        original(self, runner)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.WatchImages, "before_train_epoch", stop)
        assert main(flags(data / "shards", tmp_path / "resumed")) == 130
    assert main(flags(data / "shards", tmp_path / "resumed", "--resume")) == 0
    expected = weights(tmp_path / "folders")
    for name in ("shards", "resumed"):
        found = weights(tmp_path / name)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
        assert (tmp_path / name / "metrics.json").read_text() == (tmp_path / "folders" / "metrics.json").read_text()
    assert f"on 9 images of {data}/shards/val" in capsys.readouterr().out


def test_a_shard_without_a_label_ends_the_command_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / "data" / split / "0.tar", {"dog.jpg": b"x"})
    assert main(flags(tmp_path / "data", tmp_path / "work")) == 2
    assert_error(capsys.readouterr().err, "pretrain_r50.sh", "'dog.jpg'", tmp_path / "data/train/0.tar", "pack 'dog.cls'")
