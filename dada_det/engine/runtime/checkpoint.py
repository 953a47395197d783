"""Checkpoints that somebody else may have written: found, checked, and never executed.

mmengine runs code from a file in four ways: its loader falls back to weights_only=False, what it downloads it unpickles,
its allow-list holds plain `getattr` (which reaches eval), and Runner.resume executes the text under meta["config"]. All
four are shut here.
"""

import zipfile
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


class DamagedCheckpoint(UserError):
    """A file that is cut short, damaged or no checkpoint at all; one that carries code is not just damaged."""


def _history_method(owner: object, name: str) -> Any:
    """Stands in for `getattr` in a pickle: only the statistics of mmengine's HistoryBuffer may be asked for."""
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

    Raises UserError where the file is missing or carries code, DamagedCheckpoint where it is damaged.
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


def check_checkpoint(path: str | Path) -> dict[str, Any]:
    """The mmengine checkpoint in `path` as a dict, read on the CPU; UserError where it cannot be trusted or is none."""
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict", content), dict):
        raise DamagedCheckpoint(f"{path} holds no state dict; give a checkpoint that training wrote")
    return content


def checkpoints(work_dir: str | Path) -> list[Path]:
    """epoch_*.pth and iter_*.pth in `work_dir`, the one to resume first: the last written, unless `last_checkpoint`,
    written later than all of them, names another."""
    work_dir = Path(work_dir)
    found = sorted([*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")], key=age, reverse=True)
    pointer = work_dir / "last_checkpoint"
    # A checkpoint newer than the pointer was written by a run that ended before it could name it.
    if found and pointer.is_file() and age(found[0])[0] <= pointer.stat().st_mtime_ns:
        # The folder may have been moved since: only the name counts.
        named = work_dir / Path(pointer.read_text(encoding="utf-8").strip()).name
        found = [path for path in found if path == named] + [path for path in found if path != named]
    return found


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """The first of checkpoints(work_dir) that is whole."""
    return next((path for path in checkpoints(work_dir) if is_whole(path)), None)


def newest_that_loads(work_dir: str | Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that --resume goes on from and what it holds, or None; says which, and which damaged ones it skips.

    UserError where one carries code: that is no accident, and nothing beside it is to be trusted.
    """
    def say(sentence: str) -> None:
        if is_main_process():
            print(f"{stage}  --resume: {sentence}", flush=True)

    for path in checkpoints(work_dir):
        try:
            content = check_checkpoint(path) if is_whole(path) else None
        except DamagedCheckpoint:
            content = None
        if content is not None:
            say(f"going on from {path}")
            return path, content
        say(f"skipped {path}, which is truncated or damaged")
    say(f"no checkpoint in {work_dir} yet, starting afresh")
    return None


def resume_point(work_dir: str | Path, identity: str, stage: str) -> Path | None:
    """The checkpoint that --resume goes on from; None, after one line, where there is none yet.

    identity: what StampIdentity has written into it. Raises UserError where the checkpoint is of another run.
    """
    found = newest_that_loads(work_dir, stage)
    if found is None:
        return None
    checkpoint, meta = found[0], found[1].get("meta", {})
    if meta.get("identity") != identity:
        theirs, ours = (str(text).split(", ") for text in (meta.get("identity") or "none of ours", identity))
        only_theirs, only_ours = (", ".join(entry for entry in own if entry not in other) or "without"
                                  for own, other in ((theirs, ours), (ours, theirs)))
        raise UserError(f"{checkpoint} is of another run ({only_theirs} instead of {only_ours}); resume with the flags of "
                        "that run, or give another --work-dir")
    return checkpoint


def age(path: Path) -> tuple[int, int]:
    """Sorts checkpoints by the time they were written, then by the number in their names (epoch_12.pth: 12)."""
    number = path.stem.rpartition("_")[2]
    return path.stat().st_mtime_ns, int(number) if number.isdigit() else -1


def is_whole(path: Path) -> bool:
    """Whether `path` is a complete zip archive, as torch.save writes them, with every checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def forbid_unsafe_loading() -> None:
    """For this process: whatever mmengine loads goes through load_checkpoint, a UserError where it refuses."""

    def load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return load_checkpoint(file, map_location)

    def load_url(url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = False) -> Any:
        path = make_folder(model_dir or Path(torch.hub.get_dir(), "checkpoints")) / Path(urlparse(url).path).name
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        return load_checkpoint(path, map_location)

    mmengine_checkpoint._safe_torch_load = load
    mmengine_checkpoint.load_url = load_url
