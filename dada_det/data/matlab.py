"""Reads MATLAB's files (level 5, .mat) by SciPy."""

from pathlib import Path
from typing import Any

from dada_det.errors import UserError


def read_matlab(path: str | Path, names: tuple[str, ...], advice: str) -> tuple[Any, ...]:
    """The variables `names` of the file, as scipy.io.loadmat gives them with squeeze_me.

    Raises:
        UserError: the file is missing, cannot be read or lacks one of them; the sentence ends in `advice`.
    """
    from scipy.io import loadmat

    try:
        with open(path, "rb") as file:
            try:
                found = loadmat(file, squeeze_me=True, variable_names=names)
            except Exception as error:  # ValueError, OSError, zlib.error, NotImplementedError (level 7.3), ..
                raise UserError(f"{path} is no whole MATLAB file of level 5 ({error}); {advice}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {advice}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path} has no variable {missing[0]!r}; {advice}")
    return tuple(found[name] for name in names)
