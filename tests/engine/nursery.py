"""Stages in processes that die: forked from one that has imported everything, which saves each the seconds of its imports.

A moment such as "epoch_2.pth is half written" is met exactly by a process that sends itself SIGKILL there; a random one from
outside. Run as a script this file is the process that forks.
"""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LATE = ("matplotlib.figure", "matplotlib.backends.backend_agg", "yapf.yapflib.yapf_api", "timm")  # imported by a Runner
HEAVY = {"search": ("dada_det.engine.search.run",), "pretrain": ("dada_det.engine.pretrain.run", "torchvision.models"),
         "train_det": ("dada_det.engine.detect.run", "torchvision.models")}

Moment = tuple[str, str, int]  # "during" a step or a file, "before" or "after" a file; which; the how manieth in the process


class Nursery:
    """Runs one stage at a time, each in a process of its own."""

    killed = -signal.SIGKILL  # the exit code
    environment = ENVIRONMENT

    def __init__(self) -> None:
        self.server = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=ENVIRONMENT, text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, stage: str, argv: list[str], log: Path, moment: Moment | None = None) -> int:
        """Starts `stage` (search, pretrain, train_det), which prints into `log` and kills itself at `moment`; its id."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([stage, argv, str(log), moment]) + "\n")
        self.server.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """The exit code of the stage that was started; -9 where SIGKILL ended it."""
        assert self.server.stdin is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        return int(self._answer())

    def run(self, stage: str, argv: list[str], log: Path, moment: Moment | None = None) -> int:
        self.start(stage, argv, log, moment)
        return self.wait()

    def kill_at_random(self, stage: str, argv: Callable[[Path], list[str]], folder: Path, kills: int, within: float,
                       seed: int) -> int:
        """Starts `stage` in a work_dir folder/<k> and kills it after 0 to `within` seconds, until `kills` hit; lets it end.

        Where a run ends before the kill, the next one is begun in a new work_dir; after three times `kills` it is enough.
        Returns the kills that hit.
        """
        chance, hits, number = random.Random(seed), 0, 0
        for tries in range(3 * kills + 1):
            doomed = hits < kills and tries < 3 * kills
            work_dir = folder / f"{number:03}"
            work_dir.mkdir(exist_ok=True)
            process = self.start(stage, argv(work_dir), work_dir / "log")
            if doomed:
                time.sleep(chance.uniform(0, within))
                os.kill(process, signal.SIGKILL)  # a zombie at worst: nobody else gets its number before wait()
            code = self.wait()
            assert code in (0, self.killed), (work_dir / "log").read_text()
            hits += code == self.killed
            number += code == 0
            if not doomed:
                break
        return hits

    def close(self) -> None:
        """Between stages the process that forks holds nothing; the end of its input it may never see, as loader workers that
        were forked here meanwhile keep the pipe open."""
        with self.server:  # closes the pipes and waits for the process, not for an end of what it prints
            self.server.kill()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()


def serve() -> None:
    """Forks a stage for every line [stage, argv, log, moment] and answers with its process id, then its exit code."""
    while line := sys.stdin.readline():
        stage, argv, log, moment = json.loads(line)
        for module in (*LATE, *HEAVY[stage]):
            importlib.import_module(module)
        main = importlib.import_module(f"dada_det.commands.{stage}").main
        child = os.fork()
        if child == 0:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            if moment is not None:
                arm(*moment)
            try:
                code = main(argv)
            except SystemExit:  # --help
                code = 0
            sys.stdout.flush()
            os._exit(code)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def arm(when: str, name: str, times: int) -> None:
    """SIGKILL to this process at the `times`-th "step", or before, after or during the writing of a file `name`."""
    from mmengine.fileio import LocalBackend

    from dada_det.engine.runtime.hooks import ProgressLine

    calls = 0

    def due(called: str) -> bool:
        nonlocal calls
        calls += called == name
        return called == name and calls == times

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    after_step, replace, put = ProgressLine.after_train_iter, os.replace, LocalBackend.put

    def dying_step(self: ProgressLine, *arguments: Any, **options: Any) -> None:
        after_step(self, *arguments, **options)
        if due("step"):
            die()

    def dying_replace(source: Path, target: Path) -> None:
        doomed = when != "during" and due(Path(target).name)
        if doomed and when == "before":
            die()
        replace(source, target)
        if doomed:
            die()

    def dying_put(self: LocalBackend, content: bytes, path: str) -> None:
        doomed = when == "during" and name in str(path) and due(name)
        put(self, content[:len(content) // 2] if doomed else content, path)
        if doomed:
            die()

    ProgressLine.after_train_iter, os.replace, LocalBackend.put = dying_step, dying_replace, dying_put  # type: ignore


if __name__ == "__main__":
    serve()
