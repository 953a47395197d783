"""Equal searches give equal files, and so does a search that SIGKILL has ended at any moment, however often, and --resume.

The everyday searches are killed at chosen moments (nursery.py); the slow ones are the command of the README, killed from
outside at random moments.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict
from PIL import Image
from torch import nn

from dada_det.augment.space import SearchSpace
from dada_det.data.memory import MemoryImages
from dada_det.engine.runtime.checkpoint import find_checkpoint, load_checkpoint
from dada_det.engine.search.loop import SearchBatches, validates
from dada_det.engine.search.run import optimizers
from dada_det.engine.search.searcher import Searcher
from dada_det.search.dada import Dada
from dada_det.search.settings import dada_settings

ROOT = Path(__file__).resolve().parents[3]
KILLED = -signal.SIGKILL
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
MODES = {"default": [], "paper": ["search.mode=paper"]}


def flags(data: Path, work_dir: Path, epochs: int, *options: str, size: int = 16) -> list[str]:
    """A search of three steps an epoch, which goes on from a checkpoint where there is one."""
    return ["--config", "configs/debug/search.py", "--data", str(data), "--work-dir", str(work_dir), "--resume",
            "--no-trial", "--image-size", str(size), "--batch-size", "4", "--epochs", str(epochs),
            *(["--cfg-options", *options] if options else [])]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class>/*.png: three classes of eight images, noise around a colour each."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for label in range(3):
        folder = root / "train" / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(8):
            pixels = generator.normal(60 + 70 * label, 40, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def whole(nursery: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each mode the folder of a search of five epochs that nobody killed."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    for mode, folder in folders.items():
        assert nursery.run("search", flags(data, folder, 5, *MODES[mode]), folder / "log") == 0, (folder / "log").read_text()
    return folders


def assert_same(found: Path, wanted: Path, epochs: int = 5) -> None:
    """policy.json and search.json byte for byte, and every tensor of the last checkpoint, the network's among them."""
    for name in ("policy.json", "search.json"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    states = [load_checkpoint(folder / f"epoch_{epochs}.pth")["state_dict"] for folder in (found, wanted)]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_files(mode: str, whole: dict[str, Path], nursery: Any, data: Path,
                                            tmp_path: Path) -> None:
    assert nursery.run("search", flags(data, tmp_path, 5, *MODES[mode]), tmp_path / "log") == 0
    assert_same(tmp_path, whole[mode])


# (moment, what is called or written, how manieth time in that process) -> the checkpoint that the kill leaves.
MOMENTS: list[tuple[tuple[str, str, int], str | None]] = [
    (("during", "step", 2), None),  # before the first checkpoint
    (("after", "policy.json", 1), None),
    (("during", "epoch_1.pth", 1), None),  # half of it is written
    (("before", "epoch_1.pth", 1), None),  # all of it, and the name is still the temporary one
    (("after", "epoch_1.pth", 1), "epoch_1.pth"),
    (("during", "step", 2), "epoch_1.pth"),  # in the middle of the second epoch
    (("before", "search.json", 1), "epoch_1.pth"),
    (("before", "last_checkpoint", 1), "epoch_2.pth"),
    (("after", "last_checkpoint", 1), "epoch_3.pth"),
    (("before", "last_checkpoint", 1), "epoch_3.pth"),  # epoch_4.pth is whole, and it still names the one before
    (("during", "epoch_4.pth", 1), "epoch_3.pth"),
    (("during", "step", 5), "epoch_4.pth"),  # in the middle of the fifth epoch
    (("after", "last_checkpoint", 1), "epoch_5.pth"),  # all is done but the closing line
]
FEW = [MOMENTS[index] for index in (0, 2, 4)]


@pytest.mark.parametrize(("mode", "moments"), [("default", MOMENTS), ("paper", FEW)])
def test_kills_at_chosen_moments(mode: str, moments: list, whole: dict[str, Path], nursery: Any, data: Path,
                                 tmp_path: Path) -> None:
    """One search, killed and resumed again and again; the half-written files it leaves are never taken for checkpoints."""
    argv = flags(data, tmp_path, 5, *MODES[mode])
    for moment, checkpoint in moments:
        assert nursery.run("search", argv, tmp_path / "log", moment) == KILLED, (moment, (tmp_path / "log").read_text())
        found = find_checkpoint(tmp_path)
        assert (found.name if found else None) == checkpoint, moment
        if moment[0] in ("before", "during") and moment[1].startswith("epoch"):
            assert any(moment[1] in path.name for path in tmp_path.glob(".*.tmp")), "nothing was half written"
    assert nursery.run("search", argv, tmp_path / "log") == 0
    assert_same(tmp_path, whole[mode])


def test_leftovers_do_no_harm(whole: dict[str, Path], nursery: Any, data: Path, tmp_path: Path) -> None:
    """Whole and broken files under temporary names and a truncated checkpoint, all newer than the good one."""
    checkpoint = whole["default"] / "epoch_4.pth"
    shutil.copy(checkpoint, tmp_path)
    shutil.copy(whole["default"] / "epoch_5.pth", tmp_path / ".epoch_5.pth.1.tmp")
    (tmp_path / "epoch_5.pth").write_bytes(checkpoint.read_bytes()[:-1000])
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_5.pth"))
    (tmp_path / ".policy.json.1.tmp").write_text("{")
    assert nursery.run("search", flags(data, tmp_path, 5), tmp_path / "log") == 0
    assert_same(tmp_path, whole["default"])


def test_a_network_that_draws_random_numbers(nursery: Any, data: Path, tmp_path: Path) -> None:
    """timm's GhostNet has dropout; mmengine saves no random state, so it must follow from the seed and the step alone."""
    network = "classifier.name=ghostnet_050"
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder, moments in zip(folders, ([], [("during", "step", 5)]), strict=True):
        folder.mkdir()
        for moment in moments:
            argv = flags(data, folder, 2, network, size=32)
            assert nursery.run("search", argv, folder / "log", moment) == KILLED
        argv = flags(data, folder, 2, network, size=32)
        assert nursery.run("search", argv, folder / "log") == 0, (folder / "log").read_text()
    assert_same(folders[1], folders[0], epochs=2)


def tiny_search(mode: str, *layers: nn.Module, **changes: Any) -> tuple[Searcher, SearchBatches, OptimWrapperDict]:
    """A searcher of a linear network behind `layers`, two steps an epoch."""
    images = MemoryImages(torch.randint(1, 256, (16, 3, 16, 16), dtype=torch.uint8), torch.arange(16) % 2)
    settings = dada_settings(mode, **changes)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    searcher = Searcher(network, Dada(SearchSpace(("Invert", "Solarize", "Brightness"), settings.ranges), settings),
                        [-1.0] * 3, [1.0] * 3)  # no input is 0, so a 0 was dropped
    batches = SearchBatches(images, images, image_size=16, padding=0, mirror=False, batch_size=8,
                            algorithm=searcher.algorithm, seed=0)
    return searcher, batches, optimizers(searcher, Config(dict(
        batch_size=8, base_batch_size=8, clip_grad=5.0, weights_optimizer=dict(lr=0.1), policy_optimizer=dict(lr=0.05))))


def test_every_pass_of_a_step_drops_the_same() -> None:
    """A finite difference between two passes that drop different units would be that of two networks; passes of one size
    see the same network. The default's rewards are in eval mode, where nothing is dropped."""
    dropout, kept = nn.Dropout(0.5), []
    dropout.register_forward_hook(lambda module, inputs, output: kept.append(output != 0) if module.training else None)
    searcher, batches, wrappers = tiny_search("paper", dropout)
    firsts = []
    for index in range(2):
        kept.clear()
        searcher.search_step(batches.batch(5, index), wrappers, epoch=5)
        firsts.append(kept[0])
        sizes = [len(mask) for mask in kept]
        assert sizes[-2] == sizes[-1] == 8 * searcher.algorithm.settings.draws_per_image and len(kept) >= 3
        assert all(torch.equal(mask, kept[sizes.index(size)]) for mask, size in zip(kept, sizes, strict=True))
    assert not torch.equal(*firsts)


def test_the_validation_passes_take_turns_with_the_statistics() -> None:
    """Every second step validates, by the batch's statistics and by the running ones (in eval mode), whichever epoch the
    steps are of, before the training pass; all rewards are by the running ones."""
    norm, modes = nn.BatchNorm2d(3), []
    norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    searcher, batches, wrappers = tiny_search("default", norm)
    for step in range(4):
        modes.clear()
        searcher.search_step(batches.batch(3 + step // 2, step % 2), wrappers, epoch=3)
        assert modes == [*[[True], [], [False], []][(6 + step) % 4], True, False, False]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_validation_batches_walk_through_all_images_however_seldom_they_are_used(every: int) -> None:
    _, batches, _ = tiny_search("default", val_every=every)
    for walk in range(2):
        first, second = (batches.own_val(every * (2 * walk + used)) for used in range(2))
        assert sorted(torch.cat([first, second]).tolist()) == list(range(16))
        for between in range(every):
            assert torch.equal(batches.own_val(every * (2 * walk + 1) + between), second)


@pytest.mark.parametrize(("warmup", "steps", "every", "first"), [
    (1, 11, 2, [11, 13, 15]), (1, 12, 2, [12, 14, 16]), (0, 5, 3, [0, 3, 6]), (2, 2, 1, [4, 5, 6])])
def test_the_first_step_that_learns_has_a_validation_pass(warmup: int, steps: int, every: int, first: list[int]) -> None:
    settings = dada_settings(warmup_epochs=warmup, val_every=every)
    learning = range(warmup * steps, warmup * steps + 2 * every + 1)
    assert [step for step in learning if validates(settings, step, steps)] == first


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_kills_at_random_moments(mode: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The README's command in processes of its own; after each start it lives up to two seconds of searching."""
    chance = random.Random(f"{mode} 0")
    epochs, kills, reached = 60, 12, []
    argv = ["bash", "tools/search_imagenet.sh", *flags(data, tmp_path / "killed", epochs, *MODES[mode])]
    for _ in range(kills):
        with subprocess.Popen(argv, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE) as search:
            assert search.stdout is not None
            while "epoch" not in (line := search.stdout.readline()):
                assert line, "the search ended before its first step"
            time.sleep(chance.uniform(0, 2) if len(reached) % 3 else 0)
            search.kill()
            if search.wait() == KILLED:
                reached.append(find_checkpoint(tmp_path / "killed"))
    assert len(reached) >= kills // 2, "most searches ended before the kill: nothing was tested"
    argv = ["bash", "tools/search_imagenet.sh", *flags(data, tmp_path / "killed", epochs, *MODES[mode])]
    assert subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    argv = ["bash", "tools/search_imagenet.sh", *flags(data, tmp_path / "whole", epochs, *MODES[mode])]
    assert subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    assert_same(tmp_path / "killed", tmp_path / "whole", epochs)
    with capsys.disabled():
        left = ", ".join(path.stem if path else "nothing" for path in reached)
        print(f"\n{mode}: {len(reached)} of {kills} searches killed while they ran; they left {left}")
