"""Fixtures of pretraining's tests."""

import pytest

from dada_det.commands.pretrain import main
from dada_det.engine.pretrain import run as pretrain
from tests.conftest import write_noise
from tests.engine.pretrain.recipe_runs import Recorder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """16 training and 8 validation images of two classes, 20 px."""
    root = tmp_path_factory.mktemp("images")
    write_noise(root / "train", classes=2, images=8, side=20, spread=60)
    write_noise(root / "val", classes=2, images=4, side=20, spread=60, seed=1)
    return root


@pytest.fixture
def recorded(monkeypatch):
    """Runs the command with these arguments and gives what a Recorder has noted."""
    def run(arguments):
        recorder = Recorder()
        with monkeypatch.context() as patch:
            averaging = pretrain.averaging
            patch.setattr(pretrain, "averaging", lambda config: [*averaging(config), recorder])
            assert main(arguments) == 0
        return recorder
    return run
