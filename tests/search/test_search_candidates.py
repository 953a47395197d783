"""What a search proposes from the operations' effects: odds, the few that are clear, and variants of a policy."""

import pytest

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.search.candidates import alone, better_than_mean, half_unaugmented, proposals, stronger, weaker
from dada_det.search.verdict import Estimate, Standing


def effects(values: dict[str, float], error: float = 0.1) -> list[Standing]:
    nothing = Estimate(0.0, 0.0)
    return [Standing(name, "operation", 2, 50.0, nothing, nothing, Estimate(values.get(name, 0.0), error))
            for name in OPERATION_NAMES]


def use(policy: Policy) -> dict[str, float]:
    """The share of the sub-policies' weight that holds each operation."""
    total = sum(each.weight for each in policy.sub_policies)
    held = dict.fromkeys(OPERATION_NAMES, 0.0)
    for each in policy.sub_policies:
        for operation in each.operations:
            held[operation.name] += each.weight / total
    return held


def test_what_is_not_told_apart_stays_as_in_uniform() -> None:
    found = proposals(effects({}, error=0.0))
    assert set(better_than_mean(effects({}, error=0.0)).values()) == {0.5}
    assert len(found["tilted pairs"].sub_policies) == 105
    assert max(use(found["tilted pairs"]).values()) == pytest.approx(min(use(found["tilted pairs"]).values()))


def test_what_is_clearly_better_is_used_more_and_alone_among_the_few() -> None:
    found = proposals(effects({"Brightness": 0.3, "Equalize": 0.25, "Invert": 0.2, "Rotate": -0.3}))
    tilted = use(found["tilted pairs"])
    assert tilted["Brightness"] > 2 * tilted["Color"] > 20 * tilted["Rotate"]
    assert [each.operations[0].name for each in found["few"].sub_policies] == ["Invert", "Equalize", "Brightness"]
    assert len(found["few pairs"].sub_policies) == 3
    places = [[OPERATION_NAMES.index(operation.name) for operation in each.operations]
              for each in found["few pairs"].sub_policies + found["tilted pairs"].sub_policies]
    assert all(first < second for first, second in places)  # the order in which a pair is applied


def test_at_least_two_and_at_most_six_are_the_few() -> None:
    assert len(proposals(effects({"Invert": 0.3}))["few"].sub_policies) == 2
    assert len(proposals(effects(dict.fromkeys(OPERATION_NAMES[:9], 0.3)))["few"].sub_policies) == 6


def test_stronger_and_weaker_move_probabilities_and_magnitudes() -> None:
    pair = SubPolicy(2.0, (Operation("Invert", 0.75, 0.5, spread=1.5), Operation("Color", 0.5, 0.9)))
    policy = Policy("strength", (pair,), mirror=True)
    (more,), (less,) = stronger(policy).sub_policies, weaker(policy).sub_policies
    assert [(o.name, o.probability, o.spread) for o in more.operations] == [("Invert", 0.9, 1.5), ("Color", 0.8, None)]
    assert [o.magnitude for o in more.operations] == pytest.approx([0.8, 0.973], abs=0.01)
    assert [o.probability for o in less.operations] == pytest.approx([0.5, 1 / 3], abs=1e-3)
    assert less.operations[0].magnitude == pytest.approx(0.3, abs=0.01) and more.weight == less.weight == 2.0
    assert stronger(policy).mirror and half_unaugmented(policy).unaugmented == 0.5
    uniform = stronger(alone("Invert"))
    assert not uniform.uniform_strength and uniform.sub_policies[0].operations[0].spread == 1.0
    still = stronger(uniform).sub_policies[0].operations[0]
    assert still.probability == pytest.approx(0.96) and still.magnitude == pytest.approx(0.94, abs=0.01)
