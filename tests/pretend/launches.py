"""Counts what a step of the default search, its batch included, asks of a GPU: ResNet-50, 224 px, batch 128, bfloat16.

    PRETEND_HOLLOW=1 ../shared/gpu/pretend/run command.py tests/pretend/launches.py FILE

The pretended GPU's kernels do nothing then, and all that torch asks of it is counted. FILE gets a JSON of two steps, one
without a validation pass and one with: launches (kernels and cuBLAS calls; convolutions are counted apart), those of the
augmentation, syncs (the host waits for the device), copies to it and those from memory that is not pinned, milliseconds of
the host. docs/scale.md holds them.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hollow  # the pretended GPU's
import search_step  # tools/bench
import torch

from dada_det.search import step

WARM_UP = 4  # steps


def launches() -> int:
    found = hollow.snapshot()
    return found["launch"] + found["blas"]


def counted(case: Any, number: int) -> dict[str, Any]:
    """One step's counts."""
    augmentation, apply_draws = 0, step.apply_draws

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal augmentation
        before = launches()
        images = apply_draws(*arguments)
        augmentation += launches() - before
        return images

    hollow.reset()
    began = time.process_time()
    batch = case.batches.batch(*divmod(number, len(case.batches)))
    with patch.object(step, "apply_draws", watched):
        case.searcher.search_step(batch, case.wrappers, epoch=search_step.AFTER_WARM_UP)
    took, found = time.process_time() - began, hollow.snapshot()
    return {"validates": batch.validates, "launches": launches(), "augmentation": augmentation,
            "convolutions": sum(hollow.conv_calls.values()),
            "channels_last": all(last for (*_, last), _ in hollow.conv_calls.items()),
            "syncs": sum(found[name] for name in ("streamsync", "eventsync", "devsync")), "copies": found["h2d"],
            "not_pinned": found["pageable_h2d"], "host_ms": round(1000 * took, 1)}


def main(argv: Sequence[str]) -> int:
    case = search_step.build("resnet50", "default", [], torch.device("cuda"))
    for number in range(WARM_UP):
        counted(case, number)
    rows = [counted(case, number) for number in (WARM_UP, WARM_UP + 1)]
    Path(argv[0]).write_text(json.dumps(sorted(rows, key=lambda row: row["validates"])))
    for row in rows:
        print(row)
    hollow.kernels(40)
    return 0
