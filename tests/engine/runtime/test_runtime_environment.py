"""Processes that torchrun or srun has started: what their environments say, and which device each takes."""

import pytest
import torch

from dada_det.commands import common, search
from dada_det.engine.runtime import environment, launch
from tests.messages import assert_names, refused

# The fourth of five tasks on two machines, as srun tells it: three on the first one, two on the second.
STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_JOB_ID": "70123",
        "SLURM_STEP_ID": "2", "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_STEP_NODELIST": "gpu[07,09]-ib"}


@pytest.fixture(autouse=True)
def nothing_started(monkeypatch):
    """No variable of either launcher, and those that a test sets go with it."""
    theirs = ("SLURM_", "MASTER_", "LOCAL_", "RANK", "WORLD_")
    monkeypatch.setattr(environment.os, "environ", {name: value for name, value in environment.os.environ.items()
                                                    if not name.startswith(theirs)})


def test_without_a_launcher_there_is_one_process():
    assert environment.started_processes() == 1 and "RANK" not in environment.os.environ
    environment.os.environ.update(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_JOB_ID="1")  # a batch script, not a step
    assert environment.started_processes() == 1


def test_a_step_of_slurm_is_told_in_torchruns_words():
    environment.os.environ.update(STEP)
    assert environment.started_processes() == 5
    wanted = {"RANK": "3", "WORLD_SIZE": "5", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu07-ib",
              "MASTER_PORT": str(20_000 + 70125 % 20_000)}
    assert wanted.items() <= environment.os.environ.items()
    environment.os.environ["MASTER_PORT"] = "1234"
    assert environment.started_processes() == 5 and environment.os.environ["MASTER_PORT"] == "1234"


def test_torchrun_within_a_step_of_slurm_counts():
    environment.os.environ.update(STEP, LOCAL_RANK="1", WORLD_SIZE="8", RANK="1")
    assert environment.started_processes() == 8 and environment.os.environ["RANK"] == "1"


@pytest.mark.parametrize(("nodes", "host"), [("node3", "node3"), ("a1,b2", "a1"), ("gpu[001-004]", "gpu001"),
                                             ("gpu[3,7-9],x", "gpu3"), ("r[1-2]n", "r1n")])
def test_the_first_machine_of_a_list(nodes, host):
    assert environment.first_host(nodes) == host
    with refused("SLURM_STEP_NODELIST is ''", "MASTER_ADDR"):
        environment.first_host("")


def test_the_tasks_of_each_machine():
    assert environment.tasks_of_nodes("4(x2),3") == [4, 4, 3] and environment.tasks_of_nodes("2") == [2]


def test_other_processes_than_gpus_says_are_refused(capsys):
    environment.os.environ.update(STEP)
    assert search.main(["--gpus", "8"]) == 2
    assert_names(capsys.readouterr().err, "5 processes", "--gpus says 8", "leave --gpus out")
    environment.check_processes(5, 5)
    environment.check_processes(1, 5)


@pytest.mark.parametrize(("devices", "variables", "device", "backend"), [
    (2, {}, 1, "nccl"), (8, {}, 1, "nccl"), (1, {}, None, "gloo"), (0, {}, None, "gloo"),
    (1, {"SLURM_GPUS_ON_NODE": "2"}, 0, "nccl"), (1, {"SLURM_GPUS_PER_TASK": "1"}, 0, "nccl")])
def test_each_process_takes_a_gpu_of_its_own_where_there_are_enough(devices, variables, device, backend, monkeypatch):
    taken, backends = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(launch.dist, "init_process_group", lambda name, timeout: backends.append(name))
    environment.os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", **variables)
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *rest: 0)}))
    assert launch.join_processes()
    assert backends == [backend] and taken == ([] if device is None else [device])


def test_a_mistake_is_said_by_one_of_the_processes(capsys, monkeypatch):
    environment.os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    said = {}

    class Store:
        def add(self, key, number):
            said[key] = said.get(key, 0) + number
            return said[key]

    monkeypatch.setattr(launch.dist.distributed_c10d, "_get_default_store", Store)
    for sentence in ("one", "one", "two"):
        common.say(sentence)
    assert capsys.readouterr().err == "one\ntwo\n"
    monkeypatch.undo()
    assert not launch.said_already("no group")
