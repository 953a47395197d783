"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (DADA_DET_SHARED, default ../shared); tests that need it skip by name without it."""
    folder = Path(os.environ.get("DADA_DET_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the real data of DADA_DET_SHARED is not at {folder}")
    return folder
