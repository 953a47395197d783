"""A planted policy through the commands themselves: --val-data with one operation applied, which must come out on top."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools/bench/planted.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_planted_operation_comes_out_on_top(planted: ModuleType) -> None:
    row = planted.run("default", "Invert", seed=0, epochs=12)
    assert row["rank"] == 1 and row["auc"] > 0.9, row


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["Rotate", "TranslateX", "Solarize"])
def test_geometry_and_lookup_come_out_on_top(operation: str, planted: ModuleType) -> None:
    row = planted.run("default", operation, seed=0, epochs=30)
    assert row["rank"] == 1 and row["auc"] > 0.9, row
