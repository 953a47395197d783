"""Many trials: what becomes of the images that processes share, and how a comparison goes on."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dada_det.data.memory import MemoryImages
from dada_det.engine.compare import trials
from dada_det.engine.compare.trial import Recipe
from dada_det.engine.compare.trials import Run, run_trials
from dada_det.engine.runtime.checkpoint import how_to_go_on
from tests.messages import refused

RECIPE = Recipe(model="convnet", classes=2, image_size=16, epochs=1, batch_size=4, lr=0.05, weight_decay=0, mirror=True)
IMAGES = MemoryImages(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 2)
RUNS = [Run("none", seed, None) for seed in range(2)]


def test_a_loss_that_is_no_number_gives_advice_that_the_command_has(tmp_path: Path) -> None:
    with refused("none, seed 0: the loss became NaN", "lower the learning rate", "go on with the same command") as told:
        run_trials(RUNS, IMAGES, IMAGES, replace(RECIPE, lr=1e30, epochs=3), tmp_path, processes=1)
    assert "--resume" not in str(told.value)
    assert how_to_go_on() == "go on with --resume"


def test_a_full_disk_is_told_in_one_sentence_and_nothing_half_written_stays(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def save(value: object, file: object) -> None:
        """As torch.save: an error of the stream, whose context is that of the file."""
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598") from None

    monkeypatch.setattr(trials.torch, "save", save)
    with refused(f"cannot write {tmp_path / '.images.pt'}: No space left on device", "make room", "--work-dir"):
        run_trials(RUNS, IMAGES, IMAGES, RECIPE, tmp_path, processes=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writes", [True, False])
def test_a_folder_that_takes_no_file(writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if writes:
        monkeypatch.setattr(trials.torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("odd\nlines")))
    with refused("cannot write", "odd" if writes else "No such file or directory"):
        run_trials(RUNS, IMAGES, IMAGES, RECIPE, tmp_path if writes else tmp_path / "gone", processes=2)
