"""Reading configs, starting N processes, and the one place that decides between NCCL and gloo."""

import argparse
import ast
import ctypes
import datetime
import hashlib
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from dada_det.engine.runtime.environment import one_gpu_each, started_processes
from dada_det.errors import UserError
from dada_det.files import make_folder

# How long a process waits for another one that lives but does not answer. It is long because rank 0 alone computes COCO's
# figures. A process that dies is noticed within seconds in any case.
TIMEOUT = datetime.timedelta(minutes=30)
PATIENCE = 30  # seconds that torchrun gives a process to end before it kills it
PR_SET_PDEATHSIG = 1  # of prctl(2)


def read_config(path: str, options: Sequence[str] = ()) -> Config:
    """The mmengine config in `path` with `key=value` options applied.

    Raises:
        UserError: the file or an option is broken.
    """
    given = parse_options(options)
    try:
        config = without_layout(Config.fromfile(path))
        make_room(config, given)
        config.merge_from_dict(given)
    except UserError:
        raise
    except Exception as error:  # a config is code, which raises what it likes
        said = " ".join(str(error).split()) or type(error).__name__
        given_too = f" with --cfg-options {' '.join(options)}" if options else ""
        raise UserError(f"cannot read the config {path}{given_too}: {said}; correct it") from error
    return config


def make_room(config: Config, given: dict[str, Any]) -> None:
    """Puts an empty dict where `given` writes entries into None, or a dict over a number; mmengine would not merge these.

    Raises:
        UserError: an index is beyond the end of a list.
    """
    for name, value in given.items():
        node: Any = config
        *outer, last = name.split(".")
        for depth, key in enumerate((*outer, last)):
            if isinstance(node, list | tuple):
                if not key.isdigit() or int(key) >= len(node):
                    raise UserError(f"--cfg-options gives {name}, and {'.'.join(outer[:depth])} is a list of {len(node)}, "
                                    "whose first entry is 0; give the number of one")
                node = node[int(key)]
            elif key not in node:
                break
            elif node[key] is None and (key != last or isinstance(value, dict)):
                node[key] = ConfigDict()
                break
            elif key == last and isinstance(value, dict) and not isinstance(node[key], dict):
                node[key] = ConfigDict()
            elif not isinstance(node[key], dict | list | tuple):
                break
            else:
                node = node[key]


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """What `key=value` options say, as MMDetection reads them, and dicts too: key={'a': 1} or key=dict(a=1)."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    given: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not all(name.split(".")):
            raise UserError(f"--cfg-options {option}: write key=value, with dots between the keys, as in optimizer.lr=0.1")
        parsed: Any = text.strip()
        try:
            if parsed.startswith(("{", "dict(")):
                given[name] = literal(ast.parse(parsed, mode="eval").body)
            else:
                given.update(parser.parse_args(["--cfg-options", option]).cfg_options)
        except (argparse.ArgumentError, ValueError, SyntaxError, AssertionError, TypeError) as error:
            raise UserError(f"--cfg-options {option}: the value is neither a number, a word, a list nor a dict "
                            f"({error})") from error
    return given


def literal(node: ast.AST) -> Any:
    """The value of Python's literals and of dict(name=literal, ..).

    Raises:
        ValueError: `node` is anything else.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [literal(entry) for entry in node.elts]
    return ast.literal_eval(node)


def without_layout(config: Config) -> Config:
    """`config` with yapf switched off for its text. Yapf takes a second or more, four times a run and at every checkpoint.

    Config.fromfile has the argument format_python_code for this, but forgets it.
    """
    object.__setattr__(config, "_format_python_code", False)
    return config


def start_processes(module: str, argv: Sequence[str], processes: int) -> int:
    """Runs `python -m module argv` in `processes` processes, as torchrun does; returns the exit code.

    When one process ends with an error, the others are ended too (SIGTERM, PATIENCE later SIGKILL). The exit code is 2 if a
    process ended with 2: it has said why, and torchrun's own report would only hide it.

    Raises:
        UserError: a process was killed.
        KeyboardInterrupt: Ctrl-C, which has reached the processes too.
    """
    for library in ("OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # What torchrun makes of --standalone: a free port, so that two runs of one machine do not meet.
    config, command, arguments = config_from_args(parse_args(
        ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", uuid.uuid4().hex,
         "--nproc-per-node", str(processes), "-m", module, *argv]))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, command)(*arguments)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise
    except ChildFailedError as error:
        if killed := killed_processes(error):
            rank, number = next(iter(killed.items()))
            why = ", mostly for want of memory" if number == signal.SIGKILL else ""
            raise UserError(f"process {rank} of {processes} was killed by {signal.Signals(number).name}{why}, and the "
                            "others were stopped; its checkpoints are whole, and --resume goes on from the last") from error
        if any(failure.exitcode == 2 for failure in error.failures.values()):
            return 2
        raise
    return 0


def killed_processes(error: ChildFailedError) -> dict[int, int]:
    """Rank -> signal of the processes that were killed, but not by torchrun."""
    failures = error.failures
    first = min(failure.timestamp for failure in failures.values())
    # After one has failed, torchrun sends the others SIGTERM and, PATIENCE later, SIGKILL. Those are not the cause.
    return {rank: -failure.exitcode for rank, failure in failures.items()
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and failure.timestamp < first + PATIENCE / 2}


def join_processes() -> bool:
    """Joins the process group that torchrun or Slurm has announced; returns whether there is one.

    mmengine's own start calls torch.cuda.set_device even without a GPU, so the group is made here, before the Runner.
    """
    started_processes()
    if "LOCAL_RANK" not in os.environ:
        return False
    # A launcher that is killed cannot end its processes. They would write beside those of the resumed run.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not dist.is_initialized():
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        devices = torch.cuda.device_count()
        enough = devices >= local_size or (devices == 1 and one_gpu_each(local_size))
        if enough:
            torch.cuda.set_device(local_rank if devices > 1 else 0)
        elif int(os.environ["RANK"]) == 0:
            print(f"warning: {local_size} processes but {devices} CUDA devices: they share "
                  "what there is and talk over gloo", file=sys.stderr)
        dist.init_process_group("nccl" if enough else "gloo", timeout=TIMEOUT)
    return True


def leave_processes(failed: bool = False) -> None:
    """Ends this process's group, if it is in one.

    The threads of an open group can abort the interpreter at its end, after all work is done.

    Args:
        failed: whether this process gives up. A group over NCCL then stays open, as closing it would wait for the others.
    """
    if dist.is_initialized() and not (failed and dist.get_backend() == "nccl"):
        dist.destroy_process_group()


def say_machines(stage: str, work_dir: str, resume: bool) -> None:
    """On several machines (nodes) rank 0 prints how many they are and whether all see the work folder.

    Raises:
        UserError: not all see it, and the run resumes from a checkpoint, which only rank 0's machine has.
    """
    if not dist.is_initialized() or int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size():
        return
    folder, marks = make_folder(work_dir), [f".seen-{uuid.uuid4().hex}"]
    dist.broadcast_object_list(marks)
    mark = folder / marks[0]
    if dist.get_rank() == 0:
        mark.touch()
    dist.barrier()
    machines: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(machines, (socket.gethostname(), mark.exists(), os.environ["LOCAL_RANK"] == "0"))
    if dist.get_rank() == 0:
        mark.unlink()
    blind = sorted({host for host, sees, _ in machines if not sees})
    if blind and resume:
        raise UserError(f"{folder} is not shared: {', '.join(blind[:3])} does not see what {machines[0][0]} writes there, "
                        "and --resume needs its checkpoints; give a --work-dir that every machine sees")
    if dist.get_rank() == 0:
        where = (f"{folder} is not shared, and {machines[0][0]} has the results and checkpoints" if blind
                 else f"all of them share {folder}")
        print(f"{stage}  {len(machines)} processes on {sum(first for *_, first in machines)} nodes; {where}", flush=True)


def said_already(sentence: str) -> bool:
    """Whether another process of the group has said the sentence; False where nobody can be asked."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"said {hashlib.sha256(sentence.encode()).hexdigest()}", 1) > 1
    except (RuntimeError, ValueError):  # the group is not there, or its store has ended with rank 0
        return False
