"""The copy of the config in a training's work folder: it begins, resumes and tests, under MMDetection's own Runner too."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from dada_det.commands import test_det, train_det
from dada_det.engine.detect import config as change
from tests.engine.detect.test_detect_detection_commands import FEW, MASK_RCNN, TINY, write_coco
from tests.messages import assert_names

# As MMDetection's tools/train.py does it, in a process that knows nothing of this project but the config.
STOCK = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile(sys.argv[1])
config.work_dir = sys.argv[2]
Runner.from_cfg(config).train()
"""
ADDED = ["LearningRateNote", "StopAtNaN", "ProgressLine"]


def types_of(path: Path) -> list[str]:
    return [hook.type for hook in Config.fromfile(path).custom_hooks]


def test_the_copy_begins_resumes_and_tests(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, work = write_coco(tmp_path / "coco", [{"id": 3, "name": "cell"}]), tmp_path / "w"
    where = ["--work-dir", str(work)]
    command = [MASK_RCNN, "--backbone", str(backbone), "--data", str(data), "--policy", "dada-imagenet", *where, *TINY, *FEW]
    assert train_det.main([*command, "train_cfg.max_iters=1"]) == 0
    assert train_det.main([*command, "resume=True"]) == 0
    copy = work / "mask_rcnn.py"
    config = Config.fromfile(copy)
    assert not config.resume and not config.get("load_from")
    assert types_of(copy)[-3:] == ADDED and "BackboneGuardHook" in types_of(copy)

    assert test_det.main([str(copy), str(work / "iter_2.pth"), *where]) == 0
    assert types_of(copy)[-3:] == ADDED  # and not those of the test
    capsys.readouterr()
    assert train_det.main([str(copy), "--resume", *where, "--cfg-options", "train_cfg.max_iters=3"]) == 0
    assert_names(capsys.readouterr().out, "step 3/3")
    assert train_det.main([str(copy), "--work-dir", str(tmp_path / "again")]) == 0
    assert types_of(tmp_path / "again/mask_rcnn.py").count("ProgressLine") == 1
    done = subprocess.run([sys.executable, "-c", STOCK, str(copy), str(tmp_path / "stock")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stock/last_checkpoint").is_file()


def test_a_hook_of_the_users_own_stays_and_comes_once() -> None:
    config = Config({"default_hooks": {}, "custom_hooks": [{"type": "StopAtNaN", "interval": 1}]})
    for stage in ("detector", "renamed"):
        change.drop_training_hooks(config)
        assert config.custom_hooks == [{"type": "StopAtNaN", "interval": 1}]
        change.use_training_hooks(config, stage)
        assert sorted(hook["type"] for hook in config.custom_hooks) == sorted(ADDED)
