import re

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import find_latest_checkpoint
from torch.utils.data import DataLoader

from dada_det.engine.checkpoint import check_checkpoint, find_checkpoint
from dada_det.engine.hooks import AtomicCheckpoint, QuietRunner, loss_of
from dada_det.errors import UserError

STEPS = 4


class Line(BaseModel):
    """One weight; `losses` maps a step (counted from 1) to what its loss is multiplied with."""

    def __init__(self, losses=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.steps = losses or {}, 0

    def forward(self, data, mode):
        self.steps += 1
        return {"loss": ((self.weight - data) ** 2).mean() * self.losses.get(self.steps, 1.0)}

    def train_step(self, data, optim_wrapper):
        loss, values = self.parse_losses(self(data, mode="loss"))
        optim_wrapper.update_params(loss)
        return values


def runner_for(folder, hooks, epochs=3, model=None, lr=0.1):
    return QuietRunner(
        model=model or Line(), work_dir=str(folder), train_dataloader=DataLoader(torch.ones(STEPS, 1)),
        train_cfg={"by_epoch": True, "max_epochs": epochs}, optim_wrapper={"optimizer": {"type": "SGD", "lr": lr}},
        default_hooks={"logger": None, "checkpoint": {"type": "AtomicCheckpoint"}}, custom_hooks=hooks,
        experiment_name="hooks")


def test_checkpoints_are_whole_the_newest_two_stay_and_mmengine_finds_them(tmp_path, monkeypatch):
    seen = []
    original = AtomicCheckpoint._save_checkpoint_with_step

    def spy(self, runner, step, meta):
        original(self, runner, step, meta)
        seen.append(sorted(path.name for path in tmp_path.glob("epoch_*.pth")))

    monkeypatch.setattr(AtomicCheckpoint, "_save_checkpoint_with_step", spy)
    runner_for(tmp_path, [], epochs=4).train()
    assert seen == [["epoch_1.pth"], ["epoch_1.pth", "epoch_2.pth"], ["epoch_2.pth", "epoch_3.pth"],
                    ["epoch_3.pth", "epoch_4.pth"]]
    assert find_latest_checkpoint(str(tmp_path)) == str(find_checkpoint(tmp_path)) == str(tmp_path / "epoch_4.pth")
    assert check_checkpoint(tmp_path / "epoch_4.pth")["meta"]["epoch"] == 4
    assert not list(tmp_path.glob(".*tmp"))


def test_an_interrupted_save_leaves_the_old_checkpoints(tmp_path, monkeypatch):
    runner = runner_for(tmp_path, [], epochs=3)
    save = runner.save_checkpoint

    def fail_late(folder, name, **options):
        save(folder, name, **options)
        if runner.epoch == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "save_checkpoint", fail_late)
    with pytest.raises(UserError, match=r"cannot write .*epoch_3.pth: No space left on device; choose another place"):
        runner.train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_2.pth"


def test_a_new_run_keeps_its_checkpoints_beside_an_older_longer_one(tmp_path):
    runner_for(tmp_path, [], epochs=5).train()
    runner_for(tmp_path, [], epochs=1).train()
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_1.pth", "epoch_5.pth"]
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_last_checkpoint(tmp_path, factor):
    runner = runner_for(tmp_path, [{"type": "StopAtNaN"}], model=Line({6: factor}))
    message = rf"the loss became NaN or infinite at step 6 \(epoch 2\); the last good checkpoint is {tmp_path}/epoch_1.pth"
    with pytest.raises(UserError, match=message):
        runner.train()
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"


def test_weights_that_the_last_step_of_an_epoch_ruined_are_no_checkpoint(tmp_path):
    runner = runner_for(tmp_path, [{"type": "StopAtNaN"}], model=Line({1: 0.0, 2: 0.0, 3: 0.0, STEPS: 1e38}), lr=10)
    with pytest.raises(UserError, match=rf"at step {STEPS} \(epoch 1\); no checkpoint had been written yet; lower the"):
        runner.train()
    assert find_checkpoint(tmp_path) is None


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
