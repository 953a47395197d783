import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import find_latest_checkpoint
from torch.utils.data import DataLoader

from dada_det.engine.runtime.checkpoint import check_checkpoint, find_checkpoint
from dada_det.engine.runtime.hooks import atomic_checkpoint, loss_of
from dada_det.engine.runtime.runner import QuietRunner
from tests.messages import refused

STEPS = 4


class Line(BaseModel):
    """One weight; `losses` maps a step (counted from 1) to what its loss is multiplied with."""

    def __init__(self, losses=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.steps = losses or {}, 0

    def forward(self, data, mode):
        if mode == "predict":
            return [data]
        self.steps += 1
        return {"loss": ((self.weight - data.to(self.weight.device)) ** 2).mean() * self.losses.get(self.steps, 1.0)}

    def val_step(self, data):
        return self(data, mode="predict")

    def train_step(self, data, optim_wrapper):
        loss, values = self.parse_losses(self(data, mode="loss"))
        optim_wrapper.update_params(loss)
        return values


def runner_for(folder, hooks, epochs=3, model=None, lr=0.1, info=None, **checkpoint):
    return QuietRunner(
        model=model or Line(), work_dir=str(folder), train_dataloader=DataLoader(torch.ones(STEPS, 1)),
        train_cfg={"by_epoch": True, "max_epochs": epochs}, optim_wrapper={"optimizer": {"type": "SGD", "lr": lr}},
        default_hooks={"logger": None, "checkpoint": {"type": "AtomicCheckpoint", **checkpoint},
                       **({"runtime_info": info} if info else {})}, custom_hooks=hooks,
        experiment_name="hooks")


@pytest.fixture
def present(tmp_path, monkeypatch):
    """The names of the checkpoints on the disk before and after each one is given its name, and before each removal."""
    seen = []
    replace, unlink = os.replace, Path.unlink

    def look():
        return sorted(path.name for path in tmp_path.glob("*.pth"))

    def watched_replace(source, target):
        before = look()
        replace(source, target)
        if Path(target).suffix == ".pth":
            seen.append((Path(target).name, before, look()))

    def watched_unlink(self, missing_ok=False):
        if self.suffix == ".pth":
            assert len(look()) > 1, f"{self} is removed, and nothing is left"
        unlink(self, missing_ok)

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    return seen


@pytest.mark.parametrize(("options", "left"), [
    ({}, ["epoch_3.pth", "epoch_4.pth"]), ({"keep": 1}, ["epoch_4.pth"]), ({"max_keep_ckpts": 1}, ["epoch_4.pth"]),
    ({"keep": 3}, [f"epoch_{n}.pth" for n in (2, 3, 4)]), ({"keep": -1}, [f"epoch_{n}.pth" for n in (1, 2, 3, 4)]),
    ({"interval": 3}, ["epoch_3.pth", "epoch_4.pth"]), ({"by_epoch": False, "interval": 6}, ["iter_12.pth", "iter_16.pth"])])
def test_the_newest_stay_and_an_old_one_goes_when_the_new_one_is_whole(options, left, present, tmp_path):
    runner_for(tmp_path, [], epochs=4, **options).train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == left
    assert all(set(before) | {name} == set(after) for name, before, after in present), "one was removed first"
    newest = max(left, key=lambda name: int(re.sub(r"\D", "", name)))
    assert find_latest_checkpoint(str(tmp_path)) == str(find_checkpoint(tmp_path)) == str(tmp_path / newest)
    assert not list(tmp_path.glob(".*tmp"))


def test_checkpoints_within_an_epoch_go_with_the_next(present, tmp_path):
    runner_for(tmp_path, [{"type": "ExactResume"}], epochs=2, keep=1, steps=1).train()
    assert [(name, before) for name, before, _ in present] == [
        ("iter_1.pth", []), ("iter_2.pth", ["iter_1.pth"]), ("iter_3.pth", ["iter_2.pth"]), ("epoch_1.pth", ["iter_3.pth"]),
        ("iter_5.pth", ["epoch_1.pth"]), ("iter_6.pth", ["epoch_1.pth", "iter_5.pth"]),
        ("iter_7.pth", ["epoch_1.pth", "iter_6.pth"]), ("epoch_2.pth", ["epoch_1.pth", "iter_7.pth"])]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]
    assert check_checkpoint(tmp_path / "epoch_2.pth")["meta"]["epoch"] == 2


def test_epochs_soon_after_a_checkpoint_have_none_but_the_last(present, tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 25))  # each look at it, 25 s later: one at the end of an epoch and one at a checkpoint
    monkeypatch.setattr(atomic_checkpoint, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    runner_for(tmp_path, [], epochs=6, keep=-1, seconds=60).train()
    assert [name for name, *_ in present] == ["epoch_1.pth", "epoch_4.pth", "epoch_6.pth"]


class OnGpu(torch.Tensor):
    """A loss that says it is on a GPU."""

    is_cuda = True


class Kept(Hook):
    """What the message hub holds of the losses after each step."""

    priority = "LOWEST"

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        scalars = runner.message_hub.log_scalars
        self.seen.append(len(scalars["train/loss"].data[0]) if "train/loss" in scalars else 0)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_losses_on_a_gpu_are_read_when_they_are_logged(on_gpu, tmp_path, monkeypatch):
    """Reading one waits for the GPU; what has been read is the same."""
    if on_gpu:
        parse = Line.parse_losses
        monkeypatch.setattr(Line, "parse_losses", lambda self, losses: (lambda loss, values: (
            loss, {name: value.detach().as_subclass(OnGpu) for name, value in values.items()}))(*parse(self, losses)))
    kept, model = Kept(), Line({step: float(step) for step in range(1, 9)})
    runner = runner_for(tmp_path, [kept], epochs=2, model=model, info={"type": "LateRuntimeInfo", "interval": 3})
    runner.train()
    assert kept.seen == ([0, 0, 3, 3, 4, 6, 7, 8] if on_gpu else [1, 2, 3, 4, 5, 6, 7, 8])
    history, _ = runner.message_hub.get_scalar("train/loss").data
    assert len(history) == 8 and history[0] == pytest.approx(1.0)


class Scores(BaseMetric):
    """The accuracies of three validations."""

    left = []

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {"accuracy": self.left.pop(0)}


def test_the_best_checkpoint_is_replaced_whole_by_the_next_best(present, tmp_path):
    Scores.left = [1.0, 3.0, 2.0]
    runner = QuietRunner(
        model=Line(), work_dir=str(tmp_path), train_dataloader=DataLoader(torch.ones(STEPS, 1)),
        train_cfg={"by_epoch": True, "max_epochs": 3}, optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        val_dataloader=DataLoader(torch.ones(1, 1)), val_cfg={}, val_evaluator=Evaluator(Scores()), experiment_name="hooks",
        default_hooks={"logger": None, "checkpoint": {"type": "AtomicCheckpoint", "save_best": "accuracy"}})
    runner.train()
    left = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert left == ["best_accuracy_epoch_2.pth", "epoch_2.pth", "epoch_3.pth"]
    best = [(name, before) for name, before, _ in present if name.startswith("best")]
    assert [name for name, _ in best] == ["best_accuracy_epoch_1.pth", "best_accuracy_epoch_2.pth"]
    assert "best_accuracy_epoch_1.pth" in best[1][1]
    assert check_checkpoint(tmp_path / "epoch_2.pth")["message_hub"]["runtime_info"]["best_score"] == 3.0


def test_an_interrupted_save_leaves_the_old_checkpoints(tmp_path, monkeypatch):
    original = LocalBackend.put

    def put(self, content, path):
        original(self, content[:100] if "epoch_3" in str(path) else content, path)
        if "epoch_3" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalBackend, "put", put)
    with refused(tmp_path / "epoch_3.pth", "No space left on device", tmp_path / "epoch_2.pth", "--resume"):
        runner_for(tmp_path, [], keep=1).train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_2.pth"]
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_2.pth"


def test_a_new_run_keeps_its_checkpoints_beside_an_older_longer_one(tmp_path):
    runner_for(tmp_path, [], epochs=5).train()
    runner_for(tmp_path, [], epochs=1).train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_1.pth", "epoch_4.pth", "epoch_5.pth"]
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"


def test_a_run_removes_only_the_checkpoints_that_it_has_written_itself_before_a_resume_too(tmp_path):
    """Of an older run, and of whoever else: their names tell nothing."""
    theirs = {name: name.encode() for name in ("epoch_7.pth", "epoch_8.pth", "epoch_9.pth", "iter_3.pth")}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)

    class Broken(Exception):
        pass

    class Break(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                raise Broken

    options = {"keep": 1, "steps": 2}
    with pytest.raises(Broken):
        runner_for(tmp_path, [{"type": "ExactResume"}, Break()], epochs=4, **options).train()
    assert {path.name for path in tmp_path.glob("*.pth")} == {*theirs, "epoch_2.pth"}
    resumed = runner_for(tmp_path, [{"type": "ExactResume"}], epochs=4, **options)
    resumed._load_from, resumed._resume = str(tmp_path / "epoch_2.pth"), True
    resumed.train()
    assert {path.name for path in tmp_path.glob("*.pth")} == {*theirs, "epoch_4.pth"}
    assert all((tmp_path / name).read_bytes() == content for name, content in theirs.items())


def test_a_run_that_goes_on_in_another_folder_removes_nothing_there(tmp_path):
    runner_for(tmp_path / "one", [], epochs=2).train()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/epoch_1.pth").write_bytes(b"of somebody else")
    resumed = runner_for(tmp_path / "two", [], epochs=4, keep=1)
    resumed._load_from, resumed._resume = str(tmp_path / "one/epoch_2.pth"), True
    resumed.train()
    assert sorted(path.name for path in (tmp_path / "two").glob("*.pth")) == ["epoch_1.pth", "epoch_4.pth"]
    assert sorted(path.name for path in (tmp_path / "one").glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_last_checkpoint(tmp_path, factor):
    runner = runner_for(tmp_path, [{"type": "StopAtNaN"}], model=Line({6: factor}))
    with refused("NaN", "step 6", "epoch 2", tmp_path / "epoch_1.pth", "go on with --resume"):
        runner.train()
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"


def test_weights_that_the_last_step_of_an_epoch_ruined_are_no_checkpoint(tmp_path):
    runner = runner_for(tmp_path, [{"type": "StopAtNaN"}], model=Line({1: 0.0, 2: 0.0, 3: 0.0, STEPS: 1e38}), lr=10)
    with refused(f"step {STEPS}", "epoch 1", "no checkpoint", "lower"):
        runner.train()
    assert find_checkpoint(tmp_path) is None


def test_ruined_weights_are_no_checkpoint_within_an_epoch_either(tmp_path):
    model = Line({1: 0.0, 2: 1e38})
    with refused("step 2", "epoch 1", tmp_path / "iter_1.pth", "lower"):
        runner_for(tmp_path, [{"type": "StopAtNaN"}, {"type": "ExactResume"}], model=model, lr=10, steps=1).train()
    assert find_checkpoint(tmp_path) == tmp_path / "iter_1.pth"


def test_losses_are_summed_where_no_total_is_given():
    assert loss_of({"loss": 1.0, "loss_box": 2.0}) == 1.0
    assert loss_of({"loss_class": 1.0, "loss_box": 2.0, "accuracy": 9.0}) == 3.0


def test_progress_is_one_line_with_stage_epoch_step_loss_rate_and_time_left(tmp_path, capsys):
    runner_for(tmp_path, [{"type": "ProgressLine", "stage": "search"}], epochs=2).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "mmengine" not in line]
    place = r"search  epoch {}/2  step {}/4  loss [\d.e+-]+  lr 0.1  ETA \d:\d\d:\d\d"
    expected = [place.format(epoch, step) for epoch, step in ((1, 1), (1, 4), (2, 4))]
    assert len(lines) == 3 and all(re.fullmatch(*pair) for pair in zip(expected, lines, strict=True)), lines
    assert list(tmp_path.glob("*/*.log")), "mmengine's own log stays in its file"
