"""Estimates hours, cores and memory of a run on many devices from figures of one; arithmetic only, plain Python.

The model: time is linear in images (and in pixels, if the images of a run grow) and divides evenly by the devices. If decode
is slower than the network, it sets the time. A step is never shorter than what the host needs to give a GPU its work,
which does not shrink with a device's part of the batch. Memory is a fixed part plus a part for each image of a batch.
Communication between devices, validation and the start of a run are left out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30
TRIAL_OVER_STEPS = "the trial over the steps, seconds"  # a figure of tools/bench/gpu.sh


@dataclass(frozen=True)
class Figures:
    """One row of results/plan_*.json: a config's training step as measured on one device.

    Args:
        seconds_per_image: as step_cost.step_seconds takes it, the median over n steps and its 95 % interval.
        fixed_bytes, bytes_per_image: of peak memory, from two batch sizes.
        sample_core_seconds: processor time of one decoded and augmented image, None where it was not measured or nothing is
            decoded in the loop.
        device_bytes: the GPU's memory, or the machine's.
        cores: of the machine.
        threads: cores that the model takes from the loader, 0 on a GPU.
        host_seconds: what the host needs for one step on a GPU, as step_cost.host_seconds takes it.
        image_size: the side of the images in pixels; None of a detector, or in a file from before it was noted.
    """

    config: str
    stage: str
    hardware: str
    model: str
    precision: str
    batch: int
    seconds_per_image: float
    low: float
    high: float
    n: int
    fixed_bytes: float
    bytes_per_image: float
    sample_core_seconds: float | None
    samples: int
    sample_source: str
    device_bytes: int
    cores: int
    threads: int
    host_seconds: float = 0.0
    image_size: int | None = None

    @property
    def on_gpu(self) -> bool:
        return self.threads == 0


@dataclass(frozen=True)
class Demand:
    """What a config asks for: `images` in all passes over the data, counted at the full image size; `batch` of all devices.

    Args:
        per_device: the batch that one device holds at once.
        source: where the number of images is from.
    """

    images: float
    per_device: int
    source: str


def plan(figures: Figures, demand: Demand, gpus: int, nodes: int, cores: int | None = None) -> dict[str, Any]:
    """A row of the table, for `nodes` machines with `gpus` devices and `cores` (default: as measured) each.

    A machine that was measured without a GPU is one device.
    """
    devices = gpus if figures.on_gpu else 1  # of a machine
    cores = figures.cores if cores is None else cores
    spare = cores - figures.threads
    decode, host = figures.sample_core_seconds or 0.0, figures.host_seconds / demand.per_device  # of an image

    def seconds(model: float) -> float:
        """Of an image on one machine, where its model takes `model` on one device."""
        model = max(model, host)
        # Without a core to spare the loader's processes take turns with the model.
        return max(model / devices, decode / spare) if spare > 0 else model / devices + decode / cores

    def hours(model: float) -> float:
        return demand.images * seconds(model) / nodes / 3600

    memory = figures.fixed_bytes + figures.bytes_per_image * demand.per_device
    model = figures.seconds_per_image
    needed = decode / (max(model, host) / devices)  # cores that keep up with the model
    limit = "memory" if memory > figures.device_bytes else "decode" if needed > (spare if spare > 0 else cores) else \
        "host" if host > model else "model"
    return {"config": figures.config, "stage": figures.stage, "hardware": figures.hardware, "devices": devices * nodes,
            "images": demand.images, "images_from": demand.source, "per_device": demand.per_device,
            "images_per_second": nodes / seconds(model), "hours": hours(model), "hours_low": hours(figures.low),
            "hours_high": hours(figures.high),
            "decode_cores": needed if figures.sample_core_seconds is not None else None, "cores": cores,
            "device_ms": 1000 * model * demand.per_device, "host_ms": 1000 * figures.host_seconds,
            "memory_gib": memory / GIB, "memory_of_gib": figures.device_bytes / GIB, "limit": limit}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as text under a head."""
    cells = [("config", "hardware", "devices", "images", "batch", "images/s", "hours", "step ms", "decode cores",
              "memory GiB", "limit")]
    for row in rows:
        decode = "-" if row["decode_cores"] is None else f"{row['decode_cores']:.2f} of {row['cores']}"
        hours = f"{row['hours']:.3g} ({row['hours_low']:.3g}..{row['hours_high']:.3g})"
        step = f"{row['device_ms']:.3g}" + (f" (host {row['host_ms']:.3g})" if row["host_ms"] else "")
        memory = f"{row['memory_gib']:.2f} of {row['memory_of_gib']:.0f}"
        cells.append((row["config"], row["hardware"], str(row["devices"]), f"{row['images']:,.0f}", str(row["per_device"]),
                      f"{row['images_per_second']:.4g}", hours, step, decode, memory, row["limit"]))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) if place < 2 else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in cells]


def as_row(figures: Figures) -> dict[str, Any]:
    """What is written for `figures`; the hardware stands at the head of the file."""
    return {name: value for name, value in asdict(figures).items() if name != "hardware"}
