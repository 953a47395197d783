"""Operation, SubPolicy, Policy: what a search finds and everything else applies; JSON and its validation."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import reprlib
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dada_det.augment.operations import INDEX, OPERATION_NAMES, RANGES, describe
from dada_det.errors import UserError
from dada_det.files import write_json

SCHEMA = 1
MOST_SUB_POLICIES = 1000
# What is read of a file that anybody may have written; a policy of 1,000 sub-policies takes 0.3 MB and five levels.
MOST_BYTES = 1_000_000
MOST_LEVELS = 20
MOST_DIGITS = 400
MOST_SPREAD = 1000.0  # any spread beyond 10 already means "either end of the range"; float32 holds its multiples


@dataclass(frozen=True)
class Operation:
    """One operation of a sub-policy; UserError where a number is out of its range or the name is unknown.

    probability and magnitude: 0..1; spread: standard deviation, 0..1000, of a normal on the magnitude's logit, drawn
    anew for each image (None: the magnitude itself).
    """

    name: str
    probability: float
    magnitude: float
    spread: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in INDEX:
            raise UserError(f"{_short(self.name)} is no operation; choose among {', '.join(OPERATION_NAMES)}")
        _check_number("the probability", self.probability, 1.0)
        _check_number("the magnitude", self.magnitude, 1.0)
        if self.spread is not None:
            _check_number("the spread", self.spread, MOST_SPREAD)


@dataclass(frozen=True)
class SubPolicy:
    """One or two operations in the order they are applied; an image draws it with weight / sum of weights."""

    weight: float
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        _check_number("the weight", self.weight)
        if len(self.operations) not in (1, 2):
            raise UserError(f"a sub-policy has one or two operations, not {len(self.operations)}")


@dataclass(frozen=True)
class Policy:
    """1 to 1,000 weighted sub-policies under one table of ranges ("strength" or "autoaugment").

    uniform_strength: every magnitude is drawn uniformly from 0..1 anew for each image, whatever the operations say
    (the fixed controls). provenance: JSON values that say where the policy comes from; no time, path or host.
    """

    ranges: str
    sub_policies: tuple[SubPolicy, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    uniform_strength: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sub_policies", tuple(self.sub_policies))
        if self.ranges not in RANGES:
            raise UserError(f"the ranges are {_short(self.ranges)}; they must be one of {', '.join(RANGES)}")
        if not 1 <= len(self.sub_policies) <= MOST_SUB_POLICIES:
            raise UserError(f"a policy has 1 to {MOST_SUB_POLICIES} sub-policies, not {len(self.sub_policies)}")
        total = sum(sub_policy.weight for sub_policy in self.sub_policies)
        if not 0 < total < math.inf:
            raise UserError("the weights of the sub-policies must have a positive, finite sum")

    @property
    def sha256(self) -> str:
        """Hash of what the policy does (ranges and sub-policies in canonical JSON, not its provenance)."""
        content = {key: value for key, value in self.to_dict().items() if key not in ("schema", "provenance")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON values (DESIGN: policy.json)."""
        uniform = {"uniform_strength": True} if self.uniform_strength else {}
        return {"schema": SCHEMA, "ranges": self.ranges, **uniform,
                "sub_policies": [{"weight": float(sub_policy.weight),
                                  "operations": [_operation_dict(operation) for operation in sub_policy.operations]}
                                 for sub_policy in self.sub_policies],
                "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Any, source: str = "policy") -> Policy:
        """The policy in plain JSON values; UserError names `source` and the entry that is wrong."""
        _check_keys(data, source, ("schema", "ranges", "sub_policies"), ("provenance", "uniform_strength"))
        if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
            raise UserError(f"{source}: the schema is {_short(data['schema'])}; this version reads schema {SCHEMA}")
        if not isinstance(data.get("provenance", {}), dict):
            raise UserError(f"{source}: provenance must be a JSON object")
        if not isinstance(data.get("uniform_strength", False), bool):
            raise UserError(f"{source}: uniform_strength must be true or false")
        if not isinstance(data["sub_policies"], list):
            raise UserError(f"{source}: sub_policies must be a list")
        if len(data["sub_policies"]) > MOST_SUB_POLICIES:
            raise UserError(f"{source}: {len(data['sub_policies'])} sub-policies; at most {MOST_SUB_POLICIES} are read")
        sub_policies = tuple(_read_sub_policy(entry, f"{source}: sub_policies[{index}]")
                             for index, entry in enumerate(data["sub_policies"]))
        return _placed(source, cls, ranges=data["ranges"], sub_policies=sub_policies,
                       provenance=data.get("provenance", {}), uniform_strength=data.get("uniform_strength", False))

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Reads policy.json: a regular file, at most 1 MB of UTF-8, at most 20 levels deep.

        UserError names the file and the entry where it is missing, broken or out of range, in one short sentence of
        printable characters, whatever the file holds.
        """
        source = printable(path)
        raw = _read(path, source)
        try:
            data = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates,
                              parse_constant=_refuse_constant, parse_int=_parser(int), parse_float=_parser(float))
            _check_levels(data)
        except (ValueError, RecursionError) as error:
            reason = f"nested deeper than {MOST_LEVELS} levels" if isinstance(error, RecursionError) else error
            raise UserError(f"the policy {source} is no JSON that can be read ({reason}); "
                            "give a policy.json of a search") from error
        return cls.from_dict(data, source)

    def save(self, path: str | Path) -> None:
        """Writes policy.json whole or not at all."""
        write_json(path, self.to_dict())

    def labels(self) -> list[str]:
        """One line for each sub-policy: its weight in %, then probability, name and real units of its operations."""
        total = sum(sub_policy.weight for sub_policy in self.sub_policies)
        return [f"{100 * sub_policy.weight / total:4.1f} %  " + ", then ".join(map(self._label, sub_policy.operations))
                for sub_policy in self.sub_policies]

    def _label(self, operation: Operation) -> str:
        strength = (f"{operation.name} of any strength" if self.uniform_strength
                    else describe(operation.name, operation.magnitude, self.ranges))
        return f"{strength} ({operation.probability:.2f})"


def _operation_dict(operation: Operation) -> dict[str, Any]:
    spread = {} if operation.spread is None else {"spread": float(operation.spread)}
    return {"name": operation.name, "probability": float(operation.probability),
            "magnitude": float(operation.magnitude), **spread}


def _read_sub_policy(entry: Any, place: str) -> SubPolicy:
    _check_keys(entry, place, ("weight", "operations"))
    if not isinstance(entry["operations"], list):
        raise UserError(f"{place}: operations must be a list of one or two operations")
    operations = tuple(_read_operation(operation, f"{place}.operations[{index}]")
                       for index, operation in enumerate(entry["operations"]))
    return _placed(place, SubPolicy, weight=entry["weight"], operations=operations)


def _read_operation(entry: Any, place: str) -> Operation:
    _check_keys(entry, place, ("name", "probability", "magnitude"), ("spread",))
    return _placed(place, Operation, **entry)


def _placed(place: str, make: Any, **arguments: Any) -> Any:
    try:
        return make(**arguments)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _check_keys(entry: Any, place: str, needed: tuple[str, ...], allowed: tuple[str, ...] = ()) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: a JSON object with {', '.join(needed)} is needed here, not {_short(entry)}")
    if missing := [key for key in needed if key not in entry]:
        raise UserError(f"{place}: {', '.join(missing)} is missing")
    if unknown := [key for key in entry if key not in needed + allowed]:
        raise UserError(f"{place}: {_short(unknown[0])} is no known key; known are {', '.join(needed + allowed)}")


def _check_number(what: str, number: Any, most: float = math.inf) -> None:
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    if not plain or not 0 <= number <= most or abs(number) > 1e300:
        span = "a finite number of at least 0" if most == math.inf else f"a number in 0..{most:g}"
        raise UserError(f"{what} is {_short(number)}; it must be {span}")


class _ShortRepr(reprlib.Repr):
    """repr that looks at a few entries of a value only; Python itself refuses to write whole numbers of 4,300 digits."""

    def repr_int(self, number: int, level: int) -> str:
        return super().repr_int(number, level) if abs(number) < 10**300 else "a whole number of more than 300 digits"


_SHORT_REPR = _ShortRepr()
_SHORT_REPR.maxlevel = 2


def _short(value: Any) -> str:
    text = _SHORT_REPR.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def printable(text: str | Path) -> str:
    """`text` (such as a file's name) for a message: one line, at most 300 characters, what cannot be printed as "?"."""
    line = "".join(letter if letter.isprintable() else "?" for letter in str(text)[:10_000])
    return line if len(line) <= 300 else f"{line[:147]}...{line[-150:]}"


def _read(path: str | Path, source: str) -> bytes:
    """The first megabyte of a regular file; UserError where it is larger, another kind of file, or cannot be read."""
    try:
        # Not blocking: a pipe without a writer would keep a plain open waiting for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"cannot read the policy {source}: it is no regular file; give a policy.json of a search")
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot read the policy {source}: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > MOST_BYTES:
        raise UserError(f"the policy {source} is larger than 1 MB; give a policy.json of a search")
    return raw


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key {_short(key)} stands twice in one object")
        entries[key] = value
    return entries


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _parser(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if len(text) > MOST_DIGITS or abs(number := kind(text)) == math.inf:
            raise ValueError(f"{_short(text)} is no number of at most {MOST_DIGITS} digits below 1.8e308")
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
