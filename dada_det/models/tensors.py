"""Reads tensor files of strangers, .pth and .safetensors, without running what a pickle carries."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dada_det.errors import UserError


def read_tensors(path: Path, what: str, advice: str) -> Mapping[str, Any]:
    """The mapping in `path`, on the CPU; UserError names `what` (such as "backbone") and the file, and ends in `advice`.

    A .safetensors file holds tensors alone; anything else is torch.load's with weights_only=True, where timm's checkpoints
    may keep the flags of their training (argparse.Namespace).
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device="cpu")
        with torch.serialization.safe_globals([argparse.Namespace]):
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
