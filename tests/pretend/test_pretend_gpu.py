"""The CUDA paths on a pretended GPU, every operation computed on the CPU, beside the same on the CPU itself.

`make test-pretend` runs this; it needs gcc and ../shared/gpu/pretend (DADA_DET_SHARED), and is skipped by name without them.
A copy to the host arrives there only when somebody waits for it, and a tensor on the wrong device raises, as on a GPU. What
it does not show: TF32, bfloat16 on tensor cores, cuDNN's choices, NCCL between ranks, time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dada_det.commands.common import ROOT
from dada_det.models.backbone import IMAGENET, export_backbone, load_backbone
from tests.conftest import write_noise

pytestmark = pytest.mark.skipif(not os.environ.get("DADA_DET_PRETEND"), reason="`make test-pretend` runs it")
SECONDS = 1800
COMPARE = """
import torch
import parity


def main(argv):
    pictures = [parity.pictures(*size, torch.Generator().manual_seed(0)) for size in ((9, 7), (17, 12))]
    for name in parity.OPERATION_NAMES:  # on both tables of ranges
        for row in parity.compare(name, pictures, torch.device("cuda")):
            print(row["operation"], row["path"], row["max_difference"])
    return 0
"""


@pytest.fixture(scope="session")
def places(shared: Path) -> dict[str, Callable[..., Any]]:
    """"gpu" and "cpu": each runs a command (a module, on the GPU also a file, with main(argv)) and gives its output."""
    if shutil.which("gcc") is None:
        pytest.skip("the pretended GPU needs gcc, which is not here")
    pretend = shared / "gpu/pretend"
    if not pretend.is_dir():
        pytest.skip(f"the pretended GPU is not at {pretend}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    call = "import importlib, sys; sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))"
    heads = {"gpu": [str(pretend / "run"), "command.py"], "cpu": [sys.executable, "-c", call]}

    def runs(place: str) -> Callable[..., str]:
        def run(command: str, *arguments: object) -> str:
            found = subprocess.run([*heads[place], command, *map(str, arguments)], cwd=ROOT, timeout=SECONDS, text=True,
                                   capture_output=True,
                                   env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools/bench'}"})
            assert found.returncode == 0, found.stdout + found.stderr
            assert place == "cpu" or ("'launch': " in found.stdout and "not computed {}" in found.stdout), found.stdout
            return found.stdout
        return run
    return {place: runs(place) for place in heads}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_noise(root / "train", classes=2, images=12, side=20, spread=60)
    write_noise(root / "val", classes=2, images=4, side=20, spread=60, seed=1)
    return root


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "r50.pth"
    export_backbone(resnet50().state_dict(), path, {**IMAGENET, "classes": [], "policy_sha256": None})
    return path


def both(places: dict[str, Callable[..., Any]], folder: Path, command: str, *arguments: object) -> SimpleNamespace:
    """The output of a stage, and its work folder, on the GPU and on the CPU: .gpu, .cpu, .gpu_folder, .cpu_folder."""
    found = SimpleNamespace()
    for place, run in places.items():
        setattr(found, f"{place}_folder", folder / place)
        first = arguments[:1 if str(arguments[0]).startswith("configs/") else 0]
        setattr(found, place, run(f"dada_det.commands.{command}", *first, "--work-dir", folder / place,
                                  *arguments[len(first):]))
    return found


def numbers(folder: Path) -> torch.Tensor:
    """Every preference, probability and magnitude that a search has found."""
    table = json.loads((folder / "search.json").read_text())["sub_policies"]
    keys = ("probability", "magnitude")
    return torch.tensor([[one["preference"], *(slot[key] for slot in one["operations"] for key in keys)] for one in table])


@pytest.mark.parametrize("options", [["search.mode=default"], ["search.mode=paper"]])
def test_a_search_in_each_mode(options: list[str], places: Any, images: Path, tmp_path: Path) -> None:
    found = both(places, tmp_path, "search", "--config", "configs/debug/search.py", "--data", images, "--image-size", 16,
                 "--batch-size", 4, "--epochs", 2, "--no-trial", "--cfg-options", "precision=float32", *options)
    gpu, cpu = numbers(found.gpu_folder), numbers(found.cpu_folder)
    start = gpu.mean(0)
    assert float((cpu - start).abs().max()) > 1e-3  # something was learned
    torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["search_ddas", "search_daas"])
def test_a_search_by_each_method(method: str, places: Any, images: Path, tmp_path: Path) -> None:
    for place, run in places.items():
        run("dada_det.commands.search", "--config", f"configs/debug/{method}.py", "--data", images, "--image-size", 16,
            "--batch-size", 4, "--epochs", 1, "--no-trial", "--work-dir", tmp_path / place, "--cfg-options",
            "precision=float32")
    names = {path.name for path in (tmp_path / "cpu").glob("*.json")}
    assert names and names == {path.name for path in (tmp_path / "gpu").glob("*.json")}


def test_a_search_on_a_detector_moves_boxes_with_their_images(places: Any, shared: Path, tmp_path: Path) -> None:
    found = both(places, tmp_path, "search", "--config", "configs/debug/search_det.py", "--data", shared / "data/nuclei",
                 "--image-size", 64, "--batch-size", 2, "--epochs", 1, "--no-trial", "--cfg-options", "precision=float32",
                 "data.images=8",
                 "search.warmup_epochs=0")
    torch.testing.assert_close(numbers(found.gpu_folder), numbers(found.cpu_folder), rtol=1e-2, atol=1e-3)


def test_every_operation_equals_pillow_on_both_ranges(places: Any, tmp_path: Path) -> None:
    (tmp_path / "compare.py").write_text(COMPARE)
    said = [line.split() for line in places["gpu"](tmp_path / "compare.py").splitlines()]
    lines = [words for words in said if words[1:2] == ["batch"]]
    assert len(lines) == 15 and all(difference == "0" for *_, difference in lines)


@pytest.mark.parametrize("where", ["workers", "device"])
def test_pretraining_with_the_policy_in_the_workers_and_on_the_device(where: str, places: Any, images: Path,
                                                                      tmp_path: Path) -> None:
    found = both(places, tmp_path, "pretrain", "--policy", "dada-imagenet", "--data", images, "--image-size", 32,
                 "--batch-size", 8, "--epochs", 1, "--cfg-options", "classifier.name=test_resnet", "precision=float32",
                 f"policy_on={where}", "workers=0", "optimizer.lr=0.5")
    gpu, cpu = (load_backbone(folder / "test_resnet.pth")[0] for folder in (found.gpu_folder, found.cpu_folder))
    for name, tensor in cpu.items():
        torch.testing.assert_close(gpu[name], tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn", "mask_rcnn"])
def test_a_training_step_of_each_detector(detector: str, places: Any, shared: Path, backbone: Path, tmp_path: Path) -> None:
    found = both(places, tmp_path, "train_det", f"configs/debug/{detector}.py", "--backbone", backbone, "--data",
                 shared / "data/coco-tiny", "--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=2",
                 "train_dataloader.batch_size=1", "default_hooks.checkpoint.interval=2", "model.backbone.frozen_stages=4")
    gpu, cpu = (float(re.search(r"step 1/1  loss ([\d.e+-]+)", said).group(1)) for said in (found.gpu, found.cpu))
    assert gpu == pytest.approx(cpu, rel=0.02)
