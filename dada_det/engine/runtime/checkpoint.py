"""Finds and reads checkpoints that a stranger may have written, without running code from them.

mmengine runs code from a file in four ways: its loader falls back to weights_only=False, it unpickles what it downloads, its
allow-list holds plain `getattr` (which reaches eval), and Runner.resume executes the text under meta["config"]. All four are
closed here.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from numpy._core import multiarray

from dada_det.errors import UserError
from dada_det.files import make_folder

SIGNS_OF_CODE = ("Unsupported global", "Unsupported class", "unrecognized function", "whose module", "Can only create",
                 "Can only build")  # in what torch's weights-only unpickler raises; anything else is damage
SAME_COMMAND = "go on with the same command"  # of a command that has no --resume
_how_to_go_on = ["go on with --resume"]


class DamagedCheckpoint(UserError):
    """A file that is cut short, damaged or no checkpoint. A file that carries code is another error."""


def _history_method(owner: object, name: str) -> Any:
    """Replaces `getattr` in a pickle. It gives the statistics of mmengine's HistoryBuffer and nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise UnpicklingError(f"Unsupported global: GLOBAL builtins.getattr of {name!r}")
    return getattr(owner, name)


def safe_globals() -> list[Any]:
    """What a checkpoint may name beside tensors: mmengine's loss history and NumPy's numbers (1.x and 2.x names)."""
    numpy_types = [type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "uint8", "uint32", "float32", "float64")]
    names = [(getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
             for name in ("_reconstruct", "scalar") for core in ("core", "_core")]
    return [slice, HistoryBuffer, (_history_method, "builtins.getattr"), np.ndarray, np.dtype, *numpy_types, *names]


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> Any:
    """What torch.load(weights_only=True) reads from `path`, without meta["config"], which mmengine would execute.

    Raises:
        UserError: the file is missing or carries code.
        DamagedCheckpoint: it is damaged.
    """
    try:
        with torch.serialization.safe_globals(safe_globals()):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # a file made by somebody else can raise anything while it is read
        if any(sign in str(error) for sign in SIGNS_OF_CODE):
            raise UserError(f"the checkpoint {path} carries code in its pickle and is not opened; "
                            "give one that holds only tensors and plain values") from error
        raise DamagedCheckpoint(f"the checkpoint {path} is truncated, damaged or no torch file; give a whole one") from error
    if isinstance(content, dict) and isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)
    return content


@contextmanager
def goes_on_by(advice: str) -> Iterator[None]:
    """What a run inside that ends early says of how to go on."""
    _how_to_go_on.append(advice)
    try:
        yield
    finally:
        _how_to_go_on.pop()


def how_to_go_on() -> str:
    """The end of a sentence on a run that has ended early: what continues it."""
    return _how_to_go_on[-1]


def check_checkpoint(path: str | Path) -> dict[str, Any]:
    """The mmengine checkpoint in `path` as a dict, read on the CPU.

    Raises:
        UserError: the file cannot be trusted or is no checkpoint.
    """
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict", content), dict):
        raise DamagedCheckpoint(f"{path} holds no state dict; give a checkpoint that training wrote")
    if not isinstance(content.get("meta"), dict | None):
        raise DamagedCheckpoint(f"{path} has a {type(content['meta']).__name__} in the place of the dict `meta`; give a "
                                "checkpoint that training wrote")
    return content


def checkpoints(work_dir: str | Path) -> list[Path]:
    """epoch_*.pth and iter_*.pth in `work_dir`."""
    return sorted([*Path(work_dir).glob("epoch_*.pth"), *Path(work_dir).glob("iter_*.pth")])


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint of `work_dir` that the file last_checkpoint in it names, or None."""
    try:
        text = Path(work_dir, "last_checkpoint").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    # The folder may have been moved or copied since: only the name counts.
    return next((path for path in checkpoints(work_dir) if path.name == Path(text).name), None)


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint: the one that last_checkpoint names if it is whole, else the whole one with the most steps."""
    named = last_checkpoint(work_dir)
    if named is not None and is_whole(named):
        return named
    furthest: dict[Path, tuple[int, int]] = {}
    for path in checkpoints(work_dir):
        with suppress(UserError):  # find_checkpoint only names a checkpoint; who resumes reads it and says what is wrong
            if is_whole(path):
                furthest[path] = progress(path, check_checkpoint(path))
    return max(furthest, key=furthest.__getitem__, default=None)


def newest_that_loads(work_dir: str | Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that --resume goes on from and what it holds, or None; says which, and which damaged ones it skips.

    Raises:
        UserError: a checkpoint carries code. That is no accident, so nothing beside it is trusted either.
    """
    def say(sentence: str) -> None:
        if is_main_process():
            print(f"{stage}  --resume: {sentence}", flush=True)

    def loaded(path: Path) -> dict[str, Any] | None:
        with suppress(DamagedCheckpoint):
            if is_whole(path):
                return check_checkpoint(path)
        say(f"skipped {path}, which is truncated or damaged")
        return None

    named = last_checkpoint(work_dir)
    newest = named if named is not None and (content := loaded(named)) is not None else None
    if newest is None:
        furthest = {path: progress(path, content) for path in checkpoints(work_dir)
                    if path != named and (content := loaded(path)) is not None}
        newest = max(furthest, key=furthest.__getitem__, default=None)
        content = None if newest is None else check_checkpoint(newest)
    if newest is None or content is None:
        say(f"no checkpoint in {work_dir} yet, starting afresh")
        return None
    say(f"going on from {newest}")
    return newest, content


def progress(path: Path, content: dict[str, Any]) -> tuple[int, int]:
    """The key that sorts checkpoints by progress: the steps of the run, then the number in the name (epoch_12.pth: 12)."""
    steps, number = (content.get("meta") or {}).get("iter"), path.stem.rpartition("_")[2]
    return steps if isinstance(steps, int) else -1, int(number) if number.isdigit() else -1


def is_whole(path: Path) -> bool:
    """Whether `path` is a complete zip archive, as torch.save writes them, with every checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of damage: an entry can be called encrypted, or packed in any way
        return False


def forbid_unsafe_loading() -> None:
    """Makes mmengine load through load_checkpoint in this process, so that it raises UserError for what is refused."""

    def load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return load_checkpoint(file, map_location)

    def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = False) -> Any:
        path = make_folder(model_dir or Path(torch.hub.get_dir(), "checkpoints")) / Path(urlparse(url).path).name
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        return load_checkpoint(path, map_location)

    mmengine_checkpoint._safe_torch_load = load
    mmengine_checkpoint.load_url = load_url
