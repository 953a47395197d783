"""Run on the pretended GPU: every operation beside Pillow, on both tables of ranges; the rows go to a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path

import parity  # tools/bench
import torch


def main(argv: Sequence[str]) -> int:
    pictures = [parity.pictures(*size, torch.Generator().manual_seed(0)) for size in ((9, 7), (17, 12))]
    rows = [row for name in parity.OPERATION_NAMES for row in parity.compare(name, pictures, torch.device("cuda"))
            if row["path"] == "batch"]
    Path(argv[0]).write_text(json.dumps(rows))
    return 0
