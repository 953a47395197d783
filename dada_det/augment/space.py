"""What a search chooses among: pairs of different operations (DADA), or atoms, operations at fixed levels (DDAS)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from dada_det.augment.operations import INDEX, OPERATION_NAMES, OPERATIONS, check_ranges, operation_index
from dada_det.augment.transform import Draws
from dada_det.errors import UserError
from dada_det.untrusted import short


class SearchSpace:
    """The N = n(n-1)/2 pairs i < j of n operations under one table of ranges; DADA's 105 of all fifteen.

    Attributes:
        operations: the n names, in the order of OPERATION_NAMES.
        pairs: N tuples of indices into OPERATION_NAMES; pairs_N2: the same, long [N,2].

    Raises:
        UserError: an operation or table is unknown, an operation is named twice, or there are fewer than two.
    """

    def __init__(self, operations: Sequence[str] = OPERATION_NAMES, ranges: str = "strength") -> None:
        indices = sorted({operation_index(name) for name in operations})
        if len(indices) < 2 or len(indices) < len(operations):
            raise UserError(f"a search space needs at least two different operations, not {list(operations)}")
        self.ranges = check_ranges(ranges)
        self.operations = tuple(OPERATION_NAMES[index] for index in indices)
        self.pairs = list(combinations(indices, 2))
        self.pairs_N2 = torch.tensor(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def draws(self, sub_policies_B: Tensor, active_B2: Tensor, magnitudes_B2: Tensor, signs_B2: Tensor,
              centers_B22: Tensor) -> Draws:
        """What each image gets: candidate sub_policies_B (long, 0..N-1) with flags, magnitudes, signs and centres."""
        self.pairs_N2 = self.pairs_N2.to(sub_policies_B.device)  # moves once, so that later steps do not wait for it
        return Draws(self.pairs_N2[sub_policies_B], active_B2.bool(), magnitudes_B2, signs_B2, centers_B22)


LAST_LEVEL = 14  # DDAS's highest, at which a magnitude is 1 here


@dataclass(frozen=True)
class Atom:
    """One operation at one magnitude (0..1), or the image as it is (name None)."""

    name: str | None
    magnitude: float = 0.0

    def __post_init__(self) -> None:
        if self.name is not None and not (isinstance(self.name, str) and self.name in INDEX):
            raise UserError(f"{short(self.name)} is no operation; choose among {', '.join(OPERATION_NAMES)}")
        if not isinstance(self.magnitude, int | float) or isinstance(self.magnitude, bool) or not 0 <= self.magnitude <= 1:
            raise UserError(f"the magnitude is {short(self.magnitude)}; it must be a number in 0..1")


class AtomSpace:
    """A atoms under one table of ranges. A policy of DDAS is an ordered pair of them; both may be the same.

    Attributes:
        operations_A: long; magnitudes_A: float32; active_A: bool, False for the atom that leaves the image as it is.
    """

    def __init__(self, atoms: Sequence[Atom], ranges: str = "strength") -> None:
        self.ranges, self.atoms = check_ranges(ranges), tuple(atoms)
        self.operations_A = torch.tensor([0 if atom.name is None else operation_index(atom.name) for atom in self.atoms])
        self.magnitudes_A = torch.tensor([float(atom.magnitude) for atom in self.atoms])
        self.active_A = torch.tensor([atom.name is not None for atom in self.atoms])

    @classmethod
    def of_levels(cls, operations: Sequence[str], levels: Sequence[int], ranges: str = "strength") -> "AtomSpace":
        """The atom that does nothing, and every operation at every level (1..14, magnitude level / 14).

        An operation without a magnitude gives one atom.

        Raises:
            UserError: an operation is unknown or named twice, or there is none.
        """
        indices = sorted({operation_index(name) for name in operations})
        if not indices or len(indices) < len(operations):
            raise UserError(f"a search space needs one or more different operations, not {list(operations)}")
        plain = [OPERATION_NAMES[index] for index in indices if not OPERATIONS[OPERATION_NAMES[index]].unit]
        graded = [OPERATION_NAMES[index] for index in indices if OPERATION_NAMES[index] not in plain]
        return cls([Atom(None), *(Atom(name) for name in plain),
                    *(Atom(name, level / LAST_LEVEL) for name in graded for level in levels)], ranges)

    def __len__(self) -> int:
        return len(self.atoms)

    def draws(self, pairs_B2: Tensor, signs_B2: Tensor, centers_B22: Tensor, acts_B: Tensor | bool = True) -> Draws:
        """What each image gets: its pair of atoms (long, 0..A-1) where `acts_B`, with signs and centres."""
        if self.operations_A.device != pairs_B2.device:  # move once, so that later steps do not wait for it
            self.operations_A, self.magnitudes_A, self.active_A = (
                tensor.to(pairs_B2.device) for tensor in (self.operations_A, self.magnitudes_A, self.active_A))
        active_B2 = self.active_A[pairs_B2] & torch.as_tensor(acts_B, device=pairs_B2.device).view(-1, 1)
        return Draws(self.operations_A[pairs_B2], active_B2, self.magnitudes_A[pairs_B2], signs_B2, centers_B22)
