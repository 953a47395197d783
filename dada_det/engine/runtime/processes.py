"""Tasks side by side in processes of this machine."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], tasks: Sequence[T], processes: int, start: Callable[..., None],
                 arguments: tuple[Any, ...] = ()) -> Iterator[tuple[T, R]]:
    """Yields (task, work(task)) as each task ends.

    Args:
        work, tasks: what is pickled and run.
        processes: how many, spawned.
        start, arguments: what each process calls before its first task.

    Raises:
        Exception: the first error of a task; no further task starts then.
    """
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), start_worker, (start, arguments))
    try:
        futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Prepares a process for its tasks."""
    start(*arguments)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this process with its parent: a worker whose parent was killed would wait for another task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
