"""A batch in which every image has its own operations: equal to one at a time, without waiting for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dada_det.augment import OPERATION_NAMES, RANGES, Draws, SearchSpace, apply_draws, apply_operation, kernels
from dada_det.errors import UserError


def random_batch(count, height=24, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    space = SearchSpace()
    draws = space.draws(torch.arange(count) % len(space), torch.rand(count, 2, generator=generator) < 0.8,
                        torch.rand(count, 2, generator=generator),
                        torch.randint(0, 2, (count, 2), generator=generator) * 2.0 - 1,
                        torch.rand(count, 2, 2, generator=generator))
    return images, draws


@pytest.fixture
def device_road(monkeypatch):
    """The road that a GPU takes: every kernel on every row."""
    monkeypatch.setattr(kernels, "members", lambda mask_B: slice(None))


@pytest.mark.parametrize("ranges", RANGES)
def test_all_sub_policies_in_one_batch_equal_one_at_a_time(ranges):
    images, draws = random_batch(210)
    before = images.clone()
    together = apply_draws(images, draws, ranges)
    assert torch.equal(images, before)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    alone = [apply_draws(images[i:i + 1], draws[i:i + 1], ranges) for i in range(len(images))]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("ranges", RANGES)
def test_the_device_road_gives_the_same_pixels(ranges, monkeypatch):
    images, draws = random_batch(105, seed=1)
    on_cpu_road = apply_draws(images, draws, ranges)
    monkeypatch.setattr(kernels, "members", lambda mask_B: slice(None))
    assert torch.equal(apply_draws(images, draws, ranges), on_cpu_road)


class Launches(TorchDispatchMode):
    """Names of all tensor operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_device_road_never_waits_and_does_not_grow_with_the_batch(device_road):
    counts = []
    for size in (2, 64):
        images, draws = random_batch(size)
        apply_draws(images, draws, "strength")  # fills the tables that are kept on the device
        with Launches() as launches:
            apply_draws(images, draws, "strength")
        assert not {"_local_scalar_dense", "nonzero", "_unique2", "masked_select", "bincount"} & set(launches.names)
        counts.append(len(launches.names))
    assert counts[0] == counts[1]


def test_slots_that_are_off_change_nothing():
    images, draws = random_batch(30)
    off = Draws(draws.operations_BK, torch.zeros_like(draws.active_BK), draws.magnitudes_BK, draws.signs_BK,
                draws.centers_BK2)
    assert torch.equal(apply_draws(images, off, "strength"), images)


def test_an_empty_batch():
    images, draws = random_batch(3)
    none = draws[torch.zeros(0, dtype=torch.long)]
    assert apply_draws(images[:0], none, "strength").shape == (0, 3, 24, 20)


def test_draws_are_sliced_indexed_and_moved():
    _, draws = random_batch(10)
    assert len(draws) == 10 and len(draws[2:5]) == 3
    picked = draws[torch.tensor([4, 4, 1])].to("cpu")
    assert torch.equal(picked.operations_BK[:2], draws.operations_BK[4].expand(2, 2))
    assert torch.equal(picked.centers_BK2[2], draws.centers_BK2[1])


def test_order_of_a_pair_is_the_order_of_the_table():
    images, _ = random_batch(1)
    space = SearchSpace(["Invert", "Solarize"])
    draws = space.draws(torch.tensor([0]), torch.ones(1, 2), torch.full((1, 2), 0.25), torch.ones(1, 2),
                        torch.zeros(1, 2, 2))
    expected = apply_operation(apply_operation(images, "Invert", 0.25), "Solarize", 0.25, None, "strength")
    assert torch.equal(apply_draws(images, draws, "strength"), expected)


def test_apply_operation_defaults():
    images, _ = random_batch(4)
    plus = apply_operation(images, "Rotate", torch.full((4,), 0.9), torch.ones(4), "autoaugment")
    assert torch.equal(apply_operation(images, "Rotate", torch.full((4,), 0.9)), plus)
    once, again, other = (apply_operation(images, "Cutout", torch.ones(4),
                                          generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_wrong_input_is_refused():
    images, draws = random_batch(4)
    with pytest.raises(ValueError, match=r"images must be uint8 \[B,3,H,W\], not torch.float32"):
        apply_draws(images.float(), draws, "strength")
    with pytest.raises(ValueError, match="4 images but 3 draws"):
        apply_draws(images, draws[:3], "strength")
    with pytest.raises(UserError, match="'wide' is no table of ranges; choose strength or autoaugment"):
        apply_draws(images, draws, "wide")
    with pytest.raises(UserError, match="'Blur' is no operation"):
        apply_operation(images, "Blur", torch.ones(4))


def test_search_space():
    space = SearchSpace()
    assert len(space) == len(space.pairs) == 105 and space.ranges == "strength"
    assert space.pairs[0] == (0, 1) and space.pairs[-1] == (13, 14) and space.pairs_N2.shape == (105, 2)
    assert all(i < j for i, j in space.pairs)
    small = SearchSpace(["Invert", "Rotate", "ShearX"], "autoaugment")
    assert small.operations == ("ShearX", "Rotate", "Invert")
    assert [OPERATION_NAMES[i] for i in small.pairs_N2.flatten()] == ["ShearX", "Rotate", "ShearX", "Invert", "Rotate",
                                                                     "Invert"]
    with pytest.raises(UserError, match="at least two different operations"):
        SearchSpace(["Invert"])
    with pytest.raises(UserError, match="at least two different operations"):
        SearchSpace(["Invert", "Invert", "Rotate"])
    with pytest.raises(UserError, match="'Blur' is no operation"):
        SearchSpace(["Invert", "Blur"])
    with pytest.raises(UserError, match="'wide' is no table of ranges"):
        SearchSpace(ranges="wide")
