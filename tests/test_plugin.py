"""The wheel in a fresh environment without the repository: configs, console commands, other people's pipelines."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from dada_det.commands import cli
from tests.conftest import ROOT, write_noise
from tests.messages import assert_names

# A fresh environment takes the packages, but not the editable project, from the one that runs the tests.
PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel."""
    uv = shutil.which("uv") or Path(sys.prefix).resolve().parent / ".uv/bin/uv"
    if not Path(uv).exists():
        pytest.skip("uv, which installs the wheel, is neither on the PATH nor in ./.uv")
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("dada_det", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    subprocess.run([uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel_in(folder)],
                   check=True)
    inside = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, text=True,
                            capture_output=True).stdout.strip()
    Path(inside, "packages.pth").write_text(PACKAGES + "\n")
    shutil.rmtree(source)
    return python.parent


def wheel_in(folder: Path) -> Path:
    return next(folder.glob("*.whl"))


def call(installed: Path, folder: Path, *argv: object, code: int = 0) -> str:
    """What a command says, run in `folder`, which holds nothing of the project."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([str(installed / str(argv[0])), *map(str, argv[1:])], cwd=folder, text=True, capture_output=True,
                            env={**environment, "OMP_NUM_THREADS": "1"})
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_the_configs(installed: Path) -> None:
    wheel = wheel_in(installed.parents[1])
    assert wheel.stat().st_size < 2_000_000
    names = zipfile.ZipFile(wheel).namelist()
    own = [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")]
    assert own and {f"dada_det/{path}" for path in own} <= set(names)
    assert "dada_det/augment/published/dada-imagenet.json" in names and "dada_det/data/imagenet120.json" in names


@pytest.mark.slow
def test_commands_run_without_the_repository(installed: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "data/train", classes=2, images=8, side=24, spread=40)
    write_noise(tmp_path / "data/val", classes=2, images=4, side=24, spread=40, seed=1)
    assert str(tmp_path) in call(installed, tmp_path, "python", "-c", "import os, dada_det; print(os.getcwd())")
    # In one process after another: --config is found in the package, as the default would be.
    small = ("--data", "data", "--image-size", 16, "--batch-size", 4, "--epochs", 2)
    call(installed, tmp_path, "python", "-m", "dada_det.commands.search", "--config", "configs/debug/search.py",
         "--work-dir", "found", *small)
    policy = tmp_path / "found/policy.json"
    assert json.loads(policy.read_text())["schema"]
    said = call(installed, tmp_path, "dada-det", "pretrain", "--config", "configs/debug/pretrain.py", "--policy", policy,
                "--work-dir", "trained", *small, "--cfg-options", "classifier.name=resnet18", "workers=0")
    assert "pretrain  done: resnet18.pth" in said
    call(installed, tmp_path, "dada-det", "show-policy", "dada-imagenet", "--out", "page.html")
    assert (tmp_path / "page.html").is_file()
    said = call(installed, tmp_path, "dada-det", "train-det", "configs/retinanet_r50_dada.py", code=2)
    assert_names(said, "dada-det train-det: error:", "work_dirs/pretrain_r50/r50.pth")


@pytest.mark.slow
def test_transforms_in_other_peoples_projects(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        'custom_imports = dict(imports=["dada_det.engine.policy_transform"])\n'
        'train_pipeline = [dict(type="ApplyPolicy", policy="dada-imagenet")]\n')
    said = call(installed, tmp_path, "python", "-c", (
        "from mmengine.config import Config\n"
        "config = Config.fromfile('theirs.py')\n"
        "from mmdet.registry import TRANSFORMS\n"
        "print(TRANSFORMS.build(config.train_pipeline[0]))"))
    assert "ApplyPolicy" in said
    said = call(installed, tmp_path, "python", "-c", (
        "from torchvision import transforms\n"
        "from PIL import Image\n"
        "from dada_det.augment import load_transform\n"
        "steps = transforms.Compose([load_transform('dada-imagenet'), transforms.ToTensor()])\n"
        "print(steps(Image.new('RGB', (32, 32))).shape)"))
    assert "[3, 32, 32]" in said


def test_the_command_names_its_commands_and_refuses_others(capsys: pytest.CaptureFixture) -> None:
    assert cli.main([]) == 0 and cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("search", "pretrain", "train-det", "test-det", "predict", "show-policy", "export-policy"):
        assert f"  {name} " in said
    assert cli.main(["serach"]) == 2
    assert_names(capsys.readouterr().err, "'serach'", "search, pretrain")
    assert cli.main(["train-det", "no.py"]) == 2
    assert_names(capsys.readouterr().err, "no.py")
