"""Checking the entries of a config: a misspelt one is refused with the nearest name.

A table maps the name of an entry to the types that it may have, None among them. If the entry is a dict whose entries are
known too, the table maps it to their table; None then stands for an empty dict.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dada_det.errors import UserError

Table = Mapping[str, Any]  # name -> tuple of types and None, or a Table
NUMBER = (int, float)
ANY = (object,)  # of what is checked where it is used
LISTED = 12  # names that a refusal lists where none is near


def demand_entries(config: Mapping[str, Any], table: Table, what: str, prefix: str = "") -> None:
    """Checks the entries of `config`; `what` and `prefix` say in a sentence which config and which of its dicts this is.

    Raises:
        UserError: `table` lacks an entry (the sentence has the nearest name), or its value is of another type.
    """
    for name, value in config.items():
        if name not in table:
            raise unknown(name, table, what, prefix)
        wanted = table[name]
        if isinstance(wanted, Mapping):
            if not isinstance(value, Mapping | None):
                raise UserError(f"{what} has {value!r} for {prefix}{name}; give a dict of {', '.join(wanted)}")
            demand_entries(value or {}, wanted, what, f"{prefix}{name}.")
        elif not any(_is(value, kind) for kind in wanted):
            names = ["None" if kind is None else kind.__name__ for kind in wanted]
            raise UserError(f"{what} has {value!r} for {prefix}{name}; give {' or '.join(names)}")


def demand_arguments(given: Mapping[str, Any], called: Callable[..., Any], what: str, prefix: str,
                     more: Iterable[str] = ()) -> None:
    """Checks that `called` takes each of `given` as an argument, or that `more` names it.

    Raises:
        UserError: it takes another one; the sentence has the nearest name.
    """
    known, closed = arguments_of(called)
    for name in given:
        if closed and name not in known and name not in more:
            raise unknown(name, (*known, *more), what, prefix)


def unknown(name: str, known: Iterable[str], what: str, prefix: str = "") -> UserError:
    """The sentence about an entry `prefix``name` that `what` gives and that is none of `known`."""
    names = list(dict.fromkeys(known))
    near = nearest(name, names)
    some = ", ".join(names[:LISTED]) + (", .." if len(names) > LISTED else "")
    hint = f"the nearest entry is {prefix}{near}" if near else f"there are {some}" if some else "leave it out"
    return UserError(f"{what} gives {prefix}{name}, which nothing reads; {hint}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that is spelt most like `name`, or None."""
    lowered = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lowered, 1, cutoff)
    return lowered[found[0]] if found else None


def arguments_of(called: Callable[..., Any]) -> tuple[list[str], bool]:
    """The names of the arguments of a function or class, and whether there are no others.

    A class whose **options go on to its base takes the base's too.
    """
    names: list[str] = []
    chain = [vars(kind)["__init__"] for kind in inspect.getmro(called) if "__init__" in vars(kind)] \
        if inspect.isclass(called) else [called]
    for function in chain:
        if function is object.__init__:  # **options that came so far are read by name, whichever they are
            return list(dict.fromkeys(names)), function is chain[0]
        parameters = list(inspect.signature(function).parameters.values())[1 if inspect.isclass(called) else 0:]
        names += [each.name for each in parameters
                  if each.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            return list(dict.fromkeys(names)), True
    return list(dict.fromkeys(names)), False


def _is(value: Any, kind: Any) -> bool:
    if kind is None or kind is object:
        return value is None or kind is object
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
