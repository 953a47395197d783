"""The plan's arithmetic by hand: hours, cores, memory and the limit, on GPUs and on a machine without one."""

import math
from dataclasses import replace

import pytest

from dada_det.report.plan import GIB, Demand, Figures, plan, table

# A GPU that takes 1 ms an image, 20 GiB and 0.1 GiB an image; a sample takes 8 ms of a core.
FIGURES = Figures("pretrain_r50", "pretraining", "a GPU", "resnet50", "bfloat16", 64, 1e-3, 0.9e-3, 1.2e-3, 12, 4 * GIB,
                  0.1 * GIB, 8e-3, 100, "100 images", 40 * GIB, 16, 0)
DEMAND = Demand(3.6e6, 128, "ImageNet")


def test_the_model_limits_where_the_cores_suffice() -> None:
    row = plan(FIGURES, DEMAND, gpus=1, nodes=1)
    assert (row["limit"], row["devices"], row["decode_cores"]) == ("model", 1, pytest.approx(8))
    assert row["hours"] == pytest.approx(1) and row["images_per_second"] == pytest.approx(1000)
    assert (row["hours_low"], row["hours_high"]) == (pytest.approx(0.9), pytest.approx(1.2))
    assert row["memory_gib"] == pytest.approx(4 + 12.8)


def test_decode_limits_eight_gpus_on_sixteen_cores() -> None:
    row = plan(FIGURES, DEMAND, gpus=8, nodes=1)
    assert (row["limit"], row["decode_cores"]) == ("decode", pytest.approx(64))
    assert row["images_per_second"] == pytest.approx(16 / 8e-3)  # what the cores decode
    assert row["hours"] == row["hours_low"] == row["hours_high"] == pytest.approx(3.6e6 / 2000 / 3600)
    enough = plan(FIGURES, DEMAND, gpus=8, nodes=2, cores=64)
    assert (enough["limit"], enough["devices"]) == ("model", 16) and enough["hours"] == pytest.approx(1 / 16)


def test_on_eight_gpus_a_step_is_never_shorter_than_the_host_needs_for_it() -> None:
    """128 images on one device take 128 ms and the host 40; on eight 16 ms, and the host 40 all the same."""
    figures = replace(FIGURES, sample_core_seconds=None, host_seconds=0.04)
    one, eight = plan(figures, DEMAND, 1, 1), plan(figures, replace(DEMAND, per_device=16), 8, 1)
    assert (one["limit"], one["hours"]) == ("model", pytest.approx(1))
    assert (eight["limit"], eight["device_ms"], eight["host_ms"]) == ("host", pytest.approx(16), pytest.approx(40))
    assert eight["hours"] == pytest.approx(1 / 8 * 40 / 16) and "16 (host 40)" in table([eight])[1]


def test_memory_limits_before_anything_else() -> None:
    row = plan(FIGURES, replace(DEMAND, per_device=400), gpus=8, nodes=1)
    assert (row["limit"], row["memory_gib"]) == ("memory", pytest.approx(44))


def test_without_decode_there_are_no_decode_cores() -> None:
    row = plan(replace(FIGURES, sample_core_seconds=None), DEMAND, gpus=8, nodes=1)
    assert (row["limit"], row["decode_cores"]) == ("model", None)
    assert row["hours"] == pytest.approx(1 / 8)


def test_a_machine_without_a_gpu_is_one_device_and_keeps_the_models_threads() -> None:
    cpu = replace(FIGURES, seconds_per_image=0.1, low=0.1, high=0.1, cores=4, threads=3)
    row = plan(cpu, DEMAND, gpus=8, nodes=2)
    assert (row["devices"], row["decode_cores"], row["limit"]) == (2, pytest.approx(0.08), "model")
    assert row["hours"] == pytest.approx(3.6e6 * 0.1 / 2 / 3600)
    shared = plan(replace(cpu, threads=4), DEMAND, gpus=1, nodes=1)  # no core to spare: they take turns
    assert shared["hours"] == pytest.approx(3.6e6 * (0.1 + 8e-3 / 4) / 3600) and shared["limit"] == "model"
    slow = plan(replace(cpu, threads=4, sample_core_seconds=1.0), DEMAND, gpus=1, nodes=1)
    assert slow["limit"] == "decode" and slow["hours"] == pytest.approx(3.6e6 * 0.35 / 3600)


def test_a_table_has_a_line_for_each_row() -> None:
    rows = [plan(FIGURES, DEMAND, 1, 1), plan(replace(FIGURES, sample_core_seconds=None), DEMAND, 8, 1)]
    head, first, second = table(rows)
    assert head.split() == ["config", "hardware", "devices", "images", "batch", "images/s", "hours", "step", "ms", "decode",
                            "cores", "memory", "GiB", "limit"]
    assert first.split() == ["pretrain_r50", "a", "GPU", "1", "3,600,000", "128", "1000", "1", "(0.9..1.2)", "128", "8.00",
                             "of", "16", "16.80", "of", "40", "model"]
    assert second.split()[-5] == "-" and len({len(line) for line in (head, first, second)}) == 1
    assert math.isfinite(rows[1]["hours"])
