"""Reads tensor files of strangers, .pth and .safetensors, without running what a pickle carries."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dada_det.errors import UserError


class LeftOut:
    """Stands in a file for a value that is no tensor and that nobody here reads. It does nothing with what it is given."""

    def __new__(cls, *arguments: Any) -> "LeftOut":
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What the checkpoints of this project's trainings hold beside tensors: mmengine's loss history, numpy's numbers.
_NUMPY = ("ndarray", "dtype",
          *(f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
          *(f"dtypes.{kind}DType" for kind in ("Bool", "Int32", "Int64", "UInt8", "UInt32", "Float32", "Float64")))
LEFT_OUT = ("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "builtins.slice",
            *(f"numpy.{name}" for name in _NUMPY))


def read_tensors(path: Path, what: str, advice: str) -> Mapping[str, Any]:
    """The mapping in `path`, on the CPU; UserError names `what` (such as "backbone") and the file, and ends in `advice`.

    A .safetensors file holds tensors alone; anything else is torch.load's with weights_only=True, where timm's checkpoints
    may keep the flags of their training (argparse.Namespace). Of a checkpoint of this project's training the names of
    LEFT_OUT become LeftOut.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device="cpu")
        with torch.serialization.safe_globals([argparse.Namespace, *((LeftOut, name) for name in LEFT_OUT)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes the readers raise errors of many types
        if isinstance(error, UnpicklingError) and ("Unsupported" in str(error) or "blocked" in str(error)):
            raise UserError(f"the {what} {path} carries code in its pickle and is not opened; "
                            "give a file of plain tensors") from error
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
        raise UserError(f"the {what} {path} is damaged or no {kind} file; {advice}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"the {what} {path} holds a {type(content).__name__} and no state dict; {advice}")
    return content
