"""Two processes that talk over gloo take the same search steps as one that sees the same images and draws (float64)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from torch import Tensor, nn

from dada_det.augment.space import AtomSpace, SearchSpace
from dada_det.data.memory import MemoryImages
from dada_det.engine.search.loop import SearchBatches
from dada_det.engine.search.run import optimizers
from dada_det.engine.search.searcher import Searcher
from dada_det.search.dada import Dada
from dada_det.search.ddas import Ddas, ddas_settings
from dada_det.search.settings import dada_settings
from dada_det.search.step import Algorithm

STEPS = 4
MODES = ("default", "ddas", "paper")


def algorithm_for(mode: str) -> Algorithm:
    operations = ("ShearX", "Invert", "Solarize", "Brightness", "Cutout")
    if mode == "ddas":
        ddas = ddas_settings(val_batches=1, probability_lr=0.05)
        return Ddas(AtomSpace.of_levels(operations, ddas.levels), ddas, epochs=1)
    settings = dada_settings(mode) if mode == "paper" else dada_settings(mode, warmup_epochs=0)
    return Dada(SearchSpace(operations, settings.ranges), settings)


def search_steps(mode: str) -> dict[str, Tensor]:
    """The state after four steps on random images, a small net without BatchNorm, and Adam's large steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    halves = [MemoryImages(torch.randint(0, 256, (24, 3, 18, 18), generator=generator, dtype=torch.uint8),
                           torch.randint(0, 4, (24,), generator=generator)) for _ in range(2)]
    network = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 7, 4))
    algorithm = algorithm_for(mode)
    searcher = Searcher(network, algorithm, [125.0] * 3, [60.0] * 3).double()
    batches = SearchBatches(*halves, image_size=16, padding=0, mirror=True, batch_size=8,
                            algorithm=algorithm, seed=3)
    wrappers = optimizers(searcher, Config(dict(
        batch_size=8, base_batch_size=8, clip_grad=5.0, weights_optimizer=dict(lr=0.1, momentum=0.9),
        policy_optimizer=dict(lr=0.05, betas=(0.5, 0.999)))))
    for step in range(STEPS):
        searcher.search_step(batches.batch(0, step % len(batches)), wrappers, epoch=0)
    return searcher.state_dict()


@pytest.mark.parametrize(("fraction", "n", "size"), [(0.75, 6, 2), (0.75, 2, 2), (0.75, 2, 1), (0.5, 8, 1), (1.0, 3, 2),
                                                  (0.0, 4, 2), (0.75, 25, 2), (0.9, 2, 3)])
def test_the_processes_share_the_images_that_train_unaugmented(fraction: float, n: int, size: int,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """As one process has them, and never all of a batch where a part of it has its policies."""
    algorithm = Dada(SearchSpace(("Invert", "Solarize")), dada_settings(unaugmented=fraction))
    parts = []
    for rank in range(size):
        monkeypatch.setattr("dada_det.search.dada.world", lambda rank=rank: (rank, size))
        parts.append(algorithm.unaugmented(n))
    monkeypatch.setattr("dada_det.search.dada.world", lambda: (0, 1))
    assert sum(parts) == algorithm.unaugmented(n * size) == min(round(fraction * n * size), n * size - (fraction < 1))
    assert max(parts) - min(parts) <= 1


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for mode in MODES:
        torch.save(search_steps(mode), f"{folder}/{mode}-{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states that two processes have saved, MODE-RANK.pth; both run all modes, as imports take most of the time."""
    folder = tmp_path_factory.mktemp("states")
    children = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)]
    assert [child.wait(timeout=300) for child in children] == [0, 0]
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(mode: str, states: Path) -> None:
    ranks = [torch.load(states / f"{mode}-{rank}.pth", weights_only=True) for rank in range(2)]
    alone = search_steps(mode)
    moved = [name for name, tensor in alone.items()
             if name.startswith(("algorithm.distribution", "algorithm.alpha")) and tensor.std() > 1e-4]
    assert moved, "the policy did not move, so there would be nothing to compare"
    for name, tensor in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        # Adam divides by the gradient's size, which enlarges the rounding of the control variate's smallest ones.
        tolerance = 1e-8 if name.startswith("algorithm.control_variate") else 1e-10
        torch.testing.assert_close(ranks[0][name], tensor, rtol=0, atol=tolerance)


if __name__ == "__main__":
    process(int(sys.argv[1]), sys.argv[2])
