"""What a trial tries beside alignment's proposal, and the effects of the operations that follow from it."""

import pytest
import torch

from dada_det.augment.named import fixed_policy
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.search.candidates import families, operation_effects, ours, use_of
from dada_det.search.verdict import Estimate


def test_families_hold_every_operation_once_and_keep_to_those_that_are_allowed() -> None:
    found = families()
    held = {name: {OPERATION_NAMES[index] for index in use_of(policy).nonzero()[:, 0].tolist()}
            for name, policy in found.items()}
    assert held["tone"] | held["geometry"] == set(OPERATION_NAMES)
    assert not held["tone"] & held["geometry"]
    assert "Invert" in held["tone"] and "Cutout" in held["geometry"]
    for policy in found.values():  # one on every image, as in one-op
        assert all(len(each.operations) == 1 for each in policy.sub_policies)
        assert use_of(policy).sum() == pytest.approx(1.0) and policy.uniform_strength
    some = families(["Rotate", "Invert", "Color"])
    assert list(some) == ["tone"] and len(some["tone"].sub_policies) == 2


def test_use_is_the_mean_number_of_times_that_an_operation_acts() -> None:
    policy = Policy("strength", (SubPolicy(3.0, (Operation("Invert", 0.5, 0.5), Operation("Color", 1.0, 0.5))),
                                 SubPolicy(1.0, (Operation("Color", 0.2, 0.5),))), unaugmented=0.5)
    use = dict(zip(OPERATION_NAMES, use_of(policy).tolist(), strict=True))
    assert use["Invert"] == pytest.approx(0.5 * 0.75 * 0.5) and use["Color"] == pytest.approx(0.5 * (0.75 + 0.25 * 0.2))
    assert use_of(None).sum() == 0


def test_effects_are_the_exact_posterior_of_a_linear_model() -> None:
    """Against the textbook formula in the space of policies (a Gaussian process with a linear kernel)."""
    fixed = {name: fixed_policy(name, 3) for name in ("none", "random", "uniform", "one-op", "trivial")}
    policies = ours(fixed | families())
    assert "trivial" not in policies and len(policies) == 6
    values = torch.tensor([-0.3, 0.0, 0.1, 0.05, 0.4, -0.25], dtype=torch.float64)
    scores = {name: Estimate(float(value), 0.1) for name, value in zip(policies, values, strict=True)}
    use_CO = torch.stack([use_of(policy) for policy in policies.values()])
    use_CO = use_CO - use_CO.mean(0)
    prior = values.var()
    kernel = prior * use_CO @ use_CO.T + 0.01 * torch.eye(6, dtype=torch.float64)
    exact_O = prior * use_CO.T @ torch.linalg.solve(kernel, values - values.mean())
    found = operation_effects(policies, scores)
    assert [effect.value.mean for effect in found] == sorted((effect.value.mean for effect in found), reverse=True)
    for effect in found:
        assert effect.value.mean == pytest.approx(float(exact_O[OPERATION_NAMES.index(effect.name)]), abs=1e-9)
        assert 0 < effect.value.error <= float(prior) ** 0.5
    by_name = {effect.name: effect.value.mean for effect in found}
    assert min(by_name[name] for name in ("Invert", "Color")) > max(by_name[name] for name in ("Rotate", "ShearX"))


def test_one_policy_alone_tells_of_no_operation() -> None:
    for left in ([], ["none"]):
        found = operation_effects({name: None for name in left}, {name: Estimate(0.3, 0.1) for name in left})
        assert [effect.name for effect in found] == list(OPERATION_NAMES)
        assert all(effect.value == Estimate(0.0, 0.0) for effect in found)


def test_candidates_of_equal_scores_give_operations_no_effect() -> None:
    policies = ours({name: fixed_policy(name) for name in ("none", "uniform", "one-op", "random")})
    found = operation_effects(policies, {name: Estimate(0.0, 1e-18) for name in policies})
    assert [effect.value.mean for effect in found] == pytest.approx([0.0] * len(OPERATION_NAMES), abs=1e-9)
