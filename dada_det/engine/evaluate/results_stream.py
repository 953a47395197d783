"""Reads and writes arrays of JSON entry by entry, so that COCO results are never in memory as a whole."""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dada_det.errors import UserError
from dada_det.files import whole_file

CHUNK = 1 << 16  # bytes read at a time
LONGEST = 1 << 24  # characters of one entry; the mask of a 100-megapixel image is shorter


def write_array(path: str | Path, entries: Iterable[Any]) -> None:
    """Writes `entries` as one JSON array, an entry a line; whole or not at all. NaN is refused with ValueError."""
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        dump_array(file, entries)


def dump_array(file: IO[str], entries: Iterable[Any]) -> None:
    """The same into an open text file."""
    between = "[\n"
    for entry in entries:
        file.write(between + json.dumps(entry, allow_nan=False))
        between = ",\n"
    file.write("[]\n" if between.startswith("[") else "\n]\n")


def read_array(path: str | Path) -> Iterator[Any]:
    """The entries of the JSON array in `path`, one after another; UserError as in `parse_array`."""
    try:
        with open(path, "rb") as file:
            yield from parse_array(file, str(path))
    except OSError as error:
        raise UserError(f"cannot read the results file {path}: {error.strerror or error}") from error


def parse_array(file: IO[bytes], name: str) -> Iterator[Any]:
    """The entries of a JSON array, however it is laid out, in memory that does not grow with their number.

    Raises:
        UserError: an entry is cut off or broken (the sentence names the first, from 0), or there is text before or after
            the array.
    """
    text = _Window(file, name)
    if text.next_character() != "[":
        raise UserError(f"{name} is no list of detections: COCO results are one JSON array; write it again")
    text.take(1)
    number = 0
    if text.next_character() == "]":
        text.take(1)
    else:
        while True:
            yield text.entry(number)
            number += 1
            separator = text.next_character()
            text.take(1)
            if separator == "]":
                break
            if separator != ",":
                raise UserError(f"{name} is cut off or broken after detection number {number - 1} ({separator or 'its end'} "
                                "where , or ] should stand); write it again")
    if left := text.next_character():
        raise UserError(f"{name} goes on with {left!r} after its list of {number} detections; write it again")


class _Window:
    """The part of a text that is being parsed; it drops what has been taken."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at = "", 0
        self.characters, self.json = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder()

    def next_character(self) -> str:
        """The next character that is no white space, not taken yet; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at:self.at + 1]

    def take(self, count: int) -> None:
        self.at += count

    def more(self) -> bool:
        """Reads on; False at the end."""
        try:
            chunk = self.file.read(max(CHUNK, len(self.text) - self.at))  # doubles, so that long entries stay linear
            self.text, self.at = self.text[self.at:] + self.characters.decode(chunk, final=not chunk), 0
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name} is no text in UTF-8 ({error.reason}); write it again") from error
        return bool(chunk)

    def entry(self, number: int) -> Any:
        self.next_character()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
                if end < len(self.text) and self.text[end] not in ".eE":  # else a number might go on
                    self.at = end
                    return value
                problem = "it has no end"
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if len(self.text) - self.at > LONGEST or not self.more():
                raise UserError(f"{self.name} is cut off or broken in detection number {number} ({problem}); write it again")
