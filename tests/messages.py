"""A message is tested by what it names (the file, the entry, the value, the remedy), so its sentence may be rewritten."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dada_det.errors import UserError


def assert_names(message: str, *names: object) -> None:
    """Each of `names` stands in `message` as a whole word or number, 1.5 neither in 11.5 nor in 1.52; a pattern is found."""
    missing = [name for name in names if not _pattern(name).search(message)]
    assert not missing, f"{missing} not named in: {message}"


def assert_error(stderr: str, command: str, *names: object) -> None:
    """All that the command said on stderr is one line, which names each of `names`."""
    assert stderr.startswith(f"{command}: error: ") and stderr.count("\n") == 1, stderr
    assert_names(stderr, *names)


@contextmanager
def refused(*names: object, error: type[Exception] = UserError) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """What is done inside is refused in one line that names each of `names`."""
    with pytest.raises(error) as told:
        yield told
    assert "\n" not in str(told.value)
    assert_names(str(told.value), *names)


def _pattern(name: object) -> re.Pattern[str]:
    if isinstance(name, re.Pattern):
        return name
    text = str(name)
    before = r"(?<!\w)(?<!\d\.)" if text[0].isalnum() else ""
    after = r"(?!\w|\.\d)" if text[-1].isalnum() else ""
    return re.compile(before + re.escape(text) + after)
