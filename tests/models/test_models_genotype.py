"""genotype.json: what is written is what is read, every mistake gets one sentence, and DARTS's discretisation."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dada_det.errors import UserError
from dada_det.models.genotype import OPERATIONS, Edge, Genotype, discretise
from tests.messages import refused

GOOD = {"schema": 1, "normal": [[{"operation": "sep_conv_3x3", "input": 0}, {"operation": "skip_connect", "input": 1}],
                                [{"operation": "max_pool_3x3", "input": 2}, {"operation": "dil_conv_5x5", "input": 0}]],
        "reduction": [[{"operation": "avg_pool_3x3", "input": 1}, {"operation": "sep_conv_5x5", "input": 0}],
                      [{"operation": "skip_connect", "input": 0}, {"operation": "skip_connect", "input": 1}]],
        "provenance": {"seed": 3}}


def changed(change: Callable[[dict], object]) -> dict:
    data = copy.deepcopy(GOOD)
    change(data)
    return data


def test_round_trip_through_a_file_and_through_one_line(tmp_path: Path) -> None:
    genotype = Genotype.from_dict(GOOD)
    assert genotype.normal[1] == (Edge("max_pool_3x3", 2), Edge("dil_conv_5x5", 0))
    genotype.save(tmp_path / "genotype.json")
    assert json.loads((tmp_path / "genotype.json").read_text()) == GOOD
    assert Genotype.load(tmp_path / "genotype.json") == genotype
    again = Genotype.from_text(str(genotype))
    assert (again.normal, again.reduction) == (genotype.normal, genotype.reduction) and " " not in str(genotype)


def edge(data: dict) -> dict:
    return data["normal"][1][0]


MISTAKES: dict[str, tuple[Callable[[dict], object], str]] = {
    "schema": (lambda data: data.update(schema=2), "the schema is 2; this version reads schema 1"),
    "true schema": (lambda data: data.update(schema=True), "the schema is True"),
    "no cell": (lambda data: data.pop("normal"), "normal is missing"),
    "unknown key": (lambda data: data.update(concat=[2, 3]), "'concat' is no known key"),
    "provenance": (lambda data: data.update(provenance=[]), "provenance must be a JSON object"),
    "cell": (lambda data: data.update(normal="conv"), "normal must be a list of 1 to 16 nodes"),
    "empty cell": (lambda data: data.update(normal=[]), "normal must be a list of 1 to 16 nodes"),
    "large cell": (lambda data: data.update(normal=[0] * 100_000), "normal must be a list of 1 to 16 nodes"),
    "node": (lambda data: data["reduction"].__setitem__(0, {}), r"reduction\[0\] must be a list of two edges"),
    "three edges": (lambda data: data["normal"][0].append(edge(data)), r"normal\[0\] must be a list of two edges"),
    "edge": (lambda data: data["normal"][0].__setitem__(1, 7), r"normal\[0\]\[1\]: a JSON object with operation, input"),
    "none": (lambda data: edge(data).update(operation="none"), r"normal\[1\]\[0\]: 'none' is no operation of a cell"),
    "unknown operation": (lambda data: edge(data).update(operation="conv\n"), r"'conv\\n' is no operation of a cell"),
    "operation": (lambda data: edge(data).update(operation=[1] * 9999), r"\[1, 1, .*\] is no operation of a cell"),
    "input": (lambda data: edge(data).update(input="0"), "the input is '0'; it must be a whole number"),
    "true input": (lambda data: edge(data).update(input=True), "the input is True; it must be a whole number"),
    "later input": (lambda data: edge(data).update(input=3), r"normal\[1\]: a node has two edges from two different inputs "
                    r"of 0 to 2, not from \[3, 0\]"),
    "negative input": (lambda data: edge(data).update(input=-1), r"of 0 to 2, not from \[-1, 0\]"),
    "huge input": (lambda data: edge(data).update(input=10**300), "not from .a whole number of more than 300 digi"),
    "one input twice": (lambda data: edge(data).update(input=0), r"two different inputs of 0 to 2, not from \[0, 0\]"),
    "unequal cells": (lambda data: data["normal"].pop(), "the cells have 1 and 2 nodes; give both the same"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_short_sentence(name: str, tmp_path: Path) -> None:
    change, message = MISTAKES[name]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(UserError, match=f"mine.json: .*{message}") as caught:
        Genotype.load(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize(("content", "message"), [
    (b"[" * 2_000_000, "is larger than 1 MB; give a genotype.json of a search"),
    (b'{"a":' * 190_000, "nested deeper than 20 levels"), (b'{"schema": 1, "schema": 1}', "stands twice in one object"),
    (b'{"schema": NaN}', "NaN is no number"), (b"\xff\xfe{", "is no JSON that can be read"),
    (b"Genotype(normal=[])", "is no JSON that can be read"), (b"[]", "a JSON object with schema, normal, reduction")])
def test_hostile_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"mine.json.*{message}"):
        Genotype.load(path)
    with refused(tmp_path / "none.json", "No such file"):
        Genotype.load(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "skip_connect:0", "a|b", "skip_connect:0,skip_connect:x|skip_connect:0", "a|b|c"])
def test_a_line_that_is_no_genotype(text: str) -> None:
    with pytest.raises(UserError, match="is no genotype in one line"):
        Genotype.from_text(text)


def test_discretisation_keeps_the_two_strongest_edges_of_a_node_and_never_none() -> None:
    """Two nodes: edges 0 and 1 of the first, then 0, 1 and 2 of the second."""
    none, pool, skip = (OPERATIONS.index(name) for name in ("none", "max_pool_3x3", "skip_connect"))
    strengths = torch.full((2, 5, 8), 0.05)
    strengths[0, 0, none], strengths[0, 0, pool] = 0.9, 0.06  # nearly off, and kept: a first node has no other edge
    strengths[0, 1, skip] = 0.5
    strengths[0, 2:, none] = 0.4
    strengths[0, 2, skip], strengths[0, 3, pool], strengths[0, 4, pool] = 0.2, 0.1, 0.3
    genotype = discretise(strengths, OPERATIONS, {"seed": 1})
    assert genotype.normal == ((Edge("max_pool_3x3", 0), Edge("skip_connect", 1)),
                               (Edge("skip_connect", 0), Edge("max_pool_3x3", 2)))
    first = Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1)  # ties go to what comes first
    assert genotype.reduction == (first, first) and genotype.provenance == {"seed": 1}
