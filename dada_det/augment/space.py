"""The candidate sub-policies of a search: every pair of different operations, in the order of the table."""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from dada_det.augment.operations import OPERATION_NAMES, check_ranges, operation_index
from dada_det.augment.transform import Draws
from dada_det.errors import UserError


class SearchSpace:
    """The N = n(n-1)/2 pairs i < j of n operations (DADA's 105 of all fifteen) under one table of ranges.

    pairs: list of N tuples of indices into OPERATION_NAMES; pairs_N2: the same, long [N,2].
    Raises UserError for an unknown operation or table, an operation named twice, and fewer than two operations.
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
