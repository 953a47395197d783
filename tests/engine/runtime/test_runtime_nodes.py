"""Several machines, here two torchrun agents or two tasks of Slurm on the loopback: each stage trains as one."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from dada_det.commands.common import ROOT
from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.models.backbone import IMAGENET, export_backbone
from tests.conftest import write_noise
from tests.messages import assert_names

pytestmark = pytest.mark.slow
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
ENVIRONMENT = {**CLEAN, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_noise(root / "train", classes=2, images=12, side=20, spread=60)
    write_noise(root / "val", classes=2, images=4, side=20, spread=60, seed=1)
    return root


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def outcome(processes):
    """[(exit code, output, errors)] of processes that run side by side."""
    said = [process.communicate(timeout=900) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def on_two_agents(module, *arguments):
    """`python -m module` as the two processes of two torchrun agents, of one process each."""
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint",
                  f"localhost:{free_port()}"]
    return outcome([subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", f"dada_det.commands.{module}",
         *map(str, arguments)], env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)])


def as_two_tasks(module, *arguments):
    """`python -m module` as the two tasks of a step of Slurm."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    return outcome([subprocess.Popen(
        [sys.executable, "-m", f"dada_det.commands.{module}", *map(str, arguments)], cwd=ROOT, text=True,
        env={**ENVIRONMENT, **step, "SLURM_PROCID": str(task), "SLURM_LOCALID": "0", "SLURM_NODEID": str(task)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for task in range(2)])


def search_flags(images, work_dir):
    return ["--config", "configs/debug/search.py", "--data", images, "--work-dir", work_dir, "--image-size", 16,
            "--batch-size", 4, "--epochs", 2]


def check_once(found, stage, work_dir):
    """Both end well, and one of them has said what there is to say."""
    assert [code for code, *_ in found] == [0, 0], found
    said = "".join(output for _, output, _ in found)
    (line,) = [line for line in said.splitlines() if "2 nodes" in line]
    assert_names(line, stage, "2 processes", work_dir)
    assert said.count(f"{stage}  done: ") == 1
    return said


@pytest.mark.parametrize("started", [on_two_agents, as_two_tasks])
def test_a_search_on_two_nodes(started, images, tmp_path):
    """With its trial, whose trainings the two share out."""
    said = check_once(started("search", *search_flags(images, tmp_path)), "search", tmp_path)
    assert "step 3/3" in said  # of batches of four, two images for each process
    assert json.loads((tmp_path / "proposal.json").read_text())["provenance"]["epoch"] == 2
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert said.count(verdict["sentence"]) == 1
    assert json.loads((tmp_path / "policy.json").read_text())["provenance"]["winner"] == verdict["winner"]
    assert len(list((tmp_path / "trainings").glob("*.pth"))) == verdict["trainings"]


def test_pretraining_on_two_nodes_divides_the_batch(images, tmp_path):
    found = on_two_agents("pretrain", "--policy", "none", "--data", images, "--work-dir", tmp_path, "--image-size", 16,
                          "--batch-size", 8, "--epochs", 1, "--cfg-options", "classifier.name=convnet", "workers=0")
    assert "step 3/3" in check_once(found, "pretrain", tmp_path)  # 24 images; a floor of 8 for each would make two steps
    assert check_checkpoint(tmp_path / "epoch_1.pth")["meta"]["iter"] == 3


def test_a_batch_that_does_not_divide_is_said_once_for_both(images, tmp_path):
    found = on_two_agents("pretrain", "--policy", "none", "--data", images, "--work-dir", tmp_path, "--image-size", 16,
                          "--batch-size", 9, "--epochs", 1, "--cfg-options", "classifier.name=convnet", "workers=0")
    assert all(code != 0 for code, *_ in found)
    assert "".join(errors for *_, errors in found).count("--batch-size 9") == 1


def test_a_detector_on_two_nodes(tmp_path):
    from torchvision.models import resnet50

    backbone = tmp_path / "r50.pth"
    export_backbone(resnet50().state_dict(), backbone, {**IMAGENET, "classes": [], "policy_sha256": None})
    work_dir = tmp_path / "w"
    found = on_two_agents("train_det", "configs/debug/retinanet.py", "--backbone", backbone, "--work-dir", work_dir,
                          "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2",
                          "default_hooks.checkpoint.interval=2", "model.backbone.frozen_stages=4")
    check_once(found, "retinanet", work_dir)
    assert (work_dir / "iter_2.pth").is_file()


def test_a_work_folder_that_is_not_shared_is_said_and_not_resumed(images, tmp_path):
    """Each process has the relative folder of its own current one, as two machines without a common disk have."""
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
        shutil.copytree(images, place / "images")
    rendezvous = {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}

    def run(*more):
        port = str(free_port())
        flags = [*map(str, search_flags("images", "w")), "--no-trial", *more]
        return outcome([subprocess.Popen(
            [sys.executable, "-m", "dada_det.commands.search", *flags], cwd=place,
            env={**ENVIRONMENT, **rendezvous, "MASTER_PORT": port, "RANK": str(rank)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True) for rank, place in enumerate(places)])

    found = run()
    assert [code for code, *_ in found] == [0, 0], found
    assert "w is not shared, and " in found[0][1] and " has the results and checkpoints" in found[0][1]
    assert (places[0] / "w/policy.json").is_file() and not (places[1] / "w/policy.json").exists()
    found = run("--resume")
    assert [code for code, *_ in found] == [2, 2]
    (error,) = [line for *_, errors in found for line in errors.splitlines() if "error:" in line]
    assert_names(error, "--resume", "--work-dir")
    assert torch.load(places[0] / "w/epoch_2.pth", weights_only=False)["meta"]["epoch"] == 2
