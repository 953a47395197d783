"""policy.json: what is written is what is read, and every mistake gets one sentence that names file and entry."""

import copy
import json
import os
import re
import tracemalloc

import pytest

from dada_det.augment import Operation, Policy, SubPolicy
from dada_det.commands.pretrain import main as pretrain
from dada_det.errors import UserError
from tests.messages import refused

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
    ("schema", "missing"): lambda data: data.pop("schema"),
    ("schema is 2", "schema 1"): lambda data: data.update(schema=2),
    ("schema is True", "schema 1"): lambda data: data.update(schema=True),
    ("ranges", "'wide'", "strength", "autoaugment"): lambda data: data.update(ranges="wide"),
    ("ranges", "['strength']"): lambda data: data.update(ranges=["strength"]),
    ("'extra'", "key"): lambda data: data.update(extra=1),
    ("provenance", "JSON object"): lambda data: data.update(provenance=[]),
    ("uniform_strength", "true or false"): lambda data: data.update(uniform_strength=1),
    ("unaugmented", "1.5", "0..1"): lambda data: data.update(unaugmented=1.5),
    ("unaugmented", "True", "0..1"): lambda data: data.update(unaugmented=True),
    ("mirror", "true or false"): lambda data: data.update(mirror=1),
    ("fixed policy", "sub-policies"): lambda data: data.update(named="trivial"),
    ("sub_policies", "list"): lambda data: data.update(sub_policies={}),
    ("1 to 1000 sub-policies", "0"): lambda data: data.update(sub_policies=[]),
    ("1001 sub-policies", "1000"): lambda data: data.update(sub_policies=data["sub_policies"][1:] * 1001),
    ("sub_policies[1]", "weight, operations", "3"):
        lambda data: data["sub_policies"].__setitem__(1, 3),
    ("sub_policies[1]", "weight", "missing"): lambda data: data["sub_policies"][1].pop("weight"),
    ("sub_policies[1]", "weight", "-1", "finite", "at least 0"):
        lambda data: data["sub_policies"][1].update(weight=-1),
    ("sub_policies[1]", "weight", "'1'"): lambda data: data["sub_policies"][1].update(weight="1"),
    ("sub_policies[0]", "weight", "300 digits", "finite"):
        lambda data: data["sub_policies"][0].update(weight=10**310),
    ("weights of the sub-policies", "positive, finite"):
        lambda data: [sub_policy.update(weight=0) for sub_policy in data["sub_policies"]],
    ("sub_policies[0]", ": operations", "list of one or two"): lambda data: data["sub_policies"][0].update(operations=None),
    ("sub_policies[0]", "one or two operations", "not 0"):
        lambda data: data["sub_policies"][0].update(operations=[]),
    ("sub_policies[0]", "one or two operations", "not 4"):
        lambda data: data["sub_policies"][0].update(operations=data["sub_policies"][0]["operations"] * 2),
    ("sub_policies[0].operations[1]", "'Blur'"): lambda data: operation(data).update(name="Blur"),
    ("sub_policies[0].operations[1]", "['Invert']"):
        lambda data: operation(data).update(name=["Invert"]),
    ("sub_policies[0].operations[1]", "probability", "1.5", "0..1"):
        lambda data: operation(data).update(probability=1.5),
    ("operations[1]", "probability", "True"): lambda data: operation(data).update(probability=True),
    ("operations[1]", "magnitude", "-0.1"): lambda data: operation(data).update(magnitude=-0.1),
    ("operations[1]", "magnitude", "None"): lambda data: operation(data).update(magnitude=None),
    ("operations[1]", "spread", "-1", "0..1000"): lambda data: operation(data).update(spread=-1),
    ("operations[1]", "spread", "1e+40"): lambda data: operation(data).update(spread=1e40),
    ("operations[1]", "magnitude", "missing"): lambda data: operation(data).pop("magnitude"),
    ("operations[1]", "'spraed'", "name, probability, magnitude, spread"):
        lambda data: operation(data).update(spraed=1),
}


@pytest.mark.parametrize("names", MISTAKES)
def test_mistakes_are_named_with_file_and_entry(names, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(changed(MISTAKES[names])))
    with refused(path, *names):
        Policy.load(path)


@pytest.mark.parametrize(("text", "names"), [
    ("{", ("JSON",)),
    ("", ("JSON",)),
    ('{"schema": 1, "schema": 1}', ("'schema'", "twice")),
    ('{"schema": NaN}', ("NaN",)),
    ('{"schema": -Infinity}', ("-Infinity",)),
    ("[" * 100_000, ("JSON", "20 levels")),
    ("[1]", ("schema, ranges, sub_policies", "[1]")),
    ("9" * 5000, ("JSON",)),
    (" " * 1_000_001, ("1 MB",)),
])
def test_files_that_are_no_policy(text, names, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with refused(path, *names):
        Policy.load(path)


def test_files_that_cannot_be_read(tmp_path):
    with refused("missing.json", "No such file"):
        Policy.load(tmp_path / "missing.json")
    with refused(tmp_path, "Is a directory"):
        Policy.load(tmp_path)
    with refused("a?b", "null byte"):
        Policy.load("a\0b")
    os.mkfifo(tmp_path / "pipe")  # nobody will ever write into it
    for path in (tmp_path / "pipe", "/dev/zero"):
        with refused(path, "regular file", "policy.json"):
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
    with refused("probability", "nan"):
        Operation("Rotate", float("nan"), 0.5)
    with refused("weight", "inf"):
        SubPolicy(float("inf"), (Operation("Rotate", 1.0, 0.5),))
    with refused("weight", "300 digits"):
        SubPolicy(-10**5000, (Operation("Rotate", 1.0, 0.5),))
    with refused("magnitude", re.compile(r"\[a whole number of")):
        Operation("Rotate", 1.0, [10**5000])
