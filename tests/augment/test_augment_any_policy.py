"""Policy files of every kind: legal ones are read, written and applied alike; broken ones get one sentence."""

import contextlib
import copy
import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from dada_det.augment import OPERATION_NAMES, RANGES, Policy, PolicyTransform
from dada_det.augment.export import as_data
from dada_det.augment.named import fixed_policy, image_transform, resolve
from dada_det.augment.policy import FIXED, NamedPolicy
from dada_det.commands.export_policy import main as export_policy
from tests.data.coco_strategies import examples

Path_ = tuple[str | int, ...]
SHARES = st.one_of(st.sampled_from([0, 1, 0.0, 1.0, 0.5]), st.floats(0, 1))
WEIGHTS = st.one_of(st.sampled_from([0, 1, 2.5, 5e-324, 1e300]), st.floats(0, 1e300))
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROVENANCE = st.dictionaries(WORDS, st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-10**20, 10**20), st.floats(-1e300, 1e300), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)), max_leaves=5),
    max_size=3)
COMMON = {"provenance": PROVENANCE, "mirror": st.booleans()}
OPERATIONS = st.fixed_dictionaries(
    {"name": st.sampled_from(OPERATION_NAMES), "probability": SHARES, "magnitude": SHARES},
    optional={"spread": st.one_of(st.sampled_from([None, 0, 1.5]), st.floats(0, 1000))})
SUB_POLICIES = st.fixed_dictionaries({"weight": WEIGHTS, "operations": st.lists(OPERATIONS, min_size=1, max_size=2)})
TABLES = st.fixed_dictionaries(
    {"schema": st.just(1), "ranges": st.sampled_from(RANGES),
     "sub_policies": st.lists(SUB_POLICIES, min_size=1, max_size=6)},
    optional={**COMMON, "uniform_strength": st.booleans(), "unaugmented": SHARES}
).filter(lambda table: sum(entry["weight"] for entry in table["sub_policies"]) > 0)
NAMES = st.one_of(
    st.fixed_dictionaries({"schema": st.just(1), "named": st.sampled_from([name for name in FIXED if name != "random"])},
                          optional=COMMON),
    st.fixed_dictionaries({"schema": st.just(1), "named": st.just("random"), "seed": st.integers(0, 2**32 - 1)},
                          optional=COMMON))
FILES = st.one_of(TABLES, NAMES)


@contextlib.contextmanager
def written(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.json")
        path.write_bytes(content)
        yield path


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def read_write_and_apply(data: dict[str, Any]) -> None:
    with written(json.dumps(data).encode()) as path:
        policy, mirror = resolve(str(path))
        assert mirror is data.get("mirror")
        (NamedPolicy.from_dict(data) if "named" in data else Policy.from_dict(data)).save(path)
        again, mirror_again = resolve(str(path))
        assert mirror_again is mirror and (again == policy or not isinstance(policy, Policy))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 9, 12), dtype=np.uint8))
    changed = image_transform(policy)(images, generator=seeded())
    assert torch.equal(image_transform(again)(images, generator=seeded()), changed)
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    if "named" in data:
        plain = fixed_policy(data["named"], data.get("seed", 0))
        assert torch.equal(image_transform(plain)(images, generator=seeded()), changed)
    if not isinstance(policy, Policy):
        return
    assert again.sha256 == policy.sha256
    transform = PolicyTransform(policy)
    draws = transform.draw(7, seeded())
    for row in range(7):
        picture = Image.fromarray(images[row].permute(1, 2, 0).numpy())
        alone = np.asarray(transform.apply(picture, draws[row:row + 1])).transpose(2, 0, 1)
        assert np.array_equal(alone, changed[row].numpy())
    if policy.unaugmented == 1:
        assert torch.equal(changed, images)
    assert math.isclose(sum(entry["weight"] for entry in as_data(policy)["sub_policies"]), 1, rel_tol=1e-9)


@examples
def test_a_legal_file_is_read_written_and_applied(examples):
    examples(given(FILES)(read_write_and_apply))()


def places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every object and value of a file with its path, but what lies inside provenance."""
    yield path, value
    if path != ("provenance",):
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield from places(value[key], (*path, key))


NEEDED = {"schema", "ranges", "sub_policies", "weight", "operations", "name", "probability", "magnitude", "named", "seed"}
NO_SHARE = st.sampled_from([-1, 1.5, True, None, "0.5", [0], {}, -5e-324])
NO_BOOLEAN = st.sampled_from([0, 1, None, "true", []])
WRONG = {  # by an entry's key, values that it cannot have
    "schema": st.sampled_from([0, 2, True, None, "1", [1]]), "ranges": st.sampled_from(["wide", "", 1, None, ["strength"]]),
    "sub_policies": st.sampled_from([[], {}, None, 3, "x", [None]]),
    "weight": st.sampled_from([-1, 1e301, True, None, "1", []]), "operations": st.sampled_from([[], {}, None, 1, [1]]),
    "name": st.sampled_from(["Blur", "rotate", "", 3, None, ["Rotate"]]), "probability": NO_SHARE,
    "magnitude": NO_SHARE, "unaugmented": NO_SHARE,
    "spread": st.sampled_from([-1, 1001, True, "0", [1]]), "uniform_strength": NO_BOOLEAN, "mirror": NO_BOOLEAN,
    "provenance": st.sampled_from([[], 1, "x", None]),
    "named": st.sampled_from(["dada-imagenet", "", 1, None, ["none"], {}]),
    "seed": st.sampled_from([-1, 2**32, True, 1.0, None, "0"])}


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A legal file with one mistake."""
    data = copy.deepcopy(draw(FILES))
    found = list(places(data))
    kind = draw(st.sampled_from(["remove", "replace", "add", "text"]))
    if kind == "text":
        text = json.dumps(data)
        cut = draw(st.integers(0, len(text) - 1))
        return draw(st.sampled_from([
            text[:cut].encode(), text.encode() + b"}", text[:-1].encode() + b', "schema": 1}',
            text[:-1].encode() + b', "a": NaN}', text[:-1].encode() + b', "provenance": ' + b"[" * 99 + b"]" * 99 + b"}",
            text.encode("utf-16"),
            text[:-1].encode() + b', "\xff": 1}', text[:-1].encode() + b', "a": 1e999}', text.encode() + b" " * 1_000_000,
            json.dumps([data]).encode()]))
    if kind == "add":
        path, entry = draw(st.sampled_from([(path, value) for path, value in found
                                            if isinstance(value, dict) and path != ("provenance",)]))
        name = draw(WORDS)
        assume(name not in {*WRONG, "schedule"})
        entry[name] = draw(st.sampled_from([None, 1, {}, "x"]))
        return json.dumps(data).encode()
    path = draw(st.sampled_from([path for path, _ in found if path and path[-1] in (NEEDED if kind == "remove" else WRONG)]))
    inside = data
    for key in path[:-1]:
        inside = inside[key]
    if kind == "remove":
        del inside[path[-1]]
    else:
        inside[path[-1]] = draw(WRONG[path[-1]])
    return json.dumps(data).encode()


def is_refused_in_a_sentence(content: bytes) -> None:
    with written(content) as path:
        said, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            code = export_policy([str(path), "--to", "data"])
    error = said.getvalue()
    assert code == 2 and out.getvalue() == ""
    assert error.startswith("export_policy.py: error: ") and str(path) in error
    assert error.endswith("\n") and error[:-1].isprintable() and len(error) < 700


@examples
def test_a_broken_file_is_refused_in_one_sentence(examples):
    examples(given(broken())(is_refused_in_a_sentence))()


