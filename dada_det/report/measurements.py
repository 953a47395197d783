"""Files of results: the rows, and the command, commit, hardware and versions that they were measured with."""

import contextlib
import functools
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dada_det import __version__
from dada_det.files import write_json

ROOT = Path(__file__).resolve().parents[2]  # of the repository
Rows = list[dict[str, Any]]


def hardware() -> str:
    """The GPU's name, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command of this process, as one types it from the repository's root.

    A path below the root is given relative to it, and of any other absolute path only the last part stays, so that a file of
    results says nothing about the machine's folders.

    Args:
        argv: default sys.argv.
    """
    program, *arguments = sys.argv if argv is None else argv
    return shlex.join(["python", *map(without_machine, [program, *arguments])])


def without_machine(argument: str) -> str:
    name, equals, value = argument.rpartition("=")
    if not Path(value).is_absolute():
        return argument
    path = Path(value).resolve()
    shown = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else f".../{path.name}"
    return f"{name}{equals}{shown}"


@functools.cache
def commit() -> str:
    """The short hash of the commit that this code is of, with "-dirty" where tracked files differ; "unknown" outside git."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"  # an installed copy inside somebody else's repository
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_rows(path: Path | str, rows: Rows, settings: dict[str, Any] | None = None) -> None:
    """Writes a file of results.

    {"command", "commit", "hardware", "versions", "rows"}, "settings" (what the rows were measured with) where there are
    any, and "earlier": the [{"command", "commit"}, ..] of the rows that stood in the file before and were kept.

    Args:
        path: of the JSON file; it is replaced as a whole.
        rows: one entry a run; a measurement that goes on adds to the rows that it has read from `path`.
        settings: of all rows.

    Raises:
        UserError: the file cannot be written.
    """
    own = {"command": command_line(), "commit": commit()}
    earlier = earlier_origins(Path(path), rows, own)
    write_json(path, {**own, **({"earlier": earlier} if earlier else {}), "hardware": hardware(),
                      "versions": {"torch": version("torch"), "timm": version("timm"), "dada_det": __version__},
                      **({"settings": settings} if settings else {}), "rows": rows})


def earlier_origins(path: Path, rows: Rows, own: dict[str, str]) -> list[dict[str, str]]:
    """Where the rows come from that `path` holds and `rows` begin with, without `own`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = found["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if not kept or rows[:len(kept)] != kept:
        return []
    last = {name: str(found.get(name, "unknown")) for name in own}
    return [origin for origin in [*found.get("earlier", []), last] if origin != own]
