"""Reading JSON that a stranger may have written: with limits, checked entry by entry, each mistake one sentence."""

import itertools
import json
import math
import os
import reprlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dada_det.errors import UserError

# What is read of such a file; a policy of 1,000 sub-policies takes 0.3 MB and five levels.
MOST_BYTES = 1_000_000
MOST_LEVELS = 20
MOST_DIGITS = 400


def read_untrusted(path: str | Path, what: str, advice: str) -> tuple[Any, str]:
    """Reads a regular file of at most 1 MB of UTF-8 that is at most 20 levels deep.

    Args:
        path: of the file.
        what: what a sentence calls it, such as "policy".
        advice: the end of a sentence.

    Returns:
        The JSON value, and the file's name for messages.

    Raises:
        UserError: anything else, in one printable sentence, whatever the file holds.
    """
    source = printable(path)
    raw = _read(path, source, what, advice)
    try:
        data = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates,
                          parse_constant=_refuse_constant, parse_int=_parser(int), parse_float=_parser(float))
        _check_levels(data)
    except (ValueError, RecursionError) as error:
        reason = f"nested deeper than {MOST_LEVELS} levels" if isinstance(error, RecursionError) else error
        raise UserError(f"the {what} {source} is no JSON that can be read ({reason}); {advice}") from error
    return data, source


def check_keys(entry: Any, place: str, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> None:
    """Checks the keys of a JSON object.

    Raises:
        UserError: `entry` is no object, lacks one of `needed`, or has a key that is neither needed nor `allowed`.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{place}: a JSON object with {', '.join(needed)} is needed here, not {short(entry)}")
    if missing := [key for key in needed if key not in entry]:
        raise UserError(f"{place}: {', '.join(missing)} is missing")
    if unknown := [key for key in entry if key not in needed + allowed]:
        raise UserError(f"{place}: {short(unknown[0])} is no known key; known are {', '.join(needed + allowed)}")


def placed(place: str, make: Any, **arguments: Any) -> Any:
    """make(**arguments), with `place` before the sentence of its UserError."""
    try:
        return make(**arguments)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


class _ShortRepr(reprlib.Repr):
    """repr that looks at a few entries of a value only; Python itself refuses to write whole numbers of 4,300 digits."""

    def repr_int(self, number: int, level: int) -> str:
        return super().repr_int(number, level) if abs(number) < 10**300 else "a whole number of more than 300 digits"


_SHORT_REPR = _ShortRepr()
_SHORT_REPR.maxlevel = 2


def short(value: Any) -> str:
    """`value` for a message: its repr, cut to 40 characters."""
    text = _SHORT_REPR.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def printable(text: str | Path) -> str:
    """`text` (such as a file's name) for a message: one line, at most 300 characters, what cannot be printed as "?"."""
    line = "".join(letter if letter.isprintable() else "?" for letter in str(text)[:10_000])
    return line if len(line) <= 300 else f"{line[:147]}...{line[-150:]}"


def _read(path: str | Path, source: str, what: str, advice: str) -> bytes:
    """The first megabyte of a regular file; UserError where it is larger, another kind of file, or cannot be read."""
    try:
        # Not blocking: a pipe without a writer would keep a plain open waiting for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"cannot read the {what} {source}: it is no regular file; {advice}")
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot read the {what} {source}: {getattr(error, 'strerror', None) or error}; {advice}") from error
    if len(raw) > MOST_BYTES:
        raise UserError(f"the {what} {source} is larger than 1 MB; {advice}")
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key {short(key)} stands twice in one object")
        entries[key] = value
    return entries


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _parser(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if len(text) > MOST_DIGITS or abs(number := kind(text)) == math.inf:
            raise ValueError(f"{short(text)} is no number of at most {MOST_DIGITS} digits below 1.8e308")
        return number
    return parse


def _check_levels(data: Any) -> None:
    """RecursionError where `data` is nested too deeply to be written again, ValueError where a text has no UTF-8 form."""
    level = [data]
    for _ in range(MOST_LEVELS):
        for text in level:
            if isinstance(text, str):
                text.encode()
        entries = [(*value, *value.values()) if isinstance(value, dict) else value
                   for value in level if isinstance(value, dict | list)]
        level = list(itertools.chain.from_iterable(entries))
    if level:
        raise RecursionError
