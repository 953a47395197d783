"""--weights of every command: what a training starts from, how its images are prepared, and what the files then say."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dada_det.commands import compare_policies, pretrain, search, train_arch
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.models.classifiers import build_classifier
from tests.conftest import write_noise
from tests.messages import assert_names

META = {"mean": [100.0, 110.0, 120.0], "std": [50.0, 60.0, 70.0], "channel_order": "RGB", "interpolation": "bicubic",
        "crop_share": 0.75}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_noise(root / "train", classes=3, images=8, side=24, spread=40)
    write_noise(root / "val", classes=3, images=4, side=24, spread=40, seed=1)
    return root


def write_weights(path: Path, name: str = "convnet", classes: int = 2) -> Path:
    """A file of somebody's network with META beside it."""
    torch.manual_seed(4)
    torch.save(build_classifier(name, classes, 32).state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(META))
    return path


def first_kernel(checkpoint: Path) -> torch.Tensor:
    return next(value for name, value in check_checkpoint(checkpoint)["state_dict"].items()
                if name.startswith("network.") and value.ndim == 4)


def test_pretraining_starts_from_the_file_and_hands_its_preprocessing_on(data: Path, tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture) -> None:
    file = write_weights(tmp_path / "somebody.pth", "resnet18")
    flags = ["--policy", "one-op", "--data", str(data), "--work-dir", str(tmp_path / "w"), "--image-size", "32",
             "--batch-size", "8", "--epochs", "1", "--weights", str(file)]
    options = ["--cfg-options", "classifier.name=resnet18", "workers=0", "optimizer.lr=0.0", "auto_scale_lr.enable=False"]
    assert pretrain.main([*flags, *options]) == 0
    out = capsys.readouterr().out
    assert_names(out, "resnet18 starts from", file, "2 classes", "one of 3")
    assert torch.equal(first_kernel(tmp_path / "w/epoch_1.pth"), torch.load(file, weights_only=True)["conv1.weight"])
    written = json.loads((tmp_path / "w/resnet18.json").read_text())
    assert META.items() <= written.items()
    # The exported file can be started from in its turn, with the same preprocessing; a resumed run wants the same file.
    other = tmp_path / "w/resnet18.pth"
    assert pretrain.main([*flags, "--resume", "--weights", str(other), *options]) == 2
    assert "weights" in capsys.readouterr().err
    assert pretrain.main([*flags, "--resume", *options]) == 0


def test_what_the_config_says_comes_before_the_weights_own(data: Path, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "somebody.pth", "resnet18")
    assert pretrain.main(["--policy", "none", "--data", str(data), "--work-dir", str(tmp_path / "w"), "--image-size", "32",
                          "--batch-size", "8", "--epochs", "1", "--weights", str(file), "--cfg-options",
                          "classifier.name=resnet18", "workers=0", "data_preprocessor.mean=[1.0,2.0,3.0]",
                          "crop_share=1.0"]) == 0
    written = json.loads((tmp_path / "w/resnet18.json").read_text())
    assert {**META, "mean": [1.0, 2.0, 3.0], "crop_share": 1.0}.items() <= written.items()


def test_a_search_starts_from_the_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_weights(tmp_path / "w.pth")
    assert search.main(["--config", "configs/debug/search.py", "--data", str(data), "--work-dir", str(tmp_path / "w"),
                        "--image-size", "16", "--batch-size", "4", "--epochs", "2", "--weights", str(file),
                        "--cfg-options", "weights_optimizer.lr=0.0"]) == 0
    assert "2 classes was replaced by a new one of 3" in capsys.readouterr().out
    assert torch.equal(first_kernel(tmp_path / "w/epoch_2.pth"), torch.load(file, weights_only=True)["0.weight"])


def test_every_trial_of_a_comparison_starts_from_the_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_weights(tmp_path / "w.pth")

    def compare(*flags: str) -> int:
        return compare_policies.main(["--data", str(data), "--work-dir", str(tmp_path / "w"), "--model", "convnet",
                                      "--epochs", "1", "--image-size", "16", "--batch-size", "10", "--seeds", "1", *flags,
                                      "--policies", "none"])

    assert compare("--weights", str(file)) == 0
    identity = json.loads((tmp_path / "w/runs/none-s0/metrics.json").read_text())["identity"]
    assert len(identity["weights"]) == 12
    capsys.readouterr()
    assert compare() == 2
    assert "is of another run" in capsys.readouterr().err


@pytest.mark.parametrize(("interpolation", "share"), [("nearest", 0.5), ("bicubic", 1.0)])
def test_images_are_cut_and_resized_as_the_weights_want_them(data: Path, interpolation: str, share: float) -> None:
    images = scan_folder(data / "val")
    folder = ImageFolder(images, 10, train=False, interpolation=interpolation, crop_share=share)
    image, side = Image.open(images.root / images.files[3]).convert("RGB"), 24 * share
    box = ((24 - side) / 2, (24 - side) / 2, (24 + side) / 2, (24 + side) / 2)
    wanted = image.resize((10, 10), Image.Resampling[interpolation.upper()], box=box)
    assert Image.fromarray(folder[3]["image"].permute(1, 2, 0).numpy()).tobytes() == wanted.tobytes()


def test_mistakes_are_told_before_anything_is_trained(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = ["--data", str(data), "--work-dir", str(tmp_path / "w")]
    cases = [
        (pretrain.main, ["--policy", "none", "--weights", "nowhere.pth"], ("nowhere.pth",)),
        (pretrain.main, ["--policy", "none", "--weights", "timm", "--cfg-options", "classifier.name=convnet"],
         ("timm", "convnet")),
        (search.main, ["--config", "configs/search_det_retinanet.py", "--weights", "nowhere.pth"],
         ("--weights", "classifier", "detector")),
        (compare_policies.main, ["--model", "convnet", "--epochs", "1", "--batch-size", "8", "--policies", "none",
                                 "--weights", "nowhere.pth"],
         ("nowhere.pth",)),
        (train_arch.main, ["genotype.json", "--policy", "none", "--weights", "timm"],
         ("timm", "searched network")),
    ]
    for main, flags, names in cases:
        assert main([*flags, *common]) == 2
        assert_names(capsys.readouterr().err, *names)
