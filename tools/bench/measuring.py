"""What the measurements in tools/bench share: a silent search, tasks side by side, and the file of their rows."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from dada_det.commands.search import main as search
from dada_det.engine.runtime.processes import side_by_side as processes_side_by_side
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json
from dada_det.report.measurements import Rows, write_rows

T = TypeVar("T")
R = TypeVar("R")


def run_search(argv: Sequence[str]) -> None:
    """Runs the search command (tools/search_imagenet.sh) with the flags `argv` in this process, without its output.

    Raises UserError with the command's own sentence where it fails.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = search(argv)
    if code == 130:
        raise KeyboardInterrupt  # the command has caught it, and the measurement must end too
    if code != 0:
        raise UserError(said.getvalue().strip().splitlines()[-1])


def side_by_side(work: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[T, R]]:
    """(task, work(task)) as each task ends, in `processes` processes of one thread each; 1 is this process.

    `work` and the tasks are pickled. The first error of a task is raised here, and no further task starts.
    """
    torch.set_num_threads(1)  # here too, so that no result depends on `processes`
    if processes == 1:
        for task in tasks:
            yield task, work(task)
        return
    yield from processes_side_by_side(work, tasks, processes, torch.set_num_threads, (1,))


def measure(label: str, work: Callable[[T], Rows], tasks: Sequence[T], processes: int, rows: Rows, path: Path | None,
            settings: dict[str, Any], said: Callable[[T, Rows], str]) -> None:
    """Adds the rows of work(task) of each task to `rows`, which are written to `path` after each; a progress line a task.

    said: what the line says of a task and its rows, behind `label` and their number.
    """
    if path is not None:
        make_folder(path.parent)
    began = time.monotonic()
    for number, (task, new) in enumerate(side_by_side(work, tasks, processes), 1):
        rows += new
        if path is not None:
            write_rows(path, rows, settings)
        eta = timedelta(seconds=round((time.monotonic() - began) / number * (len(tasks) - number)))
        print(f"{label}  {number}/{len(tasks)}  {said(task, new)}  ETA {eta}", file=sys.stderr, flush=True)


def rows_in(path: Path | None, settings: dict[str, Any], later: Sequence[str] = ()) -> Rows:
    """The rows that `path` holds already, where `write_rows` wrote it; UserError where it was measured with other settings.

    later: settings of which the file may say nothing yet, as its rows are of something else.
    """
    if path is None or not path.exists():
        return []
    found = read_json(path, "table")
    known = found.get("settings") if isinstance(found, dict) else None
    if (not isinstance(known, dict) or {**{name: settings[name] for name in later if name in settings}, **known} != settings
            or not isinstance(found.get("rows"), list)):
        raise UserError(f"{path} was not measured with {settings}; give its own flags, or another --json")
    return found["rows"]
