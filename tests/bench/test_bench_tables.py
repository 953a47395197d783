"""The tables in the pages are those of the files in results/."""

from pathlib import Path

import pytest

from tests.conftest import load_bench

tables = load_bench("tables")


def test_no_page_differs_from_the_files(capsys: pytest.CaptureFixture) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_every_table_stands_in_a_page() -> None:
    pages = "".join(path.read_text() for pattern in tables.PAGES for path in tables.ROOT.glob(pattern))
    assert set(tables.TABLES) == {found[2] for found in tables.REGION.finditer(pages)}


def test_a_changed_figure_is_noticed_and_written_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table: t -->\n| 1 |\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"t": lambda: ["| 2 |"]})
    assert tables.main(["--check"]) == 2 and "README.md" in capsys.readouterr().err
    assert "| 1 |" in page.read_text()
    assert tables.main([]) == 0
    assert page.read_text() == "before\n<!-- table: t -->\n| 2 |\n<!-- end -->\nafter\n"
    page.write_text("<!-- table: u -->\n<!-- end -->\n")
    assert tables.main([]) == 2 and "'u'" in capsys.readouterr().err
