"""ExactResume on a Runner of one's own: epochs and iterations, samplers that end and endless ones, workers and wrappers."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from dada_det.engine.runtime.checkpoint import check_checkpoint
from dada_det.engine.runtime.exact_resume import KeyedSamples, use_keys
from dada_det.engine.runtime.hooks import AtomicCheckpoint
from dada_det.engine.runtime.runner import QuietRunner
from tests.messages import refused

IMAGES, BATCH = 10, 2  # five batches an epoch


class Noise(Dataset):
    """A number for each index, with a bit of every global generator."""

    metainfo = {"classes": ("a",)}

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return torch.tensor([index + random.random() + np.random.rand() + float(torch.rand(()))])


class Line(BaseModel):
    """A weight, a BatchNorm and dropout, which draws from torch's global generator."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 8), torch.nn.Dropout(0.5))

    def forward(self, data, mode):
        return {"loss": self.layers(data.to(self.layers[1].weight.device)).square().mean()}

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            loss, values = self.parse_losses(self(data, mode="loss"))
        optim_wrapper.update_params(loss)
        return values


class Stop(Exception):
    """Ends a run as a kill would."""


class StopHook:
    """Not mmengine's: makes `runner` stop before the step number `step` (from 0)."""

    def __init__(self, runner, step):
        original = runner.call_hook

        def call_hook(name, **options):
            if name == "before_train_iter" and runner.iter == step:
                raise Stop
            original(name, **options)

        runner.call_hook = call_hook


def runner_for(folder, loop, sampler, workers, resume=None, hooks=({"type": "ExactResume"},), accumulate=1, batch=BATCH):
    torch.manual_seed(0)
    data, by_epoch = Noise(), loop == "epoch"
    sampler = {"default": DefaultSampler, "infinite": InfiniteSampler}[sampler](data, shuffle=True, seed=3)
    return QuietRunner(
        model=Line(), work_dir=str(folder), resume=resume is not None, load_from=str(resume) if resume else None,
        train_dataloader=DataLoader(data, batch_size=batch, sampler=sampler, num_workers=workers),
        train_cfg={"by_epoch": True, "max_epochs": 3} if by_epoch else {"by_epoch": False, "max_iters": 15},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
                       "accumulative_counts": accumulate},
        param_scheduler=[{"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 15}],
        default_hooks={"logger": None, "checkpoint": {"type": "AtomicCheckpoint", "keep": -1, "by_epoch": by_epoch,
                                                      "steps": 1 if by_epoch else 0}},
        custom_hooks=list(hooks), randomness={"seed": 0}, experiment_name="exact")


def state_of(path):
    content = check_checkpoint(path)
    return {**content["state_dict"], **{f"momentum {key}": value["momentum_buffer"]
                                        for key, value in content["optimizer"]["state"].items()}}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


LOOPS = [("epoch", "default", 0), ("epoch", "default", 2), ("step", "infinite", 2), ("step", "default", 0)]


@pytest.mark.parametrize(("loop", "sampler", "workers"), LOOPS)
def test_a_run_stopped_at_any_step_ends_with_the_same_weights(loop, sampler, workers, tmp_path):
    last = "epoch_3.pth" if loop == "epoch" else "iter_15.pth"
    runner_for(tmp_path / "whole", loop, sampler, workers).train()
    whole = state_of(tmp_path / "whole" / last)
    for step in (5, 7) if workers == 0 else (7,):
        folder = tmp_path / str(step)
        runner = runner_for(folder, loop, sampler, workers)
        StopHook(runner, step)
        with pytest.raises(Stop):
            runner.train()
        newest = folder / ("epoch_1.pth" if loop == "epoch" and step == 5 else f"iter_{step}.pth")
        assert newest.is_file()
        runner_for(folder, loop, sampler, workers, resume=newest).train()
        assert same(state_of(folder / last), whole), step


def test_the_number_of_loader_processes_does_not_matter_and_the_seed_does(tmp_path):
    for name, workers in (("none", 0), ("two", 2)):
        runner_for(tmp_path / name, "epoch", "default", workers).train()
    runner = runner_for(tmp_path / "other", "epoch", "default", 0)
    runner._seed = 1
    runner.train()
    states = {name: state_of(tmp_path / name / "epoch_3.pth") for name in ("none", "two", "other")}
    assert same(states["none"], states["two"]) and not same(states["none"], states["other"])


def test_without_the_hook_a_resumed_run_differs(tmp_path):
    """So that the tests above test something."""
    runner_for(tmp_path / "whole", "step", "infinite", 0, hooks=()).train()
    runner_for(tmp_path / "parts", "step", "infinite", 0, hooks=(), resume=tmp_path / "whole" / "iter_7.pth").train()
    assert not same(*(state_of(tmp_path / name / "iter_15.pth") for name in ("whole", "parts")))


def test_gradients_that_wait_for_more_are_not_lost(tmp_path, monkeypatch):
    """Updates every two steps: a checkpoint within an epoch is written behind an update only."""
    seen, original = [], AtomicCheckpoint._write

    def write(self, runner, path, meta):
        seen.append(path.name)
        original(self, runner, path, meta)

    monkeypatch.setattr(AtomicCheckpoint, "_write", write)
    runner_for(tmp_path, "epoch", "default", 0, accumulate=2).train()
    assert seen == ["iter_2.pth", "iter_4.pth", "epoch_1.pth", "iter_6.pth", "iter_8.pth", "epoch_2.pth", "iter_12.pth",
                    "iter_14.pth", "epoch_3.pth"]


@pytest.mark.parametrize(("loop", "sampler", "name", "last"), [
    ("epoch", "default", "epoch_1.pth", "epoch_3.pth"), ("step", "infinite", "iter_7.pth", "iter_15.pth"),
    ("epoch", "default", "epoch_2.pth", "epoch_3.pth")])
def test_gradients_that_wait_at_a_checkpoint_go_on_waiting(loop, sampler, name, last, tmp_path, capfd):
    """Five steps an epoch and an update every two: one gradient waits at the end of the first epoch, none of the second."""
    runner_for(tmp_path / "whole", loop, sampler, 0, accumulate=2).train()
    waiting = check_checkpoint(tmp_path / "whole" / name).get("waiting_gradients")
    assert (name == "epoch_2.pth") == (waiting is None)
    assert waiting is None or waiting["layers.1.weight"].abs().sum() > 0
    capfd.readouterr()
    runner_for(tmp_path / "parts", loop, sampler, 0, accumulate=2, resume=tmp_path / "whole" / name).train()
    assert same(*(state_of(tmp_path / folder / last) for folder in ("whole", "parts")))
    assert "gradient of some iterations is lost" not in "".join(capfd.readouterr())
    assert "waiting_gradients" not in check_checkpoint(tmp_path / "parts" / last)


def test_several_processes_leave_their_gradients_to_be_lost(tmp_path, monkeypatch):
    """Each has its own, and the file has room for one rank's."""
    runner = runner_for(tmp_path, "epoch", "default", 0, accumulate=2)
    monkeypatch.setattr(type(runner), "world_size", 2)
    runner.train()
    assert "waiting_gradients" not in check_checkpoint(tmp_path / "epoch_1.pth")


def test_an_epoch_of_another_length_is_refused_and_checkpoints_within_one_need_the_hook(tmp_path):
    runner = runner_for(tmp_path, "epoch", "default", 0)
    StopHook(runner, 3)
    with pytest.raises(Stop):
        runner.train()
    with refused("3 of the 5 batches", "10", "batch size"):
        runner_for(tmp_path, "epoch", "default", 0, resume=tmp_path / "iter_3.pth", batch=1).train()
    with refused("steps=1", "ExactResume"):
        runner_for(tmp_path, "epoch", "default", 0, hooks=()).train()


def test_the_loader_keeps_what_others_read_from_and_write_to_it():
    data = Noise()
    loader = DataLoader(data, batch_size=BATCH, sampler=DefaultSampler(data, seed=0))
    batches = use_keys(loader, seed=0, endless=False)
    assert loader.dataset.metainfo is data.metainfo and len(loader) == 5 and loader.batch_sampler.batch_size == BATCH
    loader.dataset.pipeline = "new"
    assert data.pipeline == "new" and batches.sampler is loader.sampler
    assert not hasattr(loader.dataset, "__getitems__")
    assert use_keys(loader, seed=0, endless=False) is batches, "wrapped once"
    first = loader.dataset[4, 7]
    assert torch.equal(first, KeyedSamples(data, 0)[4, 7]) and not torch.equal(first, loader.dataset[5, 7])
    assert isinstance(Runner.build_dataloader(loader), DataLoader)
