"""Policies as data: what a search hands over and everything else applies, and how policy.json is read and checked.

policy.json holds one of two things:
- a table of sub-policies (Policy): {"schema", "ranges", "sub_policies", "provenance"?, "uniform_strength"?,
  "unaugmented"?, "mirror"?};
- a fixed policy by its name (NamedPolicy): {"schema", "named", "seed" (of random alone), "provenance"?, "mirror"?}.
`dada_det.augment.named.resolve` reads either.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dada_det.augment.operations import INDEX, OPERATION_NAMES, RANGES, describe
from dada_det.errors import UserError
from dada_det.files import write_json
from dada_det.untrusted import check_keys, placed, read_untrusted, short

SCHEMA = 1
MOST_SUB_POLICIES = 1000
FIXED = ("none", "random", "uniform", "one-op", "trivial", "rand", "cutout")  # made by dada_det.augment.named
MOST_SPREAD = 1000.0  # any spread beyond 10 already means "either end of the range"; float32 holds its multiples


@dataclass(frozen=True)
class Operation:
    """One operation of a sub-policy.

    Args:
        name: one of OPERATION_NAMES.
        probability: 0..1, that it acts on an image.
        magnitude: 0..1; `operations.value_of` says what it means.
        spread: 0..1000. The magnitude's logit is drawn for each image from a normal of this standard deviation around
            that of `magnitude`. None: every image gets `magnitude`.

    Raises:
        UserError: the name is unknown, or a number is out of its range.
    """

    name: str
    probability: float
    magnitude: float
    spread: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in INDEX:
            raise UserError(f"{short(self.name)} is no operation; choose among {', '.join(OPERATION_NAMES)}")
        _check_number("the probability", self.probability, 1.0)
        _check_number("the magnitude", self.magnitude, 1.0)
        if self.spread is not None:
            _check_number("the spread", self.spread, MOST_SPREAD)


@dataclass(frozen=True)
class SubPolicy:
    """One or two operations in the order in which they are applied.

    An image draws a sub-policy with probability weight / sum of the weights.

    Raises:
        UserError: the weight is no finite number of at least 0, or there is another number of operations.
    """

    weight: float
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        _check_number("the weight", self.weight)
        if len(self.operations) not in (1, 2):
            raise UserError(f"a sub-policy has one or two operations, not {len(self.operations)}")


@dataclass(frozen=True)
class Policy:
    """1 to 1,000 weighted sub-policies under one table of ranges.

    Args:
        ranges: "strength" or "autoaugment".
        sub_policies: with weights of a positive sum.
        provenance: JSON values that say where the policy comes from; no time, path or host.
        uniform_strength: each image draws every magnitude uniformly from 0..1, whatever the operations say (the fixed
            controls).
        unaugmented: the fraction of images, 0..1, that the policy leaves as they are; the others draw a sub-policy.
        mirror: whether the search flipped images horizontally; None: unknown. A policy never flips. Trainings read it.

    Raises:
        UserError: an entry is out of its range.
    """

    ranges: str
    sub_policies: tuple[SubPolicy, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    uniform_strength: bool = False
    unaugmented: float = 0.0
    mirror: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sub_policies", tuple(self.sub_policies))
        _check_number("unaugmented", self.unaugmented, 1.0)
        if self.ranges not in RANGES:
            raise UserError(f"the ranges are {short(self.ranges)}; they must be one of {', '.join(RANGES)}")
        if not 1 <= len(self.sub_policies) <= MOST_SUB_POLICIES:
            raise UserError(f"a policy has 1 to {MOST_SUB_POLICIES} sub-policies, not {len(self.sub_policies)}")
        total = sum(sub_policy.weight for sub_policy in self.sub_policies)
        if not 0 < total < math.inf:
            raise UserError("the weights of the sub-policies must have a positive, finite sum")

    @property
    def sha256(self) -> str:
        """Hash of what the policy does (everything in canonical JSON but its provenance)."""
        return canonical_sha256(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON values; what holds its default is left out."""
        uniform = {"uniform_strength": True} if self.uniform_strength else {}
        unaugmented = {"unaugmented": float(self.unaugmented)} if self.unaugmented else {}
        return {"schema": SCHEMA, "ranges": self.ranges, **uniform, **unaugmented, **_mirror(self.mirror),
                "sub_policies": [{"weight": float(sub_policy.weight),
                                  "operations": [_operation_dict(operation) for operation in sub_policy.operations]}
                                 for sub_policy in self.sub_policies],
                "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Any, source: str = "policy") -> Policy:
        """The policy in plain JSON values.

        Raises:
            UserError: the sentence names `source` and the entry that is wrong.
        """
        if isinstance(data, dict) and "schedule" in data:
            raise UserError(f"{source} is a schedule over a training's progress, which pretraining alone replays; give the "
                            "policy.json that the search wrote beside it, its average")
        if isinstance(data, dict) and "named" in data:
            raise UserError(f"{source}: it holds a fixed policy by its name; a table of sub-policies is needed here")
        check_keys(data, source, ("schema", "ranges", "sub_policies"),
                   ("provenance", "uniform_strength", "unaugmented", "mirror"))
        check_head(data, source)
        if not isinstance(data.get("uniform_strength", False), bool):
            raise UserError(f"{source}: uniform_strength must be true or false")
        if not isinstance(data["sub_policies"], list):
            raise UserError(f"{source}: sub_policies must be a list")
        if len(data["sub_policies"]) > MOST_SUB_POLICIES:
            raise UserError(f"{source}: {len(data['sub_policies'])} sub-policies; at most {MOST_SUB_POLICIES} are read")
        sub_policies = tuple(_read_sub_policy(entry, f"{source}: sub_policies[{index}]")
                             for index, entry in enumerate(data["sub_policies"]))
        return placed(source, cls, ranges=data["ranges"], sub_policies=sub_policies,
                      provenance=data.get("provenance", {}), uniform_strength=data.get("uniform_strength", False),
                      unaugmented=data.get("unaugmented", 0.0), mirror=data.get("mirror"))

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Reads policy.json.

        Raises:
            UserError: the file is missing, larger than 1 MB, no UTF-8, nested deeper than 20 levels, or an entry is missing
                or out of range. One printable sentence names the file and the entry, whatever the file holds.
        """
        data, source = read_untrusted(path, "policy", "give a policy.json of a search")
        return cls.from_dict(data, source)

    def save(self, path: str | Path) -> None:
        """Writes policy.json whole or not at all."""
        write_json(path, self.to_dict())

    def labels(self) -> list[str]:
        """One line for each sub-policy: % of the images that draw it; its operations in real units, their probability."""
        total = sum(sub_policy.weight for sub_policy in self.sub_policies)
        percent = 100 * (1 - self.unaugmented) / total
        return [f"{percent * sub_policy.weight:4.1f} %  " + ", then ".join(map(self._label, sub_policy.operations))
                for sub_policy in self.sub_policies]

    def _label(self, operation: Operation) -> str:
        strength = (f"{operation.name} of any strength" if self.uniform_strength
                    else describe(operation.name, operation.magnitude, self.ranges))
        return f"{strength} ({operation.probability:.2f})"


def _operation_dict(operation: Operation) -> dict[str, Any]:
    spread = {} if operation.spread is None else {"spread": float(operation.spread)}
    return {"name": operation.name, "probability": float(operation.probability),
            "magnitude": float(operation.magnitude), **spread}


@dataclass(frozen=True)
class NamedPolicy:
    """A fixed policy as a file holds it. `named.resolve` makes of it what `--policy NAME` stands for.

    Args:
        name: one of FIXED.
        seed: chooses the sub-policies of `random`, the only one that has a seed.
        mirror, provenance: as in Policy.

    Raises:
        UserError: the name is unknown, or the seed is missing or out of range.
    """

    name: str
    seed: int | None = None
    mirror: bool | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in FIXED:
            raise UserError(f"{short(self.name)} is no fixed policy; choose among {', '.join(FIXED)}")
        if self.name != "random" and self.seed is not None:
            raise UserError(f"the policy {self.name} takes no seed")
        if self.name == "random" and not (type(self.seed) is int and 0 <= self.seed < 2**32):
            raise UserError(f"the seed of the policy random is {short(self.seed)}; it must be a whole number in 0..2^32-1")

    @property
    def sha256(self) -> str:
        """Hash of what the policy does (everything in canonical JSON but its provenance)."""
        return canonical_sha256(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON values."""
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"schema": SCHEMA, "named": self.name, **seed, **_mirror(self.mirror), "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Any, source: str = "policy") -> NamedPolicy:
        """The policy in plain JSON values.

        Raises:
            UserError: the sentence names `source` and the entry that is wrong.
        """
        check_keys(data, source, ("schema", "named"), ("provenance", "seed", "mirror"))
        check_head(data, source)
        return placed(source, cls, name=data["named"], seed=data.get("seed"), mirror=data.get("mirror"),
                      provenance=data.get("provenance", {}))

    def save(self, path: str | Path) -> None:
        """Writes policy.json whole or not at all."""
        write_json(path, self.to_dict())


def check_head(data: dict[str, Any], source: str) -> None:
    """UserError where the entries that tables and named policies share are wrong."""
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise UserError(f"{source}: the schema is {short(data['schema'])}; this version reads schema {SCHEMA}")
    if not isinstance(data.get("provenance", {}), dict):
        raise UserError(f"{source}: provenance must be a JSON object")
    if not isinstance(data.get("mirror", False), bool):
        raise UserError(f"{source}: mirror must be true or false")


def _mirror(mirror: bool | None) -> dict[str, bool]:
    return {} if mirror is None else {"mirror": mirror}


def canonical_sha256(data: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of all entries but schema and provenance, in canonical JSON."""
    content = {key: value for key, value in data.items() if key not in ("schema", "provenance")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_sub_policy(entry: Any, place: str) -> SubPolicy:
    check_keys(entry, place, ("weight", "operations"))
    if not isinstance(entry["operations"], list):
        raise UserError(f"{place}: operations must be a list of one or two operations")
    operations = tuple(_read_operation(operation, f"{place}.operations[{index}]")
                       for index, operation in enumerate(entry["operations"]))
    return placed(place, SubPolicy, weight=entry["weight"], operations=operations)


def _read_operation(entry: Any, place: str) -> Operation:
    check_keys(entry, place, ("name", "probability", "magnitude"), ("spread",))
    return placed(place, Operation, **entry)


def _check_number(what: str, number: Any, most: float = math.inf) -> None:
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    if not plain or not 0 <= number <= most or abs(number) > 1e300:
        span = "a finite number of at least 0" if most == math.inf else f"a number in 0..{most:g}"
        raise UserError(f"{what} is {short(number)}; it must be {span}")
