"""What the machine does to a run: one sentence, a whole last checkpoint, and an end within a known time."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch.utils.data import DataLoader, Dataset

from dada_det.commands.common import ROOT
from dada_det.engine.runtime import faults
from dada_det.engine.runtime.checkpoint import check_checkpoint, find_checkpoint
from dada_det.engine.runtime.runner import QuietRunner
from dada_det.files import make_folder
from tests.messages import assert_names, refused


class Numbers(Dataset):
    """Eight numbers; `fault` is called for each before it is given. It says, as MMDetection's do, where its images lie."""

    def __init__(self, folder="", fault=lambda: None):
        self.data_prefix, self.fault = {"img": str(folder)}, fault

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.fault()
        return torch.ones(1)


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1000))

    def forward(self, data, mode):
        return {"loss": ((self.weight - data) ** 2).mean()}

    def train_step(self, data, optim_wrapper):
        loss, values = self.parse_losses(self(data, mode="loss"))
        optim_wrapper.update_params(loss)
        return values


class InEpochTwo(Hook):
    """Calls `then` when the second epoch begins."""

    def __init__(self, then):
        self.then = then

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            self.then()


def runner_for(folder, data, then=lambda: None, workers=0, **options):
    runner = QuietRunner(
        model=Line(), work_dir=str(folder), train_dataloader=DataLoader(data, num_workers=workers),
        train_cfg={"by_epoch": True, "max_epochs": 3}, optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"logger": None, "checkpoint": {"type": "AtomicCheckpoint"}}, experiment_name="faults",
        **options)
    runner.register_hook(InEpochTwo(then))
    return runner


def says(runner, *names):
    """It ends with one sentence that names `names` and the first epoch's checkpoint, which is there and loads."""
    last = Path(runner.work_dir) / "epoch_1.pth"
    with refused(*names, last, "--resume"):
        runner.train()
    assert find_checkpoint(runner.work_dir) == last
    assert check_checkpoint(last)["meta"]["epoch"] == 1
    assert not list(last.parent.glob(".*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_takes_no_more(number, tmp_path, monkeypatch):
    def put(self, content, path):
        Path(path).write_bytes(content[:len(content) // 2])
        raise OSError(number, os.strerror(number), str(path))

    runner = runner_for(tmp_path, Numbers(), lambda: monkeypatch.setattr(LocalBackend, "put", put))
    says(runner, tmp_path / "epoch_2.pth", os.strerror(number))


def test_a_write_that_the_kernel_cuts_short(tmp_path):
    """Files may not grow past half of a checkpoint from the second epoch on: the same as a disk that is full there."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        runner = runner_for(tmp_path, Numbers(), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1])))
        says(runner, tmp_path / "epoch_2.pth", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_before_the_first_step(tmp_path):
    """The folder can be made and its log opened, but nothing written into it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with refused(tmp_path, "File too large", "--work-dir"):
            runner_for(tmp_path, Numbers(), cfg=Config({"epochs": 3}))  # which is the first that is written
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_work_dir_that_cannot_be_written_is_refused_before_anything_runs(call, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else ("tempfile.TemporaryFile",)), refuse)
    with refused(tmp_path / "w", "Read-only file system", "another place"):
        make_folder(tmp_path / "w")


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_vanishes(workers, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").touch()

    def read():
        (folder / "1.png").read_bytes()

    data = Numbers(folder, read)
    says(runner_for(tmp_path / "file", data, (folder / "1.png").unlink, workers),
         "a file of the data", "No such file", f"'{folder}/1.png'")
    (folder / "1.png").touch()
    says(runner_for(tmp_path / "folder", data, lambda: shutil.rmtree(folder), workers),
         f"data folder {folder}")


def test_a_loader_process_that_is_killed(tmp_path):
    flag = tmp_path / "now"

    def die():
        if flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)

    runner = runner_for(tmp_path, Numbers(fault=die), flag.touch, workers=1)
    with refused("a process that loads images", "killed", "memory", re.compile(r"worker \(pid"), tmp_path / "epoch_1.pth",
                 "--resume"):
        runner.train()


def test_a_loader_process_that_hangs(tmp_path, monkeypatch):
    flag = tmp_path / "now"
    monkeypatch.setattr(faults, "LOADER_SECONDS", 2)
    runner = runner_for(tmp_path, Numbers(fault=lambda: time.sleep(60 * flag.exists())), flag.touch, workers=1)
    says(runner, "a process that loads images", "2 seconds")


def test_other_errors_pass_through(tmp_path):
    def broken():
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake in the program"):
        runner_for(tmp_path, Numbers(), broken).train()


# Two gloo processes that train; one of them does FAULT after its first epoch.
COMMAND = """
import datetime, os, signal, sys
from pathlib import Path
from dada_det.commands import common

def body(args):
    from dada_det.engine.runtime import launch
    launch.TIMEOUT = datetime.timedelta(seconds=5)
    launch.join_processes()
    sys.path.insert(0, str(Path(__file__).parent))
    import toy
    import torch.distributed as dist
    work_dir, fault = Path(os.environ["WORK_DIR"]), os.environ["FAULT"]
    (work_dir / f"pid_{dist.get_rank()}").write_text(str(os.getpid()))

    def then():
        (work_dir / f"there_{dist.get_rank()}").touch()
        if dist.get_rank() == 1 and fault:
            os.kill(os.getpid(), getattr(signal, fault))

    runner = toy.runner_for(work_dir, toy.Numbers(), then)
    step = runner.model.train_step
    def train_step(*arguments, **options):
        dist.all_reduce(__import__("torch").ones(1))
        if not fault:
            __import__("time").sleep(0.2)
        return step(*arguments, **options)
    runner.model.train_step = train_step
    runner.train()

if __name__ == "__main__":
    parser = common.parser_for("dying", "", "")
    common.add_common_flags(parser)
    raise SystemExit(common.run(body, parser, module="dying"))
"""


@pytest.fixture
def start(tmp_path):
    """Starts COMMAND with a fault in the second of two processes."""
    (tmp_path / "dying.py").write_text(COMMAND)
    shutil.copy(__file__, tmp_path / "toy.py")
    work_dir = tmp_path / "w"
    work_dir.mkdir()

    def start(fault):
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1", "FAULT": fault,
                       "WORK_DIR": str(work_dir), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen([sys.executable, "-m", "dying", "--gpus", "2"], env=environment, text=True, cwd=tmp_path,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE), work_dir
    return start


def test_a_process_of_the_run_that_is_killed(start):
    process, work_dir = start("SIGKILL")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    (line,) = [line for line in said.splitlines() if "warning: 2 processes" not in line and line]
    assert_names(line, "dying: error:", "process 1 of 2", "SIGKILL", "memory", "--resume")
    assert find_checkpoint(work_dir) == work_dir / "epoch_1.pth"


@pytest.mark.slow
def test_a_process_of_the_run_that_no_longer_answers(start):
    """Five seconds in this test, 30 minutes in launch.TIMEOUT; then torchrun gives the silent one 30 s to end."""
    process, work_dir = start("SIGSTOP")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 1 and faults.LOST in errors[0], said
    assert find_checkpoint(work_dir) == work_dir / "epoch_1.pth"


@pytest.mark.slow
def test_processes_end_with_their_launcher(start):
    process, work_dir = start("")
    limit = time.monotonic() + 200
    while len(list(work_dir.glob("there_*"))) < 2:
        assert time.monotonic() < limit and process.poll() is None, process.communicate()
        time.sleep(0.1)
    numbers = [int(path.read_text()) for path in work_dir.glob("pid_*")]
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    while any(Path(f"/proc/{number}/cmdline").exists() and b"dying" in Path(f"/proc/{number}/cmdline").read_bytes()
              for number in numbers):
        assert time.monotonic() < limit, "they train on"
        time.sleep(0.1)
    assert len(numbers) == 2
