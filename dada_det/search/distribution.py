"""The distribution over policies that a search learns: p(q) = p(c) p(b | c) p(m | c).

B images, N sub-policies, O operations, 2 the slots of a sub-policy.
c a sub-policy, b its two on/off flags, m its two magnitudes (DADA, ECCV 2020, Section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypedDict

import torch
from torch import Tensor, nn

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.augment.space import SearchSpace
from dada_det.devices import move_all

SHARED = ("all", "preferences", "none")  # by the sub-policies that hold an operation


@dataclass(frozen=True)
class Noise:
    """Everything random in B draws: with the same noise a distribution draws the same policies.

    gumbel_BN and logistic_BN2 pick the sub-policy and all flags; redraw_gumbel_BN and redraw_uniform_B2 redraw them given
    the outcome (z tilde of RELAX); normal_B2 moves the magnitudes; signs_B2 (+-1) and centers_B22 are the operations'.
    """

    gumbel_BN: Tensor
    logistic_BN2: Tensor
    redraw_gumbel_BN: Tensor
    redraw_uniform_B2: Tensor
    normal_B2: Tensor
    signs_B2: Tensor
    centers_B22: Tensor

    def __getitem__(self, index: slice | Tensor) -> "Noise":
        return Noise(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, like: Tensor) -> "Noise":
        """The same noise on the device and in the dtype of `like`; on its way to a GPU one copy, for which nobody waits."""
        return Noise(*move_all([getattr(self, f.name).to(like.dtype) for f in fields(self)], like.device))


def draw_noise(n: int, sub_policies: int, generator: torch.Generator) -> Noise:
    """Returns noise for `n` draws from `sub_policies` sub-policies, float64 on the CPU."""

    def uniform(*shape: int) -> Tensor:
        # 0 and 1 have no finite logarithm
        return torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)

    return Noise(
        gumbel_BN=-(-uniform(n, sub_policies).log()).log(),
        logistic_BN2=uniform(n, sub_policies, 2).logit(),
        redraw_gumbel_BN=-(-uniform(n, sub_policies).log()).log(),
        redraw_uniform_B2=uniform(n, 2),
        normal_B2=torch.randn((n, 2), generator=generator, dtype=torch.float64),
        signs_B2=(uniform(n, 2) < 0.5).double() * 2 - 1,
        centers_B22=uniform(n, 2, 2),
    )


@dataclass(frozen=True)
class Sample:
    """B drawn policies: c_B (long, a sub-policy), b_B2 (bool, which of its operations act), logit_m_B2, magnitudes_B2."""

    c_B: Tensor
    b_B2: Tensor
    logit_m_B2: Tensor
    magnitudes_B2: Tensor


@dataclass(frozen=True)
class PolicyGradient:
    """An estimate of the gradient of E[R] for the logits of p(c) [N] and of the flags [N,2], and the magnitudes [N,2]."""

    logits_N: Tensor
    flag_logits_N2: Tensor
    magnitudes_N2: Tensor


class OperationRow(TypedDict):
    """One operation of a sub-policy, as search.json has it."""

    name: str
    probability: float
    magnitude: float


class SubPolicyRow(TypedDict):
    """One sub-policy of a distribution, as search.json has it."""

    preference: float
    operations: list[OperationRow]


class PolicyDistribution(nn.Module):
    """Preferences of N sub-policies, probabilities and magnitudes of their two operations.

    unconstrained: the parameters are logits. Otherwise, as in the paper, they are numbers in 0..1 that `clamp_` cuts back
        after each step; alpha starts at 1e-3, beta and m at 0.5.
    shared_by_operation: what the sub-policies that hold an operation share, of SHARED. "preferences": the preference of one
        is a_s + u_{op 1} + u_{op 2}, and all sub-policies that hold the operation share u; "all": probabilities and
        magnitudes have such a part too, b_{s,k} + w_{op k}; "none".
    spread: the standard deviation of the magnitude's normal on the logit; with None the mean itself is drawn.
    """

    def __init__(self, space: SearchSpace, *, unconstrained: bool = True,
                 shared_by_operation: str = "all", spread: float | None = 1.5) -> None:
        super().__init__()
        n, o = len(space), len(OPERATION_NAMES)
        self.space, self.unconstrained, self.spread = space, unconstrained, spread
        self.shared_by_operation = shared_by_operation
        start = 0.0 if unconstrained else 0.5
        self.preferences_N = nn.Parameter(torch.full((n,), 0.0 if unconstrained else 1e-3))
        self.flags_N2 = nn.Parameter(torch.full((n, 2), start))
        self.magnitudes_N2 = nn.Parameter(torch.full((n, 2), start))
        self.operation_preferences_O = nn.Parameter(torch.zeros(o)) if shared_by_operation != "none" else None
        shares_use = shared_by_operation == "all"
        self.operation_flags_O = nn.Parameter(torch.zeros(o)) if shares_use else None
        self.operation_magnitudes_O = nn.Parameter(torch.zeros(o)) if shares_use else None
        self.pairs_N2: Tensor
        self.register_buffer("pairs_N2", space.pairs_N2.clone(), persistent=False)

    def logits_N(self) -> Tensor:
        """The logits of p(c)."""
        if self.operation_preferences_O is None:
            return self.preferences_N
        return self.preferences_N + self.operation_preferences_O[self.pairs_N2].sum(1)

    def flag_logits_N2(self) -> Tensor:
        """The logits of p(b = 1 | c)."""
        flags_N2 = self._with_shared(self.flags_N2, self.operation_flags_O)
        return flags_N2 if self.unconstrained else flags_N2.clamp(1e-6, 1 - 1e-6).logit()

    def magnitude_logits_N2(self) -> Tensor:
        """The logits of the magnitudes' means."""
        magnitudes_N2 = self._with_shared(self.magnitudes_N2, self.operation_magnitudes_O)
        return magnitudes_N2 if self.unconstrained else magnitudes_N2.clamp(1e-6, 1 - 1e-6).logit()

    def _with_shared(self, own_N2: Tensor, shared_O: Tensor | None) -> Tensor:
        return own_N2 if shared_O is None else own_N2 + shared_O[self.pairs_N2]

    @torch.no_grad()
    def sample(self, noise: Noise) -> Sample:
        """Draws one policy for every row of `noise`."""
        c_B = (self.logits_N() + noise.gumbel_BN).argmax(1)
        rows = torch.arange(len(c_B), device=c_B.device)
        b_B2 = self.flag_logits_N2()[c_B] + noise.logistic_BN2[rows, c_B] > 0
        logit_m_B2 = self.magnitude_logits_N2()[c_B] + (self.spread or 0.0) * noise.normal_B2
        return Sample(c_B, b_B2, logit_m_B2, logit_m_B2.sigmoid())

    @torch.no_grad()
    def clamp_(self) -> None:
        """Cuts probabilities and magnitudes back to 0..1 where they are not logits.

        A probability of exactly 0 or 1 would have no gradient, and never move again.
        """
        if not self.unconstrained:
            self.flags_N2.clamp_(1e-6, 1 - 1e-6)
            self.magnitudes_N2.clamp_(0, 1)

    def backward(self, gradients: PolicyGradient) -> None:
        """Adds the NEGATIVE of a gradient of E[R] to the parameters' .grad: optimisers minimise, R is to be large.

        The magnitudes' gradient is for the parameter itself: the logit, or the magnitude where it is clamped.
        """
        magnitudes_N2 = self._with_shared(self.magnitudes_N2, self.operation_magnitudes_O)
        outputs = (self.logits_N(), self.flag_logits_N2(), magnitudes_N2)
        torch.autograd.backward(outputs, (-gradients.logits_N, -gradients.flag_logits_N2, -gradients.magnitudes_N2))

    @torch.no_grad()
    def policy(self, most: int, provenance: Mapping[str, object] | None = None) -> Policy:
        """Returns the `most` sub-policies with the largest preference; ties go to the earlier one.

        A sub-policy's weight is its preference; with clamped parameters it is 1, as in the paper's released policies.
        """
        table = self.table()
        order = sorted(range(len(self.space)), key=lambda s: -table[s]["preference"])[:most]
        return Policy(ranges=self.space.ranges, provenance=dict(provenance or {}), sub_policies=tuple(
            SubPolicy(weight=table[s]["preference"] if self.unconstrained else 1.0, operations=tuple(
                Operation(name=o["name"], probability=o["probability"], magnitude=o["magnitude"], spread=self.spread)
                for o in table[s]["operations"])) for s in order))

    @torch.no_grad()
    def table(self) -> list[SubPolicyRow]:
        """Returns all N sub-policies in the order of the space; their preferences sum to 1."""
        preferences = self.logits_N().double().softmax(0).tolist()
        probabilities_N2 = self.flag_logits_N2().double().sigmoid() if self.unconstrained else self.flags_N2.double()
        magnitudes_N2 = self.magnitude_logits_N2().double().sigmoid() if self.unconstrained else self.magnitudes_N2.double()
        probabilities, magnitudes = probabilities_N2.tolist(), magnitudes_N2.tolist()
        return [{"preference": preference, "operations": [
            {"name": OPERATION_NAMES[o], "probability": probabilities[s][k], "magnitude": magnitudes[s][k]}
            for k, o in enumerate(pair)]} for s, (preference, pair) in enumerate(zip(preferences, self.space.pairs,
                                                                                     strict=True))]
