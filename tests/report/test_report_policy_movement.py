"""How far a search moved its numbers, and what noise alone does."""

import json
import math

import pytest
import torch

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.space import SearchSpace
from dada_det.errors import UserError
from dada_det.report.policy_movement import GROUPS, Optimizer, idle_magnitudes, load_search, movement, noise_walk
from dada_det.search import estimators
from dada_det.search.dada import FASTER, rates
from dada_det.search.distribution import PolicyDistribution, PolicyGradient, draw_noise

SPACE = SearchSpace()
HOLDS = torch.nn.functional.one_hot(SPACE.pairs_N2, len(OPERATION_NAMES)).float()
BETAS = (0.5, 0.999)


def search_file(folder, distribution, optimizer=None, **provenance):
    content = {"schema": 1, "ranges": "strength", "spread": distribution.spread, "sub_policies": distribution.table(),
               "provenance": {"mode": "default", **provenance}} | ({"optimizer": optimizer} if optimizer else {})
    (folder / "search.json").write_text(json.dumps(content))
    return folder / "search.json"


def entry(steps, lr=0.02, **changes):
    return {"steps": steps, "lr": lr, "betas": list(BETAS), "averaged": 0, "shared": "all",
            "preferences_lr": lr / FASTER, "shared_lr": FASTER * lr} | changes


def noise_search(steps, lr, batch, seed, shared):
    """The search's own distribution, estimator and optimiser, with rewards that are noise."""
    distribution = PolicyDistribution(SPACE, shared_by_operation=shared)
    groups = [{"params": group["params"], "lr": lr * group.get("lr_mult", 1)} for group in rates(distribution)]
    adam = torch.optim.Adam(groups, betas=BETAS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        sample = distribution.sample(draw_noise(batch, len(SPACE), generator).to(torch.zeros(())))
        rewards = torch.randn(batch, generator=generator)
        distribution.zero_grad()
        distribution.backward(PolicyGradient(*estimators.marginal_score(
            rewards, distribution.logits_N().detach(), distribution.flag_logits_N2().detach(),
            distribution.magnitude_logits_N2().detach(), 0.8, SPACE.pairs_N2, sample)))
        adam.step()
    return distribution


@pytest.mark.parametrize("steps", [1, 30, 300, 10**6])
@pytest.mark.parametrize("lr", [0.02, 0.005])
def test_a_parameter_walks_lr_times_the_root_of_the_steps(steps, lr):
    walk = noise_walk(HOLDS[:40], Optimizer(steps, lr, BETAS, 0, "preferences", lr), one_draw=False)
    for name in ("probabilities", "magnitudes"):
        assert walk[name] == pytest.approx(lr * math.sqrt(steps), rel=0.05)
    alone = noise_walk(HOLDS[:40], Optimizer(steps, lr, BETAS, 0, "none", lr), one_draw=False)
    assert alone["preferences"] == pytest.approx(lr * math.sqrt(steps), rel=0.1)
    assert walk["preferences"] > 1.5 * alone["preferences"]


def test_the_mean_of_the_last_steps_has_walked_less():
    last, mean = (noise_walk(HOLDS, Optimizer(200, 0.02, BETAS, averaged, "preferences", 0.02), one_draw=False)
                  for averaged in (0, 200))
    # the mean of a random walk of n steps has a third of its end's variance
    assert mean["magnitudes"] / last["magnitudes"] == pytest.approx(math.sqrt(1 / 3), rel=0.05)


@pytest.mark.parametrize(("shared", "entries", "idle", "rel"), [  # three idle operations, so three shared walks
    ("all", {}, math.hypot(1, FASTER), 0.5), ("preferences", {"shared": True}, 1, 0.25)])  # a flag in older files
def test_a_search_on_noise_moves_as_far_as_the_simulation_says(tmp_path, shared, entries, idle, rel):
    for seed in range(2):
        distribution = noise_search(60, 0.02, 64, seed, shared)
        groups = movement(load_search(search_file(tmp_path, distribution, entry(60, **entries))))
        assert [group.name for group in groups] == list(GROUPS)
        for group in groups:
            assert 0.7 < group.ratio < 1.4 and group.within_noise
        assert idle_magnitudes(load_search(tmp_path / "search.json")) == pytest.approx(idle * 0.02 * math.sqrt(60), rel=rel)


def test_the_paper_draws_one_a_step_and_its_walk_says_so():
    """Most flags are never drawn in 45 steps: 1 - exp(-45/105) of them have moved at all."""
    walk = noise_walk(HOLDS, Optimizer(45, 5e-3, BETAS, 0, "none", 5e-3), one_draw=True)
    unit = 5e-3 * math.sqrt(45)
    assert 0.3 < walk["probabilities"] / unit < 0.6 and walk["magnitudes"] < walk["probabilities"]
    assert walk["preferences"] > 1.5 * unit


def test_shifts_are_counted_from_the_start(tmp_path):
    distribution = PolicyDistribution(SPACE)
    with torch.no_grad():
        distribution.flags_N2[:, 0] = 2.0
        distribution.magnitudes_N2[0, 1] = -1.0
        distribution.preferences_N[5] = 3.0
    preferences, probabilities, magnitudes = movement(load_search(search_file(tmp_path, distribution)))
    assert probabilities.rms == pytest.approx(math.sqrt(2), rel=1e-4)
    assert (probabilities.noise, probabilities.ratio, probabilities.within_noise) == (None, None, False)
    assert [dot.shift for dot in magnitudes.dots if abs(dot.shift) > 1e-6] == [pytest.approx(-1, rel=1e-4)]
    shift = 3.0 - 3.0 / 105
    assert max(dot.shift for dot in preferences.dots) == pytest.approx(shift, rel=1e-4)
    assert preferences.rms == pytest.approx(math.sqrt((shift**2 + 104 * (3 / 105) ** 2) / 105), rel=1e-4)
    idle = {"AutoContrast", "Invert", "Equalize"}
    assert {dot.operation for dot in magnitudes.dots} == set(OPERATION_NAMES) - idle
    assert math.isnan(magnitudes.rms_of("Invert")) and preferences.rms_of("Invert") > 0


def test_the_share_of_a_probability_that_older_files_save_is_no_shift(tmp_path):
    distribution = PolicyDistribution(SPACE)
    with torch.no_grad():
        distribution.flags_N2[:, 0] = 2.0
    path = search_file(tmp_path, distribution)
    content = json.loads(path.read_text())
    for sub_policy in content["sub_policies"]:
        for operation in sub_policy["operations"]:
            operation["probability"] *= 0.25
    path.write_text(json.dumps(content | {"share": 0.25}))
    assert movement(load_search(path))[1].rms == pytest.approx(math.sqrt(2), rel=1e-4)
    path.write_text(json.dumps(content | {"share": 0}))
    with pytest.raises(UserError, match="share is out of range"):
        load_search(path)


def test_the_paper_learns_numbers_not_logits(tmp_path):
    distribution = PolicyDistribution(SPACE, unconstrained=False, shared_by_operation="none", spread=None)
    with torch.no_grad():
        distribution.flags_N2.fill_(0.8)
    search = load_search(search_file(tmp_path, distribution, mode="paper"))
    assert movement(search)[1].rms == pytest.approx(0.3, rel=1e-4) and idle_magnitudes(search) is None


def test_a_search_without_a_step_has_no_noise(tmp_path):
    groups = movement(load_search(search_file(tmp_path, PolicyDistribution(SPACE), entry(0))))
    assert [group.ratio for group in groups] == [None] * 3


@pytest.mark.parametrize("change", [
    {"sub_policies": [{"preference": 1}]}, {"sub_policies": 3}, {"sub_policies": []}, {"ranges": "other"},
    {"sub_policies": [{"preference": math.nan, "operations": []}]}, {"provenance": 3}, {"optimizer": {}},
    {"optimizer": entry(-1)}, {"optimizer": entry(10, lr=math.nan)}, {"optimizer": entry(10, betas=[0.5])},
    {"optimizer": entry(10, betas=[0.5, 1.0])}, {"optimizer": entry(10, averaged=11)}, {"optimizer": entry(10**12)},
    {"optimizer": entry(math.inf)},
    {"optimizer": entry(10, shared="some")}, {"optimizer": entry(10, shared_lr=-1)},
    {"optimizer": [1]}, {"padding": "x" * 1_000_000}])
def test_a_broken_search_json_is_one_sentence(tmp_path, change):
    path = search_file(tmp_path, PolicyDistribution(SPACE))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"search\.json"):
        load_search(path)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 100_000])
def test_no_search_json_at_all_is_one_sentence(tmp_path, text):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(UserError, match=r"search\.json"):
        load_search(tmp_path / "search.json")
