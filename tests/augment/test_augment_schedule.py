"""schedule.json: written and read, refused entry by entry, replayed by progress, and averaged into a plain policy."""

import copy
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import OPERATION_NAMES, Draws, Policy, apply_draws
from dada_det.augment.named import resolve_policy, resolve_replayable
from dada_det.augment.schedule import Schedule, ScheduleTransform
from dada_det.augment.transform import slot_rows
from dada_det.errors import UserError
from tests.messages import refused

GOOD = {"schema": 1, "ranges": "strength", "provenance": {"seed": 0},
        "atoms": [{"name": None, "magnitude": 0.0}, {"name": "Invert", "magnitude": 0.0},
                  {"name": "Rotate", "magnitude": 0.5}],
        "schedule": [{"until": 0.25, "probability": 0.2, "preferences": [0.5, 0.25, 0.25]},
                     {"until": 1.0, "probability": 0.8, "preferences": [0.2, 0.6, 0.2]}]}


def changed(change):
    data = copy.deepcopy(GOOD)
    change(data)
    return data


def test_round_trip(tmp_path):
    schedule = Schedule.from_dict(GOOD)
    schedule.save(tmp_path / "schedule.json")
    assert json.loads((tmp_path / "schedule.json").read_text()) == GOOD
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    assert resolve_replayable(str(tmp_path / "schedule.json")) == (schedule, None)
    other = Schedule.from_dict(changed(lambda data: data.update(provenance={})))
    assert other.sha256 == schedule.sha256
    assert Schedule.from_dict(changed(lambda data: data["schedule"][0].update(probability=0.3))).sha256 != schedule.sha256


@pytest.mark.parametrize(("change", "names"), [
    (lambda data: data.pop("atoms"), ("schedule", "atoms", "missing")),
    (lambda data: data.update(stages=[]), ("'stages'", "key")),
    (lambda data: data.update(schema=2), ("schema is 2", "schema 1")),
    (lambda data: data.update(ranges="strong"), ("ranges", "'strong'", "strength, autoaugment")),
    (lambda data: data.update(provenance=[]), ("provenance", "JSON object")),
    (lambda data: data.update(atoms=[]), ("atoms", "1 to 200")),
    (lambda data: data.update(schedule=data["schedule"] * 101), (": schedule", "1 to 200")),
    (lambda data: data["atoms"].__setitem__(1, {"name": "Blur", "magnitude": 0.0}), ("atoms[1]", "'Blur'")),
    (lambda data: data["atoms"][1].update(name=["x" * 9000]), ("atoms[1]", re.compile(r"\['xxxx"))),
    (lambda data: data["atoms"][2].update(magnitude=1.5), ("atoms[2]", "magnitude", "1.5", "0..1")),
    (lambda data: data["atoms"][2].pop("magnitude"), ("atoms[2]", "magnitude", "missing")),
    (lambda data: data["schedule"][1].update(probability=True), ("schedule[1]", "probability", "True")),
    (lambda data: data["schedule"][0].update(until=-0.1), ("schedule[0]", "until", "-0.1")),
    (lambda data: data["schedule"][0].update(preferences=[0.5, 0.5]), ("2 preferences", "3 atoms")),
    (lambda data: data["schedule"][0].update(preferences=[0, 0, 0]), ("preferences", "positive")),
    (lambda data: data["schedule"][0].update(preferences=["1", 0, 0]), ("schedule[0]", "preference", "'1'")),
    (lambda data: data["schedule"][0].update(preferences=1), ("schedule[0]", "preferences", "list of numbers")),
    (lambda data: data["schedule"][1].update(until=0.9), ("`until`", "1")),
    (lambda data: data["schedule"][0].update(until=1.0), ("`until`", "1")),
])
def test_mistakes_get_one_sentence_that_names_the_entry(change, names):
    with refused(*names) as error:
        Schedule.from_dict(changed(change))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schedule": ' + "[" * 100 + "]" * 100 + "}", "x" * 1_000_001,
                                  '{"schema": 1, "schema": 1}', '{"schema": NaN}'])
def test_hostile_files_are_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "schedule.json").write_text(text)
    for load in (Schedule.load, resolve_replayable):
        with pytest.raises(UserError) as error:
            load(str(tmp_path / "schedule.json"))
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_plain_policy_s_reader_names_the_average(tmp_path):
    Schedule.from_dict(GOOD).save(tmp_path / "schedule.json")
    for load in (Policy.load, resolve_policy):
        with refused(tmp_path / "schedule.json", "pretraining", "policy.json"):
            load(str(tmp_path / "schedule.json"))


def test_names_and_plain_policies_mean_what_they_mean_elsewhere(tmp_path):
    policy = resolve_policy("uniform")
    policy.save(tmp_path / "policy.json")
    assert resolve_replayable(str(tmp_path / "policy.json")) == (policy, None)
    assert resolve_replayable("none") == (None, None)
    assert resolve_replayable("dada-imagenet") == (resolve_policy("dada-imagenet"), None)
    with pytest.raises(UserError, match="neither a file nor a name"):
        resolve_replayable("nowhere.json")


@pytest.mark.parametrize(("progress", "stage"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.99, 1), (1.0, 1)])
def test_a_stage_holds_until_its_end(progress, stage):
    assert Schedule.from_dict(GOOD).at(progress) == stage


@pytest.mark.parametrize("progress", [0.1, 0.5])
def test_draws_are_those_of_the_stage(progress):
    """20,000 draws, every pair of slots within five standard errors."""
    transform = ScheduleTransform(Schedule.from_dict(GOOD))
    transform.progress = progress
    n = 20_000
    draws = transform.draw(n, torch.Generator().manual_seed(0))
    names = [tuple(OPERATION_NAMES[o] if a else None for o, a in zip(operations, active, strict=True))
             for operations, active in zip(draws.operations_BK.tolist(), draws.active_BK.tolist(), strict=True)]
    stage = GOOD["schedule"][progress > 0.25]
    wanted = Counter({(None, None): 1 - stage["probability"]})
    for first, p in zip(GOOD["atoms"], stage["preferences"], strict=True):
        for second, q in zip(GOOD["atoms"], stage["preferences"], strict=True):
            wanted[first["name"], second["name"]] += stage["probability"] * p * q
    found = Counter(names)
    assert set(found) == set(wanted)
    for pair, share in wanted.items():
        assert abs(found[pair] / n - share) < 5 * (share * (1 - share) / n) ** 0.5, pair
    assert draws.signs_BK.unique().tolist() == [-1, 1] and abs(draws.signs_BK.mean()) < 0.03
    rotated = draws.operations_BK == OPERATION_NAMES.index("Rotate")
    assert draws.magnitudes_BK[rotated & draws.active_BK].unique().tolist() == [0.5]


def test_a_batch_and_a_pil_image_get_what_was_drawn():
    transform = ScheduleTransform(Schedule.from_dict(GOOD))
    transform.progress = 0.9
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = transform.draw(5, torch.Generator().manual_seed(1))
    assert torch.equal(transform(images, torch.Generator().manual_seed(1)), apply_draws(images, drawn, "strength"))
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    result = transform(picture, torch.Generator().manual_seed(1))
    one = transform.draw(1, torch.Generator().manual_seed(1))
    assert torch.equal(torch.from_numpy(np.array(result)).permute(2, 0, 1),
                       apply_draws(images[:1], one, "strength")[0])


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_one_image_draws_what_a_batch_of_one_draws(progress):
    """Its own road to the draws, without tensors: the same numbers, and the generator ends in the same state."""
    transform = ScheduleTransform(Schedule.from_dict(GOOD))
    transform.progress, seen = progress, 0
    for seed in range(200):
        one, batch = (torch.Generator().manual_seed(seed) for _ in range(2))
        slots = transform.draw_one(one)
        assert slots == transform.draw(1, batch).active_slots()[0]
        assert torch.equal(one.get_state(), batch.get_state())
        assert Draws.of_rows(slot_rows(slots)[None]).active_slots()[0] == slots  # as a loader collates them
        seen += len(slots)
    assert seen > 20


def test_the_average_is_the_mean_of_the_stages_over_the_training():
    policy = Schedule.from_dict(GOOD).average()
    weights = {tuple(o.name for o in s.operations if o.probability): s.weight for s in policy.sub_policies}
    assert sum(weights.values()) == pytest.approx(1) and policy.provenance == {"seed": 0}
    first, last = 0.25 * 0.2, 0.75 * 0.8
    assert weights[()] == pytest.approx(0.25 * 0.8 + 0.75 * 0.2 + first * 0.5 ** 2 + last * 0.2 ** 2)
    assert weights["Invert",] == pytest.approx(2 * (first * 0.5 * 0.25 + last * 0.2 * 0.6))
    assert weights["Invert", "Rotate"] == pytest.approx(first * 0.25 * 0.25 + last * 0.6 * 0.2)
    assert len(weights) == 1 + 2 + 4
    assert {o.magnitude for s in policy.sub_policies for o in s.operations if o.name == "Rotate"} == {0.5}


def test_the_average_of_many_atoms_keeps_the_likeliest_pairs_and_the_share_that_is_augmented(tmp_path):
    atoms = [{"name": "Rotate", "magnitude": index / 99} for index in range(100)]
    preferences = [index / 99 for index in range(100)]
    policy = Schedule.from_dict({**GOOD, "atoms": atoms, "schedule": [
        {"until": 1.0, "probability": 0.4, "preferences": preferences}]}).average()
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json") == policy and len(policy.sub_policies) == 1000
    assert policy.sub_policies[0].weight == pytest.approx(0.6)
    assert sum(s.weight for s in policy.sub_policies) == pytest.approx(1)
    least = min(policy.sub_policies[1:], key=lambda s: s.weight).operations
    products = sorted((p * q for p in preferences for q in preferences), reverse=True)
    assert least[0].magnitude * least[1].magnitude == pytest.approx(products[998])
