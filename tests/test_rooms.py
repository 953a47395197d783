"""Each room of the package imports only what CONTRIBUTING.md's table lets it import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "dada_det"
Table = dict[str, tuple[set[str], set[str]]]  # room -> (rooms, packages)


def table() -> Table:
    """The table of rooms in CONTRIBUTING.md."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")]
    found = {row[0].strip("`"): (names(row[2]), names(row[3])) for row in cells}
    return {room: (set(found) if rooms == {"all"} else rooms, packages) for room, (rooms, packages) in found.items()}


def names(cell: str) -> set[str]:
    return {name.strip() for name in cell.split(",") if name.strip()}


def room_of(module: str) -> str:
    """The room of dada_det.<..>; "" for the names in dada_det.engine that users' configs import."""
    parts = module.split(".")[1:]
    if parts[:1] == ["engine"]:
        return f"engine.{parts[1]}" if len(parts) > 1 and (PACKAGE / "engine" / parts[1]).is_dir() else ""
    return parts[0] if parts and (PACKAGE / parts[0]).is_dir() else "base"


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions too, but not what it does as a program."""
    for node in (node for top in ast.parse(path.read_text()).body if not is_program(top) for node in ast.walk(top)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_program(node: ast.stmt) -> bool:
    """if __name__ == "__main__": .."""
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


def forbidden(path: Path, module: str, rooms: Table) -> list[str]:
    """What `path`, as the module `module`, imports against the table."""
    own = room_of(module)
    may_rooms, may_packages = rooms[own]
    wrong = []
    for name in imports(path):
        if name.partition(".")[0] == "dada_det":
            if room_of(name) not in {own, "base", *may_rooms}:
                wrong.append(f"{module} imports {name}")
        elif name.partition(".")[0] not in sys.stdlib_module_names | may_packages:
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.is_relative_to(PACKAGE / "configs"):  # a link to configs/
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if room_of(module):
                yield path, module


def test_every_room_stands_in_the_table() -> None:
    assert {room_of(module) for _, module in modules()} == set(table())


def test_no_room_imports_what_it_may_not() -> None:
    rooms = table()
    wrong = [line for path, module in modules() for line in forbidden(path, module, rooms)]
    assert not wrong, "\n".join(wrong)


def test_rooms_stand_one_above_the_other() -> None:
    rooms, placed = table(), set()
    while left := [room for room in rooms if room not in placed]:
        lowest = {room for room in left if rooms[room][0] - {room} <= placed}
        assert lowest, f"{left} import each other in a circle"
        placed |= lowest


@pytest.mark.parametrize("line", ["import mmengine", "def f():\n    from dada_det.engine.search import run"])
def test_a_forbidden_import_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "dada.py").write_text(line)
    assert forbidden(tmp_path / "dada.py", "dada_det.search.dada", table())
