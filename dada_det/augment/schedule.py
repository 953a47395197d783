"""A policy that changes while a network trains, as DDAS finds it: how it is read, checked, replayed and averaged.

Shape legend: B images, A atoms, E stages. Stage e holds while the progress of the training (0..1) is below `until`.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dada_det.augment.operations import RANGES
from dada_det.augment.policy import MOST_SUB_POLICIES, SCHEMA, Operation, Policy, SubPolicy, canonical_sha256, check_head
from dada_det.augment.space import Atom, AtomSpace
from dada_det.augment.transform import Draws, Images, Slot, apply_draws, apply_slots, random_numbers
from dada_det.errors import UserError
from dada_det.files import write_json
from dada_det.untrusted import check_keys, placed, read_untrusted, short

MOST_ATOMS = 200
MOST_STAGES = 200


@dataclass(frozen=True)
class Stage:
    """What holds until the training's progress is `until`.

    Args:
        until: 0..1 of the training.
        probability: 0..1, that an image is augmented.
        preferences: A numbers in 0..1 with a positive sum, by which they are divided; the probabilities by which an
            augmented image draws its two atoms.

    Raises:
        UserError: a number is out of its range.
    """

    until: float
    probability: float
    preferences: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "preferences", tuple(self.preferences))
        for what, number in (("until", self.until), ("the probability", self.probability),
                             *(("a preference", preference) for preference in self.preferences)):
            if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number <= 1:
                raise UserError(f"{what} is {short(number)}; it must be a number in 0..1")
        if not sum(self.preferences) > 0:
            raise UserError("the preferences must have a positive sum")


@dataclass(frozen=True)
class Schedule:
    """1 to 200 stages over 1 to 200 atoms under one table of ranges; the stages' `until` rise to 1.

    Args:
        ranges, provenance, mirror: as in Policy.
        atoms: what images draw from.
        stages: each with one preference an atom.

    Raises:
        UserError: the stages do not rise to 1, or an entry is out of its range.
    """

    ranges: str
    atoms: tuple[Atom, ...]
    stages: tuple[Stage, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    mirror: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "atoms", tuple(self.atoms))
        object.__setattr__(self, "stages", tuple(self.stages))
        for what, entries, most in (("atoms", self.atoms, MOST_ATOMS), ("stages", self.stages, MOST_STAGES)):
            if not 1 <= len(entries) <= most:
                raise UserError(f"a schedule has 1 to {most} {what}, not {len(entries)}")
        if self.ranges not in RANGES:
            raise UserError(f"the ranges are {short(self.ranges)}; they must be one of {', '.join(RANGES)}")
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise UserError("`until` must rise from stage to stage, and be 1 in the last")
        for stage in self.stages:
            if len(stage.preferences) != len(self.atoms):
                raise UserError(f"a stage has {len(stage.preferences)} preferences for {len(self.atoms)} atoms")

    @property
    def sha256(self) -> str:
        """Hash of what the schedule does (all in canonical JSON but its provenance)."""
        return canonical_sha256(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The schedule as plain JSON values."""
        mirror = {} if self.mirror is None else {"mirror": self.mirror}
        return {"schema": SCHEMA, "ranges": self.ranges, **mirror,
                "atoms": [{"name": atom.name, "magnitude": float(atom.magnitude)} for atom in self.atoms],
                "schedule": [{"until": float(stage.until), "probability": float(stage.probability),
                              "preferences": [float(preference) for preference in stage.preferences]}
                             for stage in self.stages],
                "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Any, source: str = "schedule") -> Schedule:
        """The schedule in plain JSON values.

        Raises:
            UserError: the sentence names `source` and the entry that is wrong.
        """
        check_keys(data, source, ("schema", "ranges", "atoms", "schedule"), ("provenance", "mirror"))
        check_head(data, source)
        for name, most in (("atoms", MOST_ATOMS), ("schedule", MOST_STAGES)):
            if not isinstance(data[name], list) or not 1 <= len(data[name]) <= most:
                raise UserError(f"{source}: {name} must be a list of 1 to {most} entries")
        return placed(source, cls, ranges=data["ranges"], provenance=data.get("provenance", {}), mirror=data.get("mirror"),
                      atoms=tuple(_read_atom(entry, f"{source}: atoms[{index}]")
                                  for index, entry in enumerate(data["atoms"])),
                      stages=tuple(_read_stage(entry, f"{source}: schedule[{index}]")
                                   for index, entry in enumerate(data["schedule"])))

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Reads schedule.json with the limits of Policy.load.

        Raises:
            UserError: the sentence names the file and the entry that is wrong.
        """
        data, source = read_untrusted(path, "schedule", "give a schedule.json of a search")
        return cls.from_dict(data, source)

    def save(self, path: str | Path) -> None:
        """Writes schedule.json whole or not at all."""
        write_json(path, self.to_dict())

    def at(self, progress: float) -> int:
        """The stage that holds at `progress` (0..1), as an index."""
        return min(bisect_right([stage.until for stage in self.stages], progress), len(self.stages) - 1)

    def average(self) -> Policy:
        """What the schedule does on average over the training, as a Policy.

        One sub-policy leaves the image as it is. The others are the 999 likeliest pairs; their weights are scaled so that
        they sum to the weight of all pairs.
        """
        weights: dict[tuple[int, ...], float] = defaultdict(float)
        began = 0.0
        for stage in self.stages:
            share, began = stage.until - began, stage.until
            total = sum(stage.preferences)
            weights[()] += share * (1 - stage.probability)
            likely = [(index, preference / total) for index, preference in enumerate(stage.preferences) if preference > 0]
            for (first, p), (second, q) in itertools.product(likely, repeat=2):
                pair = tuple(index for index in (first, second) if self.atoms[index].name is not None)
                weights[pair] += share * stage.probability * p * q
        as_it_is = weights.pop((), 0.0)
        chosen = sorted(weights, key=lambda pair: (-weights[pair], pair))[:MOST_SUB_POLICIES - 1]
        scale = sum(weights.values()) / (sum(weights[pair] for pair in chosen) or 1.0)
        nothing = SubPolicy(as_it_is, (Operation("Invert", probability=0.0, magnitude=0.0),))
        return Policy(self.ranges, (nothing, *(SubPolicy(scale * weights[pair], tuple(self._operations(pair)))
                                               for pair in chosen)), self.provenance, mirror=self.mirror)

    def _operations(self, pair: Iterable[int]) -> Iterable[Operation]:
        for index in pair:
            atom = self.atoms[index]
            assert atom.name is not None
            yield Operation(atom.name, probability=1.0, magnitude=atom.magnitude)


class ScheduleTransform:
    """Applies a Schedule as PolicyTransform applies a Policy. Set `progress` (0..1) as the training goes on.

    Each image draws whether it is augmented, its two atoms, signs and Cutout's centres. Equal generators give equal draws.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.progress = schedule, 0.0
        self.space = AtomSpace(schedule.atoms, schedule.ranges)
        preferences_EA = torch.tensor([stage.preferences for stage in schedule.stages], dtype=torch.float64)
        self.cumulative_EA = preferences_EA.cumsum(1)
        self.cumulative_EA /= self.cumulative_EA[:, -1:].clone()
        # The same numbers as lists, as PolicyTransform has them.
        self.cumulative, self.magnitudes = self.cumulative_EA.tolist(), self.space.magnitudes_A.tolist()
        self.operations, self.active = self.space.operations_A.tolist(), self.space.active_A.tolist()
        self.probabilities = torch.tensor([float(stage.probability) for stage in schedule.stages]).tolist()  # float32

    @property
    def ranges(self) -> str:
        return self.schedule.ranges

    def __call__(self, images: Images, generator: torch.Generator | None = None) -> Images:
        if isinstance(images, Image.Image):
            return apply_slots(images, self.draw_one(generator), self.ranges)
        return apply_draws(images, self.draw(len(images), generator), self.ranges)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """Draws for n images at `progress`, on the CPU."""
        stage = self.schedule.at(self.progress)
        uniform = random_numbers(torch.rand, (n, 9), generator)
        pairs_B2 = torch.searchsorted(self.cumulative_EA[stage], uniform[:, 1:3].double(), right=True)
        return self.space.draws(pairs_B2, (uniform[:, 3:5] >= 0.5) * 2.0 - 1.0, uniform[:, 5:].unflatten(1, (2, 2)),
                                uniform[:, 0] < self.schedule.stages[stage].probability)

    def draw_one(self, generator: torch.Generator | None = None) -> list[Slot]:
        """The active slots of draw(1, generator), number for number, in a fraction of its time."""
        stage = self.schedule.at(self.progress)
        uniform = random_numbers(torch.rand, (9,), generator).tolist()
        if uniform[0] >= self.probabilities[stage]:
            return []
        atoms = [bisect_right(self.cumulative[stage], number) for number in uniform[1:3]]
        return [(self.operations[atom], self.magnitudes[atom], 1.0 if uniform[3 + k] >= 0.5 else -1.0,
                 (uniform[5 + 2 * k], uniform[6 + 2 * k])) for k, atom in enumerate(atoms) if self.active[atom]]


def _read_atom(entry: Any, place: str) -> Atom:
    check_keys(entry, place, ("name", "magnitude"))
    return placed(place, Atom, **entry)


def _read_stage(entry: Any, place: str) -> Stage:
    check_keys(entry, place, ("until", "probability", "preferences"))
    if not isinstance(entry["preferences"], list):
        raise UserError(f"{place}: preferences must be a list of numbers")
    return placed(place, Stage, **entry)
