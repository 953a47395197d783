"""What a run may go on from, entry by entry, and which folders it may empty."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dada_det.engine.runtime.identity import MARKER, demand_own, demand_same, own_folder, plain, resume_point
from dada_det.errors import UserError
from tests.messages import refused

OURS = {"lr": 0.1, "search": {"draws": 2, "spread": None}, "operations": ["Invert", "Rotate"], "steps": [{"end": 3}],
        "ema": {}}


@pytest.mark.parametrize(("theirs", "said"), [
    ({**OURS, "lr": 0.2}, "lr 0.2 instead of 0.1"), ({**OURS, "search": {"draws": 1}}, "search.draws 1 instead of 2"),
    ({**OURS, "operations": ["Invert"]}, "operations ['Invert'] instead of ['Invert', 'Rotate']"),
    ({**OURS, "steps": [{"end": 4}]}, "steps.0.end 4 instead of 3"), ({**OURS, "more": 5}, "more 5 instead of nothing"),
    ({**OURS, "ema": {"momentum": 0.3}}, "ema.momentum 0.3 instead of nothing"),
    ({key: value for key, value in OURS.items() if key != "lr"}, "lr nothing instead of 0.1")])
def test_what_differs_is_named_with_both_values(theirs: dict[str, Any], said: str) -> None:
    with refused("epoch_1.pth", f"({said})", "--work-dir"):
        demand_same(Path("epoch_1.pth"), theirs, OURS)


def test_many_differences_are_counted() -> None:
    with refused("0 0 instead of 1", "5 5 instead of 6", "4 entries more"):
        demand_same(Path("a"), {str(name): name for name in range(10)}, {str(name): name + 1 for name in range(10)})


def test_entries_that_came_later_and_are_nothing_are_no_difference() -> None:
    demand_same(Path("a"), {"lr": 0.1}, {"lr": 0.1, "weights": None, "ema": {}, "drops": []})


@pytest.mark.parametrize("theirs", [None, "resnet50, 10 images", 3])
def test_what_does_not_say_whose_it_is_is_refused(theirs: Any) -> None:
    with refused("a", "which run"):
        demand_same(Path("a"), theirs, OURS)


def test_an_identity_is_plain_values() -> None:
    assert plain({"a": (1, (2.5, None)), 3: {"b": Path("x")}}) == {"a": [1, [2.5, None]], "3": {"b": "x"}}


def test_the_point_to_go_on_from_is_the_newest_or_the_one_that_is_given(tmp_path: Path) -> None:
    assert resume_point(tmp_path, OURS, "search") is None
    for number in (1, 2):
        torch.save({"state_dict": {}, "meta": {"iter": number, "identity": OURS}}, tmp_path / f"epoch_{number}.pth")
    assert resume_point(tmp_path, OURS, "search") == tmp_path / "epoch_2.pth"
    assert resume_point(tmp_path, OURS, "search", str(tmp_path / "epoch_1.pth")) == tmp_path / "epoch_1.pth"
    for checkpoint in (None, str(tmp_path / "epoch_1.pth")):
        with pytest.raises(UserError, match="is of another run"):
            resume_point(tmp_path, {**OURS, "lr": 1}, "search", checkpoint)


def test_a_folder_with_somebody_elses_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "trainings"
    folder.mkdir()
    (folder / "model.pth").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link", folder / "model.pth"):
        for action in (demand_own, lambda path: own_folder(path, OURS, keep=False)):
            with refused("not made by a run"):
                action(place)
    assert (folder / "model.pth").read_text() == "mine"


def test_what_a_kill_leaves_of_a_marker_or_of_a_removal_is_no_obstacle(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trainings"
    folder.mkdir()
    (folder / f".{MARKER}.77.tmp").write_text("{")
    demand_own(folder)
    own_folder(folder, OURS, keep=True)
    (folder / "result.pth").write_text("result")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt) if path.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            own_folder(folder, {"lr": 1}, keep=True)
    own_folder(folder, {"lr": 1}, keep=True)
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_a_folder_of_ones_own_is_kept_for_the_same_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "trainings"
    for identity, keep, stays in ((OURS, True, False), (OURS, True, True), (OURS, False, False), ({"lr": 1}, True, False)):
        own_folder(folder, identity, keep)
        assert (folder / "result.pth").exists() == stays and (folder / MARKER).is_file()
        (folder / "result.pth").write_text("result")
    (folder / "notes.txt").write_text("mine")
    own_folder(folder, OURS, keep=False, written="*.pth")
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", MARKER]
