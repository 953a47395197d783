"""search.html: numbers over the epochs, effects and verdict where they are there, and nothing from elsewhere."""

import json
import re
from pathlib import Path

import pytest

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.commands.show_policy import drawn
from dada_det.errors import UserError
from dada_det.files import write_json
from dada_det.report.search_page import note_epoch, operations_of, search_page

EVIL = '<script>alert("x")</script>'


def sub_policy(preference: float, *operations: tuple[str, float, float]) -> dict:
    return {"preference": preference, "operations": [{"name": name, "probability": probability, "magnitude": magnitude}
                                                     for name, probability, magnitude in operations]}


TABLE = [sub_policy(0.75, ("Rotate", 0.4, 0.2), ("Color", 1.0, 0.5)), sub_policy(0.25, ("Rotate", 0.8, 0.6))]


def write_search(folder: Path, epoch: int, table: list[dict]) -> None:
    write_json(folder / "search.json", {"sub_policies": table, "provenance": {"epoch": epoch}})


def test_quantities_are_weighted_by_preference() -> None:
    found = operations_of(TABLE)
    assert set(found) == {"Rotate", "Color"}
    assert found["Rotate"] == pytest.approx({"preference": 1.0, "probability": 0.5, "strength": 0.3})
    assert found["Color"] == pytest.approx({"preference": 0.75, "probability": 1.0, "strength": 0.5})


def test_history_grows_by_an_epoch_and_a_resumed_search_writes_over_later_ones(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        write_search(tmp_path, epoch, TABLE)
        note_epoch(tmp_path)
    write_search(tmp_path, 2, TABLE[1:])
    note_epoch(tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert set(history[0]["operations"]) == {"Rotate", "Color"} and set(history[1]["operations"]) == {"Rotate"}
    write_search(tmp_path, 1, TABLE)
    note_epoch(tmp_path)
    assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    resolve_policy("dada-imagenet").save(tmp_path / "policy.json")
    for epoch in (1, 2, 3):
        write_search(tmp_path, epoch, TABLE)
        note_epoch(tmp_path)
    return tmp_path


def test_the_page_of_a_search_without_a_trial(folder: Path) -> None:
    page = search_page(folder, drawn()).read_text()
    assert "Operations over 3 epochs" in page and page.count("<polyline") == 6
    assert "Verdict" not in page and "the trial says" not in page
    assert page.count("<img ") == 4 * 7 and "heaviest sub-policies of policy.json" in page
    for sources in (r"<script", r"https?://", r'src="(?!data:)', r"@import", r"url\("):
        assert not re.search(sources, page), sources
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page and "max-width: 560px" in page
    assert len(page) < 1_000_000


def test_effects_and_verdict_with_their_standard_errors(folder: Path) -> None:
    write_json(folder / "effects.json", {"operations": [
        {"name": name, "effect": 0.01 * place - 0.05, "standard_error": 0.02}
        for place, name in enumerate(OPERATION_NAMES)]})
    write_json(folder / "verdict.json", {
        "winner": "trivial", "reference": "none", "figure": "AP", "unit": "an image's AP",
        "sentence": f"the trial says that `trivial` wins {EVIL}", "candidates": [
            {"name": "trivial", "accuracy": 87.25, "difference": 3.25, "standard_error": 1.1,
             "shrunken": 0.1, "shrunken_error": 0.02},
            {"name": EVIL, "accuracy": 84.0, "difference": None, "standard_error": None}]})
    page = search_page(folder, drawn()).read_text()
    assert EVIL not in page and "<p>The trial says that <code>trivial</code> wins &lt;script&gt;" in page
    assert "<th scope=row>trivial ← handed over</th><td class=number>87.2</td><td class=number>+3.2 ± 1.1</td>" in page
    assert "<td class=number>+0.100 ± 0.020</td>" in page
    assert "<td class=number>–</td>" in page and "<th scope=col class=number>AP</th>" in page
    assert "Score: an image&#x27;s AP, compared" in page
    # The best first; a whisker for each operation.
    assert page.count("class=whisker") == len(OPERATION_NAMES)
    assert page.index(f"{OPERATION_NAMES[-1]}: +0.090 ± 0.020") < page.index(f"{OPERATION_NAMES[0]}: -0.050 ± 0.020")


def test_a_policy_by_name_shows_the_pictures_of_the_proposal(folder: Path) -> None:
    (folder / "policy.json").rename(folder / "proposal.json")
    write_json(folder / "policy.json", {"schema": 1, "policy": "trivial"})
    assert "heaviest sub-policies of proposal.json" in search_page(folder, drawn()).read_text()
    (folder / "proposal.json").unlink()
    assert "<img" not in search_page(folder, drawn()).read_text()


@pytest.mark.parametrize("name", ["verdict.json", "effects.json", "history.json"])
def test_files_of_something_else_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"operations": 3, "candidates": 4, "epochs": [{}]}')
    with pytest.raises(UserError, match=f"{name} is no .* that a search wrote"):
        search_page(folder, drawn())
