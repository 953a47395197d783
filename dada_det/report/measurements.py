"""Files of measurements: the rows, and the hardware and versions that they were taken with."""

import contextlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dada_det import __version__
from dada_det.files import write_json

Rows = list[dict[str, Any]]


def hardware() -> str:
    """The GPU's name, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def write_rows(path: Path | str, rows: Rows, settings: dict[str, Any] | None = None) -> None:
    """{"hardware", "versions", "rows"} as JSON, and "settings": what the rows were measured with."""
    write_json(path, {"hardware": hardware(), "rows": rows, **({"settings": settings} if settings else {}),
                      "versions": {"torch": version("torch"), "timm": version("timm"), "dada_det": __version__}})
