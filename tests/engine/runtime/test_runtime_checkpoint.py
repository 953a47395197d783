import os
import pickle
import zipfile

import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import checkpoint as mmengine_checkpoint

from dada_det.engine.runtime.checkpoint import (
    check_checkpoint,
    find_checkpoint,
    forbid_unsafe_loading,
    load_checkpoint,
    newest_that_loads,
)
from dada_det.errors import UserError
from tests.messages import assert_names, refused


class Call:
    """Pickles as the call function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def save(path, **content):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "meta": {"epoch": 1}, **content}, path)
    return path


@pytest.mark.parametrize("payload", [
    Call(os.system, "true"),
    Call(eval, "1 + 1"),
    Call(getattr, getattr, "__self__"),  # mmengine's allow-list lets this through: the builtins module, and so eval
    Call(getattr, HistoryBuffer, "__init__"),
])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, payload):
    path = save(tmp_path / "epoch_1.pth", payload=payload)
    with refused(path, "pickle"):
        check_checkpoint(path)


def test_the_loss_history_of_mmengine_is_read(tmp_path):
    hub = MessageHub.get_instance("test_the_loss_history")
    hub.update_scalar("train/loss", 1.5)
    hub.update_info("array", torch.ones(2).numpy())
    content = check_checkpoint(save(tmp_path / "epoch_1.pth", message_hub=hub.state_dict()))
    assert content["message_hub"]["log_scalars"]["train/loss"].current() == 1.5
    assert content["state_dict"]["weight"].tolist() == [1, 1]


def test_mmengines_own_loader_is_kept_from_unsafe_loading(tmp_path, monkeypatch):
    path = save(tmp_path / "epoch_1.pth", payload=Call(os.system, f"touch {tmp_path}/ran"))
    monkeypatch.setattr(mmengine_checkpoint, "_safe_torch_load", mmengine_checkpoint._safe_torch_load)
    forbid_unsafe_loading()
    with pytest.raises(UserError, match="carries code"):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint(str(path), "cpu")
    assert not (tmp_path / "ran").exists()


def test_the_config_that_resuming_would_execute_is_dropped(tmp_path):
    path = save(tmp_path / "epoch_1.pth", meta={"epoch": 1, "config": "raise SystemExit('ran')"})
    assert load_checkpoint(path)["meta"] == {"epoch": 1}


def test_truncated_missing_and_foreign_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("half.pth", "text.pth", "empty.pth"):
        with refused(tmp_path / name, "truncated"):
            check_checkpoint(tmp_path / name)
    with refused(tmp_path / "gone.pth", "No such file"):
        check_checkpoint(tmp_path / "gone.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        check_checkpoint(tmp_path / "list.pth")
    with refused(save(tmp_path / "text.pth", meta="of text"), "meta"):
        check_checkpoint(tmp_path / "text.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(UserError, match=r"plain.pth (carries code|is truncated)"):
        check_checkpoint(tmp_path / "plain.pth")


def test_the_newest_checkpoint_is_the_one_that_is_named_then_the_furthest(tmp_path):
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path / "none") is None
    for name, steps in (("epoch_9.pth", 90), ("epoch_10.pth", 100), ("iter_99.pth", 99), ("epoch_2.pth", 20)):
        save(tmp_path / name, meta={"iter": steps})  # the youngest file is that of a run that had come least far
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_10.pth"
    (tmp_path / "last_checkpoint").write_text("/moved/from/elsewhere/epoch_9.pth")
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_9.pth"

    with zipfile.ZipFile(tmp_path / "epoch_9.pth") as archive:
        start = archive.infolist()[-1].header_offset
    damaged = bytearray((tmp_path / "epoch_9.pth").read_bytes())
    (tmp_path / "epoch_9.pth").write_bytes(damaged[:start])
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_10.pth"
    (tmp_path / "epoch_10.pth").unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "iter_99.pth"


@pytest.mark.parametrize("order", [("epoch_1.pth", "epoch_2.pth", "last_checkpoint"),
                                   ("last_checkpoint", "epoch_2.pth", "epoch_1.pth")])
def test_a_copied_folder_goes_on_from_the_same_checkpoint(order, tmp_path):
    """A copy gives every file a new time, in any order."""
    (tmp_path / "from").mkdir()
    for name in ("epoch_1.pth", "epoch_2.pth"):
        save(tmp_path / "from" / name, meta={"iter": int(name[6])})
    for named in ("epoch_2.pth", None):
        if named:
            (tmp_path / "from/last_checkpoint").write_text(str(tmp_path / "from" / named))
        else:
            (tmp_path / "from/last_checkpoint").unlink()
        to = tmp_path / f"to-{named}"
        to.mkdir()
        for second, name in enumerate(order):
            if (tmp_path / "from" / name).exists():
                (to / name).write_bytes((tmp_path / "from" / name).read_bytes())
                os.utime(to / name, (second, second))
        found = newest_that_loads(to, "search")
        assert found is not None and found[0] == find_checkpoint(to) == to / "epoch_2.pth"


def test_damaged_checkpoints_are_skipped_by_name(tmp_path, capsys):
    for name in ("epoch_1.pth", "epoch_2.pth", "iter_5.pth", "epoch_3.pth"):
        save(tmp_path / name)
    content = (tmp_path / "epoch_3.pth").read_bytes()
    (tmp_path / "epoch_3.pth").write_bytes(content[:-100])
    with zipfile.ZipFile(tmp_path / "iter_5.pth", "w") as archive:  # whole, and still no checkpoint
        archive.writestr("archive/data.pkl", b"nothing")
    torch.save([1], tmp_path / "epoch_2.pth")
    for name, place, bit in (("epoch_4.pth", 8, 1), ("epoch_5.pth", 10, 64), ("epoch_6.pth", 10, 8)):
        raw = bytearray(save(tmp_path / name).read_bytes())  # as encrypted, or packed in a way that is not
        raw[raw.index(b"PK\x01\x02") + place] |= bit
        (tmp_path / name).write_bytes(raw)
    save(tmp_path / "epoch_7.pth", meta="of text")
    found = newest_that_loads(tmp_path, "search")
    assert found is not None and found[0] == tmp_path / "epoch_1.pth" and found[1]["meta"]["epoch"] == 1
    said = capsys.readouterr().out.splitlines()
    *skipped, going_on = said
    for line, name in zip(sorted(skipped), (*(f"epoch_{number}.pth" for number in range(2, 8)), "iter_5.pth"), strict=True):
        assert_names(line, "--resume", "skipped", tmp_path / name)
    assert_names(going_on, "--resume", "going on", tmp_path / "epoch_1.pth")
    assert find_checkpoint(tmp_path) == tmp_path / "epoch_1.pth"
    (tmp_path / "epoch_1.pth").write_bytes(b"")
    assert newest_that_loads(tmp_path, "search") is None
    assert_names(capsys.readouterr().out.splitlines()[-1], "--resume", tmp_path)


def test_a_checkpoint_with_code_stops_and_is_not_skipped(tmp_path):
    save(tmp_path / "epoch_1.pth")
    save(tmp_path / "epoch_2.pth", payload=Call(os.system, f"touch {tmp_path}/ran"))
    with pytest.raises(UserError, match=r"epoch_2.pth carries code"):
        newest_that_loads(tmp_path, "search")
    assert not (tmp_path / "ran").exists()
