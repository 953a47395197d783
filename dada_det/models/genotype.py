"""A genotype: which two operations each node of DARTS's two cells has, and its JSON file.

A cell has two inputs, 0 and 1 (the outputs of the cell before last and of the last one), and nodes 2, 3, ..; each node is
the sum of two operations on earlier ones, and the cell's output all its nodes side by side (Liu et al., ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dada_det.errors import UserError
from dada_det.files import write_json
from dada_det.untrusted import check_keys, placed, read_untrusted, short

SCHEMA = 1
MOST_NODES = 16
NONE = "none"  # a candidate of the search that no genotype holds
OPERATIONS = (NONE, "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
              "dil_conv_5x5")  # DARTS's eight


@dataclass(frozen=True)
class Edge:
    """One operation of a node and what it is applied to: 0 and 1 are the cell's inputs, 2 its first node."""

    operation: str
    input: int

    def __post_init__(self) -> None:
        choices = [name for name in OPERATIONS if name != NONE]
        if not isinstance(self.operation, str) or self.operation not in choices:
            raise UserError(f"{short(self.operation)} is no operation of a cell; choose among {', '.join(choices)}")
        if not isinstance(self.input, int) or isinstance(self.input, bool):
            raise UserError(f"the input is {short(self.input)}; it must be a whole number")


Node = tuple[Edge, Edge]
Cell = tuple[Node, ...]


@dataclass(frozen=True)
class Genotype:
    """The normal cell and the reduction cell, 1 to 16 nodes each, as many in both; UserError where they are none.

    Args:
        provenance: JSON values that say where the genotype comes from; no time, path or host.
    """

    normal: Cell
    reduction: Cell
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("normal", "reduction"):
            cell = tuple(tuple(node) for node in getattr(self, name))
            object.__setattr__(self, name, cell)
            if not 1 <= len(cell) <= MOST_NODES:
                raise UserError(f"{name}: a cell has 1 to {MOST_NODES} nodes, not {len(cell)}")
            for number, node in enumerate(cell):
                inputs = [edge.input for edge in node]
                if len(inputs) != 2 or inputs[0] == inputs[1] or not all(0 <= index < 2 + number for index in inputs):
                    raise UserError(f"{name}[{number}]: a node has two edges from two different inputs of 0 to "
                                    f"{1 + number}, not from {short(inputs)}")
        if len(self.normal) != len(self.reduction):
            raise UserError(f"the cells have {len(self.normal)} and {len(self.reduction)} nodes; give both the same")

    def to_dict(self) -> dict[str, Any]:
        """The genotype as plain JSON values."""
        cells = {name: [[{"operation": edge.operation, "input": edge.input} for edge in node] for node in cell]
                 for name, cell in (("normal", self.normal), ("reduction", self.reduction))}
        return {"schema": SCHEMA, **cells, "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Any, source: str = "genotype") -> Genotype:
        """The genotype in plain JSON values.

        Raises:
            UserError: the sentence names `source` and the entry that is wrong.
        """
        check_keys(data, source, ("schema", "normal", "reduction"), ("provenance",))
        if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
            raise UserError(f"{source}: the schema is {short(data['schema'])}; this version reads schema {SCHEMA}")
        if not isinstance(data.get("provenance", {}), dict):
            raise UserError(f"{source}: provenance must be a JSON object")
        cells = {name: _read_cell(data[name], f"{source}: {name}") for name in ("normal", "reduction")}
        return placed(source, cls, **cells, provenance=data.get("provenance", {}))

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Reads genotype.json: a regular file, at most 1 MB of UTF-8; UserError in one short, printable sentence."""
        data, source = read_untrusted(path, "genotype", "give a genotype.json of a search")
        return cls.from_dict(data, source)

    def save(self, path: str | Path) -> None:
        """Writes genotype.json whole or not at all."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        """One line without spaces, from which `from_text` makes the same cells again."""
        return "|".join("/".join(",".join(f"{edge.operation}:{edge.input}" for edge in node) for node in cell)
                        for cell in (self.normal, self.reduction))

    @classmethod
    def from_text(cls, text: str) -> Genotype:
        """The genotype that `str` gave.

        Raises:
            UserError: `text` is no genotype.
        """
        try:
            normal, reduction = ([[Edge(name, int(index)) for name, index in (edge.split(":") for edge in node.split(","))]
                                  for node in cell.split("/")] for cell in text.split("|"))
        except ValueError as error:
            raise UserError(f"{short(text)} is no genotype in one line ({short(str(error))})") from error
        return cls(normal, reduction)  # type: ignore[arg-type] # lists, which __post_init__ makes tuples of


def discretise(strengths_2EO: Tensor, operations: Sequence[str], provenance: dict[str, Any] | None = None) -> Genotype:
    """DARTS's rule: of each node the two edges whose strongest operation is strongest, each with that operation.

    Args:
        strengths_2EO: probabilities of the operations (O) on the edges (E) of the normal and the reduction cell, edges by
            node, those of the first node first; `none` is left out. Ties go to the earlier edge and operation.
    """
    allowed = [index for index, name in enumerate(operations) if name != NONE]
    cells = []
    for rows_EO in strengths_2EO[..., allowed].tolist():
        best = [max((strength, -place) for place, strength in enumerate(row_O)) for row_O in rows_EO]
        nodes: list[list[Edge]] = []
        first = 0
        while first < len(best):
            inputs = range(2 + len(nodes))
            kept = sorted(sorted(inputs, key=lambda index: -best[first + index][0])[:2])
            nodes.append([Edge(operations[allowed[-best[first + index][1]]], index) for index in kept])
            first += len(inputs)
        cells.append(nodes)
    return Genotype(cells[0], cells[1], provenance or {})  # type: ignore[arg-type] # lists, as in `from_text`


def _read_cell(entry: Any, place: str) -> list[list[Edge]]:
    if not isinstance(entry, list) or not 1 <= len(entry) <= MOST_NODES:
        raise UserError(f"{place} must be a list of 1 to {MOST_NODES} nodes")
    return [_read_node(node, f"{place}[{number}]") for number, node in enumerate(entry)]


def _read_node(entry: Any, place: str) -> list[Edge]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise UserError(f"{place} must be a list of two edges")
    edges = []
    for number, edge in enumerate(entry):
        check_keys(edge, f"{place}[{number}]", ("operation", "input"))
        edges.append(placed(f"{place}[{number}]", Edge, **edge))
    return edges
