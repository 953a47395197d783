"""Artefacts on disk: written whole or not at all, and named by their hash."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dada_det.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name in the folder of `path`; renames it to `path` when the block ends without an error.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> Path:
    """Creates `folder`, tries to write into it, and returns it.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}; choose another place") from error
    return folder


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON with a closing newline, whole or not at all.

    Raises:
        ValueError: `value` holds NaN or infinity.
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: the file is missing or no JSON; the sentence calls it `what`, such as "policy".
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the {what} {path} is no JSON ({error}); give a JSON file") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_torch(path: str | Path, save: Callable[[Path], None]) -> None:
    """Calls `save(temporary path)` (such as a torch.save) and renames the result to `path`."""
    with whole_file(path) as temporary:
        save(temporary)
