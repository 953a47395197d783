"""Fixtures that every room's tests share."""

import importlib
import io
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools/bench"))
# The same examples in every run, and no limit of time to one: neither decides whether a change lands.
settings.register_profile("everyday", derandomize=True, deadline=None)
settings.load_profile("everyday")


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """A measurement that flushes subnormal numbers to zero leaves the next test those of IEEE 754."""
    yield
    torch.set_flush_denormal(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def without_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU from what is asserted of a CPU (equal bits, float32, threads); a test marked `gpu` keeps it."""
    if request.node.get_closest_marker("gpu") is None:
        from mmengine.device import utils

        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that the test starts
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(utils, "DEVICE", "cpu")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (DADA_DET_SHARED, default ../shared); tests that need it skip by name without it."""
    folder = Path(os.environ.get("DADA_DET_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the real data of DADA_DET_SHARED is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet-50, as pretraining exports it; tests copy what they change."""
    from torchvision.models import resnet50

    from dada_det.models.backbone import IMAGENET, export_backbone

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "r50.pth"
    export_backbone(resnet50(weights=None).state_dict(), path, {**IMAGENET, "classes": [], "policy_sha256": None})
    return path


def load_bench(name: str) -> ModuleType:
    """tools/bench/<name>.py as a module; the benches import each other by their plain names, as scripts do."""
    return importlib.import_module(name)


def write_noise(root: Path, classes: int, images: int, side: int, spread: float, seed: int = 0) -> Path:
    """root/class<k>/*.png: noise of standard deviation `spread` around a brightness of each class."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(images):
            pixels = generator.normal(60 + 70 * label, spread, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def write_shard(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar file of `files`, name -> content, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def planted() -> ModuleType:
    pytest.importorskip("sklearn")
    return load_bench("planted")


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    return load_bench("search_step")
