"""The end of a run in several processes, and the python that tools/*.sh start."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from dada_det.commands import common
from dada_det.commands.common import ROOT
from dada_det.engine.runtime import launch

COMMAND = """
import sys
from dada_det.commands import common
from dada_det.errors import UserError

def body(args):
    from dada_det.engine.runtime.launch import join_processes
    join_processes()
    import torch
    import torch.distributed as dist
    dist.all_reduce(torch.ones(1))
    if "fail" in sys.argv:
        raise UserError("no more")

if __name__ == "__main__":
    parser = common.parser_for("joining", "", "")
    parser.add_argument("fault", nargs="?")
    common.add_common_flags(parser)
    code = common.run(body, parser, module="joining")
    import torch.distributed as dist
    assert not dist.is_initialized(), "the group is left open"
    raise SystemExit(code)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "joining.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(*flags):
        return subprocess.run([sys.executable, "-m", "joining", "--gpus", "2", *flags], env=environment, cwd=tmp_path,
                              text=True, capture_output=True, check=False)
    return start


@pytest.mark.parametrize(("flags", "code"), [pytest.param((), 0, id="done", marks=pytest.mark.slow),
                                             pytest.param(("fail",), 2, id="failed")])
def test_processes_leave_their_group_before_they_end(start, flags, code):
    done = start(*flags)
    assert done.returncode == code, done.stderr
    assert "left open" not in done.stderr and done.stderr.count("no more") == (code == 2)


@pytest.mark.slow
def test_two_processes_end_well_many_times_in_a_row(start):
    assert [start().returncode for _ in range(25)] == [0] * 25


def test_the_tools_find_a_python3_where_there_is_no_python(tmp_path):
    (tmp_path / "python3").write_text(f'#!/bin/sh\nFOUND=python3 exec "{sys.executable}" "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    for name in ("bash", "env", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run([str(ROOT / "tools/python.sh"), "-c", "import os; print(os.environ['FOUND'])"], text=True,
                          env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "python3\n"), done.stderr


def test_an_interrupt_of_several_processes_is_one_line(monkeypatch, capsys):
    def interrupted(config, command):
        def run(*arguments):
            raise SignalException("Process 1 got signal: 2", signal.SIGINT)
        return run

    monkeypatch.setattr(launch, "elastic_launch", interrupted)
    parser = common.parser_for("joining", "", "")
    common.add_common_flags(parser)
    assert common.run(lambda args: None, parser, ["--gpus", "2"], module="joining") == 130
    assert capsys.readouterr().err == "joining: interrupted\n"
