"""The joint search as a command: its three files, determinism, --resume, kills, two processes, every promised sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dada_det.augment import Policy
from dada_det.commands.search import main
from dada_det.data.cifar import write_cifar10
from dada_det.models.genotype import Genotype
from tests.conftest import write_noise
from tests.messages import assert_error, assert_names

FILES = ("genotype.json", "policy.json", "search.json")
SMALL = ["classifier.cells=2", "classifier.nodes=1", "operations=[Invert,Rotate,Cutout]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_noise(root / "train", 3, 8, side=24, spread=40)
    return root


def arguments(data: Path, work_dir: Path, *flags: str, options: list[str] | None = None) -> list[str]:
    return ["--config", "configs/debug/search_daas.py", "--data", str(data), "--work-dir", str(work_dir), "--image-size",
            "16", "--batch-size", "4", "--epochs", "2", *flags, "--cfg-options", *SMALL, *(options or [])]


def search(*given: Any, **options: Any) -> int:
    return main(arguments(*given, **options))


def test_it_writes_cells_and_policy_and_the_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path,
                                                                           capsys: pytest.CaptureFixture) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert search(data, tmp_path / name, "--seed", seed) == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert "--no-mirror" in out[0] and "ETA" in out[1]
    assert_names(out[-1], "3 of 3 sub-policies", tmp_path / "c/genotype.json", "policy.json")
    genotype, policy = Genotype.load(tmp_path / "a/genotype.json"), Policy.load(tmp_path / "a/policy.json")
    assert len(genotype.normal) == len(genotype.reduction) == 1 and len(policy.sub_policies) == 3
    provenance = dict(genotype.provenance)
    assert provenance == policy.provenance and provenance.pop("data")
    assert provenance == {"method": "daas", "config": "search_daas", "seed": 1, "epoch": 2, "version": "0.1.0",
                          "groups": "auto"}
    everything = json.loads((tmp_path / "a/search.json").read_text())
    assert everything["architecture"]["operations"] == ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]
    moved = torch.tensor(everything["architecture"]["normal"])
    assert (moved != 0.25).any() and len({entry["preference"] for entry in everything["sub_policies"]}) == 3
    for name in FILES:
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b and a != c


def test_a_resumed_search_ends_in_the_same_files(data: Path, tmp_path: Path) -> None:
    assert search(data, tmp_path / "whole", "--epochs", "3") == 0
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    shutil.copy(tmp_path / "whole/epoch_2.pth", interrupted)  # all that a kill in the third epoch leaves
    assert search(data, interrupted, "--epochs", "3", "--resume") == 0
    for name in FILES:
        assert (interrupted / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_into_another_search_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path) == 0
    for change in (["classifier.channels=6"], ["classifier.nodes=2"], ["architecture_optimizer.lr=1"],
                   ["classifier.operations=[skip_connect,sep_conv_3x3]"]):
        assert search(data, tmp_path, "--resume", options=change) == 2
        assert "is of another run" in capsys.readouterr().err


def test_killed_in_a_step_and_while_a_checkpoint_is_written(nursery: Any, data: Path, tmp_path: Path) -> None:
    flags = arguments(data, tmp_path / "whole", "--epochs", "3")
    assert nursery.run("search", flags, tmp_path / "log") == 0
    killed = arguments(data, tmp_path / "killed", "--epochs", "3")
    for moment in (("during", "step", 5), ("during", "epoch_2.pth", 1)):
        assert nursery.run("search", [*killed, "--resume"], tmp_path / "log", moment) == nursery.killed
    assert nursery.run("search", [*killed, "--resume"], tmp_path / "log") == 0
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_configuration_for_cifar10_runs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 32, 32), generator=generator, dtype=torch.uint8)
    write_cifar10(tmp_path / "cifar", (images, torch.arange(80) % 10), (images[:10], torch.arange(10)))
    assert main(["--config", "configs/search_daas_cifar10.py", "--data", str(tmp_path / "cifar"), "--work-dir",
                 str(tmp_path / "w"), "--epochs", "2", "--batch-size", "20"]) == 0
    assert len(Genotype.load(tmp_path / "w/genotype.json").normal) == 4
    assert len(Policy.load(tmp_path / "w/policy.json").sub_policies) == 25


@pytest.mark.slow
def test_two_processes_search_together(data: Path, tmp_path: Path) -> None:
    assert search(data, tmp_path / "one") == 0 and search(data, tmp_path / "two", "--gpus", "2") == 0
    one, two = (json.loads((tmp_path / name / "search.json").read_text()) for name in ("one", "two"))
    # BatchNorm sees half the batch in each process, so the two searches are alike and not equal.
    assert one["architecture"]["operations"] == two["architecture"]["operations"]
    assert torch.tensor(two["architecture"]["normal"]).sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("options", "names"), [
    (["classifier.name=convnet"], ("classifier convnet", "'channels': 4")),
    (["search.mode=paper"], ("mode", "daas", "warmup_epochs")),
    (["search.warmup_epochs=-1"], ("search.warmup_epochs is -1", "whole number of at least 0")),
    (["classifier.operations=[none,conv]"], ("operations", "['none', 'conv']", "two or more")),
    (["classifier.nodes=0"], ("0 nodes", "1 to 16")),
    (["method=das"], ("'das'", "dada, ddas")),
])
def test_mistakes_get_one_sentence(options: list[str], names: tuple[str, ...], data: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, options=options) == 2
    assert_error(capsys.readouterr().err, "search_imagenet.sh", *names)
    assert not list(tmp_path.rglob("*.json"))


def test_the_method_needs_a_supernet(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f'_base_ = "{Path("configs/debug/search_daas.py").resolve()}"\n'
                      'classifier = dict(_delete_=True, name="convnet")\n')
    assert main(["--config", str(config), "--data", str(data), "--work-dir", str(tmp_path / "w"), "--image-size", "16",
                 "--batch-size", "4"]) == 2
    assert_names(capsys.readouterr().err, "supernet", "convnet", "classifier.name=darts_supernet")
