"""Fixtures of the engine's tests."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """nursery.py's Nursery: stages in processes that may be killed."""
    spec = importlib.util.spec_from_file_location("nursery", Path(__file__).with_name("nursery.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nursery"] = module
    spec.loader.exec_module(module)
    nursery = module.Nursery()
    yield nursery
    nursery.close()
