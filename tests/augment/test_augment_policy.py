"""policy.json: what is written is what is read, and every mistake gets one sentence that names file and entry."""

import copy
import json
import os
import tracemalloc

import pytest

from dada_det.augment import Operation, Policy, SubPolicy
from dada_det.commands.pretrain import main as pretrain
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


def test_unaugmented_and_mirror_are_written_only_when_set_and_are_part_of_the_hash(tmp_path):
    plain = Policy.from_dict(GOOD)
    assert "unaugmented" not in plain.to_dict() and "mirror" not in plain.to_dict()
    assert plain.sha256[:16] == "f82f02efc962e7fa"  # as before these entries existed
    hashes = {plain.sha256}
    for entries in ({"unaugmented": 0.25}, {"unaugmented": 1}, {"mirror": True}, {"mirror": False},
                    {"unaugmented": 0.25, "mirror": False}):
        policy = Policy.from_dict({**GOOD, **entries})
        policy.save(tmp_path / "policy.json")
        assert Policy.load(tmp_path / "policy.json") == policy
        assert json.loads((tmp_path / "policy.json").read_text()) == {**GOOD, **entries}
        hashes.add(policy.sha256)
    assert len(hashes) == 6
    assert Policy.from_dict({**GOOD, "unaugmented": 0}) == plain


def test_hash_is_of_what_the_policy_does():
    policy = Policy.from_dict(GOOD)
    other_origin = Policy.from_dict(changed(lambda data: data.update(provenance={"seed": 7})))
    assert policy.sha256 == other_origin.sha256 and len(policy.sha256) == 64
    heavier = Policy.from_dict(changed(lambda data: data["sub_policies"][0].update(weight=3)))
    assert heavier.sha256 != policy.sha256
    assert Policy.from_dict(json.loads(json.dumps(GOOD))).sha256 == policy.sha256


def test_labels_speak_real_units():
    quarter = Policy.from_dict({**GOOD, "unaugmented": 0.75})
    assert [label[:6] for label in quarter.labels()] == ["14.3 %", "10.7 %"]  # of the images
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
    "unaugmented is 1.5; it must be a number in 0..1": lambda data: data.update(unaugmented=1.5),
    "unaugmented is True": lambda data: data.update(unaugmented=True),
    "mirror must be true or false": lambda data: data.update(mirror=1),
    "it holds a fixed policy by its name; a table of sub-policies is needed here": lambda data: data.update(named="trivial"),
    "sub_policies must be a list": lambda data: data.update(sub_policies={}),
    "a policy has 1 to 1000 sub-policies, not 0": lambda data: data.update(sub_policies=[]),
    "1001 sub-policies; at most 1000": lambda data: data.update(sub_policies=data["sub_policies"][1:] * 1001),
    r"sub_policies\[1\]: a JSON object with weight, operations is needed here, not 3":
        lambda data: data["sub_policies"].__setitem__(1, 3),
    r"sub_policies\[1\]: weight is missing": lambda data: data["sub_policies"][1].pop("weight"),
    r"sub_policies\[1\]: the weight is -1; it must be a finite number of at least 0":
        lambda data: data["sub_policies"][1].update(weight=-1),
    r"sub_policies\[1\]: the weight is '1'": lambda data: data["sub_policies"][1].update(weight="1"),
    r"sub_policies\[0\]: the weight is a whole number of more than 300 digits; it must be a finite number":
        lambda data: data["sub_policies"][0].update(weight=10**310),
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
    r"operations\[1\]: the spread is -1; it must be a number in 0..1000": lambda data: operation(data).update(spread=-1),
    r"operations\[1\]: the spread is 1e\+40": lambda data: operation(data).update(spread=1e40),
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
    ("[" * 100_000, r"is no JSON that can be read \(nested deeper than 20 levels\)"),
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
    with pytest.raises(UserError, match=r"cannot read the policy .*: Is a directory"):
        Policy.load(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the policy a\?b: embedded null byte"):
        Policy.load("a\0b")
    os.mkfifo(tmp_path / "pipe")  # nobody will ever write into it
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match=f"cannot read the policy {path}: it is no regular file; give a policy.json"):
            Policy.load(path)


def text(**entries):
    return json.dumps({**GOOD, **entries}).encode()


def with_provenance(value):
    """GOOD with `value`, a text of JSON, somewhere in its provenance."""
    return json.dumps(GOOD).replace('{"seed": 0}', f'{{"seed": {value}}}').encode()


def with_weight(value):
    return json.dumps(GOOD).replace('"weight": 2', f'"weight": {value}').encode()


def many_keys():
    return "{" + ", ".join(f'"{key}": 0' for key in [*range(80_000), 79_999]) + "}"


HOSTILE = {  # name: (the file's bytes, the message); made on demand, some take 50 MB
    "many sub-policies": (lambda: text(sub_policies=[{"weight": 1, "operations": []}] * 10_000),
                          ": 10000 sub-policies; at most 1000 are read"),
    "many whole sub-policies": (lambda: text(sub_policies=GOOD["sub_policies"] * 5000), "is larger than 1 MB"),
    "NaN": (lambda: with_provenance("NaN"), "NaN is no number"),
    "Infinity": (lambda: with_provenance("[Infinity]"), "Infinity is no number"),
    "1e999": (lambda: with_provenance("-1e999"), "'-1e999' is no number of at most 400 digits below 1.8e308"),
    "negative weight": (lambda: with_weight("-2e-9"),
                        r"sub_policies\[0\]: the weight is -2e-09; it must be a finite number of at least 0"),
    "true": (lambda: with_weight("true"), r"sub_policies\[0\]: the weight is True"),
    "a list for a number": (lambda: with_weight(str([[0] * 99] * 999)), r"the weight is \[.{1,40}; it must be"),
    "a key twice": (lambda: with_provenance('{"a": 1, "b": 2, "a": 1}'), "the key 'a' stands twice in one object"),
    "the last of many keys twice": (lambda: with_provenance(many_keys()), "the key '79999' stands twice in one object"),
    "50 MB of nesting": (lambda: b"[" * 50_000_000, "is larger than 1 MB"),
    "1 MB of nesting": (lambda: b'{"a":' * 190_000, "nested deeper than 20 levels"),
    "deep provenance": (lambda: with_provenance("[" * 30 + "]" * 30), "nested deeper than 20 levels"),
    "50 MB of one number": (lambda: b"9" * 50_000_000, "is larger than 1 MB"),
    "1 MB of one number": (lambda: b"9" * 1_000_000, r"'9+\.\.\.9+' is no number of at most 400 digits"),
    "1 MB of one fraction": (lambda: b"0." + b"9" * 900_000, r"'0.9+\.\.\.9+' is no number of at most 400 digits"),
    "large provenance": (lambda: with_provenance('"' + "x" * 10_000_000 + '"'), "is larger than 1 MB"),
    "a large name": (lambda: json.dumps(GOOD).replace("Rotate", "\\u001b" * 150_000).encode(),
                     r"operations\[0\]: '(\\x1b)+\.\.\.b(\\x1b)+' is no operation; choose among ShearX"),
    "large ranges": (lambda: text(ranges=["wide" * 200_000]), "the ranges are .{1,40}; they must be one of"),
    "a large unknown key": (lambda: text(**{"k" * 900_000: 1}), "'kkk.{1,40} is no known key"),
    "a lone surrogate": (lambda: with_provenance(r'"\ud800"'), "surrogates not allowed"),
    "a lone surrogate in a key": (lambda: with_provenance(r'{"\udc00": 0}'), "surrogates not allowed"),
    "a surrogate's bytes": (lambda: with_provenance('"#"').replace(b"#", b"\xed\xa0\x80"), "can't decode byte 0xed"),
    "no text": (lambda: bytes(range(256)), "is no JSON that can be read"),
    "UTF-16": (lambda: json.dumps(GOOD).encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0"),
    "UTF-16 without a mark": (lambda: json.dumps(GOOD).encode("utf-16-le"), "is no JSON that can be read"),
    "empty": (lambda: b"", "is no JSON that can be read"),
    "zeros": (lambda: bytes(999), "is no JSON that can be read"),
    "unknown operation": (lambda: json.dumps(GOOD).replace("Rotate", r"Blur\n").encode(), r"'Blur\\n' is no operation"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_short_sentence_in_bounded_memory(name, tmp_path):
    content, message = HOSTILE[name]
    path = tmp_path / "mine.json"
    path.write_bytes(content())
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"mine.json.*{message}") as caught:
            Policy.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert peak < 100e6


def test_a_byte_order_mark_and_what_a_provenance_may_hold_are_read_and_written_again(tmp_path):
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xef\xbb\xbf" + with_provenance(f'[{"[" * 16}{"]" * 16}, "\u00fc", {10**300}]'))
    policy = Policy.load(path)
    assert policy.provenance["seed"][1:] == ["\u00fc", 10**300]
    policy.save(path)
    assert Policy.load(path) == policy


def test_names_of_files_are_printed_on_one_line_of_bounded_length(tmp_path):
    path = tmp_path / "\x1b[31m\nred\udcff.json"
    path.write_text("no")
    with pytest.raises(UserError, match=r"\?\[31m\?red\?\.json is no JSON"):
        Policy.load(path)
    with pytest.raises(UserError) as caught:
        Policy.load("x" * 100_000)
    assert len(str(caught.value)) < 600 and "File name too long" in str(caught.value)


@pytest.mark.parametrize("name", ["many sub-policies", "1 MB of nesting", "NaN", "UTF-16"])
def test_commands_end_with_exit_code_2_and_one_line(name, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_bytes(HOSTILE[name][0]())
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    assert pretrain(["--policy", str(path), "--data", str(tmp_path), "--work-dir", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("pretrain_r50.sh: error: ") and str(path) in error
    assert not (tmp_path / "w").exists()


def test_policies_made_in_python_are_checked_too():
    with pytest.raises(UserError, match="the probability is nan"):
        Operation("Rotate", float("nan"), 0.5)
    with pytest.raises(UserError, match="the weight is inf"):
        SubPolicy(float("inf"), (Operation("Rotate", 1.0, 0.5),))
    with pytest.raises(UserError, match="the weight is a whole number of more than 300 digits"):
        SubPolicy(-10**5000, (Operation("Rotate", 1.0, 0.5),))
    with pytest.raises(UserError, match=r"the magnitude is \[a whole number of"):
        Operation("Rotate", 1.0, [10**5000])
