"""tools/bench/pretrain.py: its rows and its JSON, on a small network; no time decides a test."""

import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dada_det.data.decode import load_part
from tests.conftest import load_bench, write_noise
from tests.messages import assert_error, assert_names

NAMES = {"images_per_second", "low", "high", "ratio", "ratio_low", "ratio_high", "n"}


@pytest.fixture(scope="module")
def decoders() -> ModuleType:
    return load_bench("decoders")


@pytest.fixture(scope="module")
def bench(decoders: ModuleType) -> ModuleType:
    return load_bench("pretrain")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three smooth JPEGs of 240 x 180 px, one in grey, one with EXIF and one PNG."""
    root = tmp_path_factory.mktemp("photographs")
    for index in range(3):
        coarse = np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if index == 1:
            exif[0x0112] = 6
        image.convert("L" if index == 2 else "RGB").save(root / f"{index}.jpg", quality=90, exif=exif)
    Image.new("RGB", (99, 99)).save(root / "3.png")
    return root


@pytest.mark.parametrize("workers", ["0", "1"])
def test_rows_of_a_model_and_their_json(workers: str, bench: ModuleType, tmp_path: Path,
                                        capsys: pytest.CaptureFixture) -> None:
    write_noise(tmp_path / "data" / "train", classes=3, images=4, side=24, spread=60)
    assert bench.main(["--data", str(tmp_path / "data"), "--model", "convnet", "--image-size", "16", "--batch-size", "4",
                       "--workers", workers, "--rounds", "2", "--steps", "2", "--samples", "3", "--json",
                       str(tmp_path / "pretrain.json")]) == 0
    found = json.loads((tmp_path / "pretrain.json").read_text())
    assert set(found) >= {"command", "commit", "hardware", "settings", "versions", "rows"}
    rows = {row["what"]: row for row in found["rows"]}
    assert list(rows) == ["pipeline", "memory", "bare", "samples"]
    for row in rows.values():
        assert row.keys() >= NAMES and row["n"] == 2 and row["model"] == "convnet"
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert rows["bare"]["ratio"] == 1 and rows["samples"]["cores"] > 0
    settings = found["settings"]["convnet"]
    assert (settings["workers"], settings["images"], settings["cores"]) == (int(workers), 12, len(os.sched_getaffinity(0)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(bench.COLUMNS) and [line.split()[1] for line in lines[1:5]] == list(rows)
    assert_names(lines[5], "convnet", "bare model")
    assert lines[6] == f"pretrain  done: 4 rows in {tmp_path}/pretrain.json"


def test_the_verdict_names_what_limits(bench: ModuleType) -> None:
    def rows(pipeline: float, cores: float) -> list[dict[str, object]]:
        common = {"model": "m", "images_per_second": 100.0}
        return [{**common, "what": "pipeline", "ratio": pipeline}, {**common, "what": "bare", "ratio": 1.0},
                {**common, "what": "samples", "ratio": 1 / cores, "cores": cores}]

    settings = {"workers": 4, "cores": 8}
    fast = bench.verdict(rows(0.97, 2), settings)
    assert_names(fast, "m: ", "97.0%", "100 images/s", "2.00")
    assert "limits" not in fast
    assert_names(bench.verdict(rows(0.5, 6), settings), "m: ", "50.0%", "decode limits", "100 images/s", "6.00",
                 "4 loader processes", "8 cores")
    assert_names(bench.verdict(rows(0.9, 1), settings), "4 processes", "8 cores")


def test_a_dataset_smaller_than_a_round_is_gone_through_again(bench: ModuleType, tmp_path: Path) -> None:
    from dada_det.data.folders import scan_folder

    images = scan_folder(write_noise(tmp_path, classes=2, images=2, side=8, spread=9))
    chosen = bench.drawn(images, 10)
    assert len(chosen) == 10 and {chosen.files.count(name) for name in images.files} == {2, 3}


def test_decoders_give_the_crop_that_the_pipeline_gives(decoders: ModuleType, photographs: Path) -> None:
    sources = decoders.read_jpegs(photographs, 9)
    assert len(sources) == 2  # neither the one with EXIF nor the PNG
    for size, within in ((64, 1), (24, 12)):  # of whole images; at a scale that each library computes its own way
        for data in sources:
            expected = np.asarray(load_part(data, size, lambda width, height: (11, 7, 131, 111)), np.int64)
            for decode in decoders.all_decoders().values():
                found = np.asarray(decode(data, size, lambda width, height: (11, 7, 131, 111)), np.int64)
                assert found.shape == (size, size, 3) and np.abs(found - expected).max() <= within


def test_decoders_are_measured_side_by_side(bench: ModuleType, photographs: Path, tmp_path: Path,
                                            capsys: pytest.CaptureFixture) -> None:
    arguments = ["--decode", "--data", str(photographs), "--image-size", "32", "--rounds", "2"]
    assert bench.main([*arguments, "--json", str(tmp_path / "decode.json")]) == 0
    found = json.loads((tmp_path / "decode.json").read_text())
    assert [row["what"] for row in found["rows"]][:5] == ["pillow", "pillow_scaled", "torchvision", "opencv",
                                                          "opencv_scaled"]
    assert all(row.keys() >= NAMES and row["images_per_second"] > 0 for row in found["rows"])
    assert (found["settings"]["images"], found["settings"]["width"], found["settings"]["height"]) == (2, 240, 180)
    assert "pillow" in found["settings"]["packages"]


def test_mistakes_are_told_in_one_sentence(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert bench.main(["--data", str(tmp_path / "nowhere")]) == 2
    assert_error(capsys.readouterr().err, "pretrain.py", tmp_path / "nowhere", "train/", "--data")
    assert bench.main(["--data", str(tmp_path), "--decode"]) == 2
    assert_names(capsys.readouterr().err, tmp_path, "*.jpg, *.jpeg", "--data")
