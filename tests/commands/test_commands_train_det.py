"""tools/train_det.py on configs and launchers that are broken or unusual."""

from pathlib import Path
from typing import Any

import pytest

from dada_det.commands import test_det, train_det
from dada_det.engine.detect import config as change
from dada_det.engine.detect import run
from tests.engine.detect.test_detect_detection_commands import RETINANET, write_coco
from tests.messages import assert_error

VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_LOCAL_RANK")


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.py", "lr = missing", "missing"), ("a.py", "lr = {}.rate", "rate"), ("a.py", "lr = 1 / 0", "division by zero"),
    ("a.py", "assert False", "AssertionError"), ("a.py", "raise RuntimeError('two\\nlines')", "two lines"),
    ("a.py", "lr = [", "a.py"), ("a.yml", "model: [1\nlr: 2", "a.yml"), ("a.json", "{", "a.json"),
    ("a.py", "_base_ = 'none.py'", "none.py")])
def test_a_config_that_cannot_be_read_gets_one_sentence(name: str, text: str, said: str, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture) -> None:
    (tmp_path / name).write_text(text)
    assert train_det.main([str(tmp_path / name)]) == 2
    assert_error(capsys.readouterr().err, "train_det.py", "cannot read the config", tmp_path / name, said, "correct")


@pytest.mark.parametrize(("launcher", "starter"), [("pytorch", "torchrun"), ("slurm", "srun"), ("mpi", "mpirun")])
def test_a_launcher_that_has_started_nothing_is_named(launcher: str, starter: str, capsys: pytest.CaptureFixture,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert train_det.main([RETINANET, "--local_rank=0", "--launcher", launcher]) == 2
    assert_error(capsys.readouterr().err, "train_det.py", f"--launcher {launcher}", starter, "leave it out")
    assert test_det.main([RETINANET, "none", "--local-rank=0", "--launcher", launcher]) == 2
    assert_error(capsys.readouterr().err, "test_det.py", f"--launcher {launcher}", starter, "leave it out")


@pytest.mark.parametrize("hooks", ["None", "dict(_delete_=True)", "dict(checkpoint=None)"])
def test_a_config_need_not_have_default_hooks(hooks: str, backbone: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(run, "run_training", lambda config, *arguments, **options: found.append(config))
    (tmp_path / "own.py").write_text(f"_base_ = {RETINANET!r}\ndefault_hooks = {hooks}\nvisualizer = None\n")
    data = write_coco(tmp_path / "coco", [{"id": 3, "name": "cell"}])
    command = [str(tmp_path / "own.py"), "--backbone", str(backbone), "--data", str(data), "--work-dir", str(tmp_path / "w")]
    for flags in ([], ["--keep", "3"]):
        assert train_det.main([*command, *flags]) == 0
        change.use_training_hooks(found[-1], "own")
        assert found[-1].default_hooks.checkpoint.type == "AtomicCheckpoint"
    assert found[-1].default_hooks.checkpoint.max_keep_ckpts == 3
    run._use_test_flags(found[-1], run.TestFlags(show_dir="painted"))
    assert found[-1].default_hooks.visualization.type == "DetVisualizationHook"
    assert found[-1].visualizer.type == "DetLocalVisualizer"
