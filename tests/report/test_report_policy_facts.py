"""What a policy amounts to."""

import math

import pytest

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import INDEX, OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.report.policy_facts import effective_number, evenness, heaviest_first, pair_shares, usage, usual_values


def policy_of(*sub_policies: SubPolicy, **entries) -> Policy:
    return Policy("strength", sub_policies, **entries)


def test_effective_number_counts_equal_amounts():
    assert effective_number([2.0] * 7) == pytest.approx(7)
    assert effective_number([5.0, 0.0]) == pytest.approx(1)
    assert effective_number([0.9, 0.1]) == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))
    assert effective_number([0.0]) == 0


def test_pairs_hold_the_shares_in_the_order_of_application():
    rotate, invert = Operation("Rotate", 0.5, 0.5), Operation("Invert", 1.0, 0.5)
    cells = pair_shares(policy_of(SubPolicy(1, (rotate, invert)), SubPolicy(2, (invert, rotate)), SubPolicy(5, (invert,))))
    r, i = INDEX["Rotate"], INDEX["Invert"]
    assert (cells[r][i], cells[i][r], cells[i][i]) == pytest.approx((1 / 8, 2 / 8, 5 / 8))
    assert sum(map(sum, cells)) == pytest.approx(1)


def test_usage_is_share_times_probability():
    policy = policy_of(SubPolicy(3, (Operation("Rotate", 0.5, 0.5), Operation("Color", 1.0, 0.5))),
                       SubPolicy(1, (Operation("Rotate", 0.2, 0.5),)))
    use = usage(policy)
    assert tuple(use) == OPERATION_NAMES
    assert (use["Rotate"], use["Color"], use["Invert"]) == pytest.approx((0.75 * 0.5 + 0.25 * 0.2, 0.75, 0))
    assert [share for share, _ in heaviest_first(policy)] == [0.75, 0.25]


@pytest.mark.parametrize(("name", "near"), [("random", True), ("uniform", True), ("one-op", True), ("dada-cifar10", True),
                                            ("dada-imagenet", False), ("dada-cifar100", False), ("cutout", False)])
def test_which_known_policies_are_close_to_uniform(name, near):
    assert evenness(resolve_policy(name)).near_uniform is near


@pytest.mark.parametrize("reason", ["weights", "choice of operations", "probabilities", "magnitudes"])
def test_each_difference_alone_is_a_reason(reason):
    uniform = [[1.0, "Rotate", 0.5, 0.5]] + [[1.0, name, 0.5, 0.5] for name in OPERATION_NAMES]
    for index, row in enumerate(uniform):
        if reason == "weights" and index == 3:
            row[0] = 30.0
            row[1:] = "Rotate", 0.5, 0.5
        elif reason == "choice of operations":
            row[1] = ("Rotate", "Color")[index % 2]
        elif reason == "probabilities":
            row[2] = (0.2, 0.8)[index % 2]
        elif reason == "magnitudes":
            row[3] = (0.2, 0.8)[index % 2]
    policy = policy_of(*(SubPolicy(weight, (Operation(*rest),)) for weight, *rest in uniform))
    assert reason in evenness(policy).reasons
    if reason != "weights":
        assert evenness(policy).reasons == [reason]


def test_a_magnitude_that_does_nothing_is_no_difference():
    policy = policy_of(*(SubPolicy(1, (Operation(name, 0.5, (0.1, 0.9)[index % 2]),))
                         for index, name in enumerate(("AutoContrast", "Invert", "Equalize"))))
    assert evenness(policy).magnitudes == 0


@pytest.mark.parametrize(("operation", "ranges", "text"), [
    (Operation("Rotate", 1, 0.5, 0.8), "strength", "±9° to ±21°"),  # 30 sigmoid(-+0.8)
    (Operation("Rotate", 1, 0.5, 0.8), "autoaugment", "±0° to ±11°"),  # through zero: -30 + 60 sigmoid(0.8)
    (Operation("Rotate", 1, 0.9, 0.5), "autoaugment", "±21° to ±26°"),
    (Operation("Contrast", 1, 0.5, 0.8), "strength", "×0.38 to 0.72 or 1.28 to 1.62"),
    (Operation("Contrast", 1, 0.5, 0.8), "autoaugment", "×0.66 to ×1.34"),
    (Operation("Posterize", 1, 0.5, 0.01), "strength", "5 bits to 6 bits"),
    (Operation("Cutout", 1, 1.0, 2.0), "strength", "20 %"),
    (Operation("Cutout", 1, 0.5, 1000.0), "strength", "0 % to 20 %"),
    (Operation("Cutout", 1, 1.0, 1000.0), "strength", "20 %"),
    (Operation("Rotate", 1, 0.5), "strength", ""), (Operation("Invert", 1, 0.5, 0.8), "strength", "")])
def test_usual_values_are_one_spread_to_either_side(operation, ranges, text):
    assert usual_values(operation, Policy(ranges, (SubPolicy(1, (operation,)),))) == text


def test_a_uniform_strength_takes_the_whole_range():
    operation = Operation("Rotate", 1, 0.5)
    assert usual_values(operation, policy_of(SubPolicy(1, (operation,)), uniform_strength=True)) == "±0° to ±30°"
