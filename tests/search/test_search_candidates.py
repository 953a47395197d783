"""What a search proposes from the operations' effects: their odds, and pairs of the few that are clear."""

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.search.candidates import better_than_mean, proposals
from dada_det.search.verdict import Estimate, Standing


def effects(values: dict[str, float], error: float = 0.1) -> list[Standing]:
    nothing = Estimate(0.0, 0.0)
    return [Standing(name, "operation", 50.0, nothing, nothing, nothing, Estimate(values.get(name, 0.0), error))
            for name in OPERATION_NAMES]


def use(policy: Policy) -> dict[str, float]:
    """The share of the sub-policies' weight that holds each operation."""
    total = sum(each.weight for each in policy.sub_policies)
    held = dict.fromkeys(OPERATION_NAMES, 0.0)
    for each in policy.sub_policies:
        for operation in each.operations:
            held[operation.name] += each.weight / total
    return held


def test_what_is_not_told_apart_has_even_odds() -> None:
    assert set(better_than_mean(effects({}, error=0.0)).values()) == {0.5}
    assert better_than_mean(effects({"Invert": 0.3}))["Invert"] > 0.99


def test_pairs_of_what_is_clearly_better() -> None:
    found = proposals(effects({"Brightness": 0.3, "Equalize": 0.25, "Invert": 0.2, "Rotate": -0.3}))["few pairs"]
    assert {name for name, share in use(found).items() if share} == {"Brightness", "Equalize", "Invert"}
    assert len(found.sub_policies) == 3 and found.uniform_strength
    places = [[OPERATION_NAMES.index(operation.name) for operation in each.operations] for each in found.sub_policies]
    assert all(first < second for first, second in places)  # the order in which a pair is applied
    assert {operation.probability for each in found.sub_policies for operation in each.operations} == {0.75}


def test_at_least_two_and_at_most_six_are_the_few() -> None:
    assert len(proposals(effects({"Invert": 0.3}))["few pairs"].sub_policies) == 1
    assert len(proposals(effects(dict.fromkeys(OPERATION_NAMES[:9], 0.3)))["few pairs"].sub_policies) == 15
