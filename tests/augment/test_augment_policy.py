"""policy.json: what is written is what is read, and every mistake gets one sentence that names file and entry."""

import copy
import json

import pytest

from dada_det.augment import Operation, Policy, SubPolicy
from dada_det.errors import UserError

GOOD = {"schema": 1, "ranges": "strength", "provenance": {"seed": 0},
        "sub_policies": [{"weight": 2, "operations": [{"name": "Rotate", "probability": 0.5, "magnitude": 0.25},
                                                      {"name": "Invert", "probability": 1, "magnitude": 0,
                                                       "spread": 0.8}]},
                         {"weight": 1.5, "operations": [{"name": "Cutout", "probability": 0.1, "magnitude": 1.0}]}]}


def changed(change):
    data = copy.deepcopy(GOOD)
    change(data)
    return data


def test_round_trip(tmp_path):
    policy = Policy.from_dict(GOOD)
    assert policy.sub_policies[0].operations[1] == Operation("Invert", 1, 0, 0.8)
    policy.save(tmp_path / "policy.json")
    assert json.loads((tmp_path / "policy.json").read_text()) == GOOD
    assert Policy.load(tmp_path / "policy.json") == policy
    assert list(tmp_path.iterdir()) == [tmp_path / "policy.json"]


def test_uniform_strength_is_written_only_when_set(tmp_path):
    data = changed(lambda data: data.update(uniform_strength=True))
    policy = Policy.from_dict(data)
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path / "policy.json").uniform_strength
    assert "uniform_strength" not in Policy.from_dict(GOOD).to_dict()
    assert policy.sha256 != Policy.from_dict(GOOD).sha256


def test_hash_is_of_what_the_policy_does():
    policy = Policy.from_dict(GOOD)
    other_origin = Policy.from_dict(changed(lambda data: data.update(provenance={"seed": 7})))
    assert policy.sha256 == other_origin.sha256 and len(policy.sha256) == 64
    heavier = Policy.from_dict(changed(lambda data: data["sub_policies"][0].update(weight=3)))
    assert heavier.sha256 != policy.sha256
    assert Policy.from_dict(json.loads(json.dumps(GOOD))).sha256 == policy.sha256


def test_labels_speak_real_units():
    assert Policy.from_dict(GOOD).labels() == ["57.1 %  Rotate ±8° (0.50), then Invert (1.00)",
                                               "42.9 %  Cutout 20 % (0.10)"]


def operation(data):
    return data["sub_policies"][0]["operations"][1]


MISTAKES = {
    "schema is missing": lambda data: data.pop("schema"),
    "the schema is 2; this version reads schema 1": lambda data: data.update(schema=2),
    "the schema is True": lambda data: data.update(schema=True),
    "the ranges are 'wide'; they must be one of strength, autoaugment": lambda data: data.update(ranges="wide"),
    r"the ranges are \['strength'\]": lambda data: data.update(ranges=["strength"]),
    "'extra' is no known key": lambda data: data.update(extra=1),
    "provenance must be a JSON object": lambda data: data.update(provenance=[]),
    "uniform_strength must be true or false": lambda data: data.update(uniform_strength=1),
    "sub_policies must be a list": lambda data: data.update(sub_policies={}),
    "a policy has 1 to 1000 sub-policies, not 0": lambda data: data.update(sub_policies=[]),
    "1001 sub-policies; at most 1000": lambda data: data.update(sub_policies=data["sub_policies"][1:] * 1001),
    r"sub_policies\[1\]: a JSON object with weight, operations is needed here, not 3":
        lambda data: data["sub_policies"].__setitem__(1, 3),
    r"sub_policies\[1\]: weight is missing": lambda data: data["sub_policies"][1].pop("weight"),
    r"sub_policies\[1\]: the weight is -1; it must be a finite number of at least 0":
        lambda data: data["sub_policies"][1].update(weight=-1),
    r"sub_policies\[1\]: the weight is '1'": lambda data: data["sub_policies"][1].update(weight="1"),
    r"sub_policies\[0\]: the weight is 1000": lambda data: data["sub_policies"][0].update(weight=10**400),
    "weights of the sub-policies must have a positive, finite sum":
        lambda data: [sub_policy.update(weight=0) for sub_policy in data["sub_policies"]],
    r"sub_policies\[0\]: operations must be a list": lambda data: data["sub_policies"][0].update(operations=None),
    r"sub_policies\[0\]: a sub-policy has one or two operations, not 0":
        lambda data: data["sub_policies"][0].update(operations=[]),
    r"sub_policies\[0\]: a sub-policy has one or two operations, not 4":
        lambda data: data["sub_policies"][0].update(operations=data["sub_policies"][0]["operations"] * 2),
    r"sub_policies\[0\].operations\[1\]: 'Blur' is no operation": lambda data: operation(data).update(name="Blur"),
    r"sub_policies\[0\].operations\[1\]: \['Invert'\] is no operation":
        lambda data: operation(data).update(name=["Invert"]),
    r"sub_policies\[0\].operations\[1\]: the probability is 1.5; it must be a number in 0..1":
        lambda data: operation(data).update(probability=1.5),
    r"operations\[1\]: the probability is True": lambda data: operation(data).update(probability=True),
    r"operations\[1\]: the magnitude is -0.1": lambda data: operation(data).update(magnitude=-0.1),
    r"operations\[1\]: the magnitude is None": lambda data: operation(data).update(magnitude=None),
    r"operations\[1\]: the spread is -1": lambda data: operation(data).update(spread=-1),
    r"operations\[1\]: magnitude is missing": lambda data: operation(data).pop("magnitude"),
    r"operations\[1\]: 'spraed' is no known key; known are name, probability, magnitude, spread":
        lambda data: operation(data).update(spraed=1),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named_with_file_and_entry(message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(changed(MISTAKES[message])))
    with pytest.raises(UserError, match=f"mine.json: .*{message}") as caught:
        Policy.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is no JSON that can be read"),
    ("", "is no JSON that can be read"),
    ('{"schema": 1, "schema": 1}', "the key 'schema' stands twice in one object"),
    ('{"schema": NaN}', "NaN is no number"),
    ('{"schema": -Infinity}', "-Infinity is no number"),
    ("[" * 100_000, "is nested too deeply"),
    ("[1]", r"a JSON object with schema, ranges, sub_policies is needed here, not \[1\]"),
    ("9" * 5000, "is no JSON that can be read"),
    (" " * 1_000_001, "is larger than 1 MB"),
])
def test_files_that_are_no_policy(text, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Policy.load(path)
    assert "mine.json" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the policy .*missing.json: No such file"):
        Policy.load(tmp_path / "missing.json")
    with pytest.raises(UserError, match="cannot read the policy"):
        Policy.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"binary\.json is no JSON that can be read"):
        Policy.load(tmp_path / "binary.json")


def test_policies_made_in_python_are_checked_too():
    with pytest.raises(UserError, match="the probability is nan"):
        Operation("Rotate", float("nan"), 0.5)
    with pytest.raises(UserError, match="the weight is inf"):
        SubPolicy(float("inf"), (Operation("Rotate", 1.0, 0.5),))
