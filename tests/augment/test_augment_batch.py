"""A batch in which every image has its own operations: equal to one at a time, without waiting for the device."""

from itertools import cycle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dada_det.augment import (
    OPERATION_NAMES,
    RANGES,
    Draws,
    SearchSpace,
    apply_draws,
    apply_draws_pil,
    apply_operation,
    transform,
)
from dada_det.errors import UserError
from tests.messages import refused


def random_batch(count, height=24, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    space = SearchSpace()
    draws = space.draws(torch.arange(count) % len(space), torch.rand(count, 2, generator=generator) < 0.8,
                        torch.rand(count, 2, generator=generator),
                        torch.randint(0, 2, (count, 2), generator=generator) * 2.0 - 1,
                        torch.rand(count, 2, 2, generator=generator))
    return images, draws


def through_pil(images, draws, ranges):
    pictures = [apply_draws_pil(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), draws[index:index + 1], ranges)
                for index, image in enumerate(images)]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("ranges", RANGES)
def test_all_sub_policies_in_one_batch_equal_one_at_a_time(ranges, road):
    images, draws = random_batch(210)
    before = images.clone()
    together = apply_draws(images, draws, ranges)
    assert torch.equal(images, before)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    assert torch.equal(together, through_pil(images, draws, ranges))


def test_a_batch_of_one_equals_the_image_in_a_larger_batch(road):
    images, draws = random_batch(105, height=9, width=11)
    alone = [apply_draws(images[i:i + 1], draws[i:i + 1], "strength") for i in range(0, 105, 7)]
    assert torch.equal(torch.cat(alone), apply_draws(images, draws, "strength")[::7])


@pytest.mark.parametrize(("count", "side", "one_by_one"), [(64, 16, True), (65, 16, False), (65, 63, False), (65, 64, True)])
def test_few_or_large_images_on_the_cpu_go_through_pil_one_by_one(count, side, one_by_one, monkeypatch):
    assert transform.one_by_one_pays(torch.empty(count, 3, side, side, dtype=torch.uint8)) == one_by_one
    assert not transform.one_by_one_pays(torch.empty(count, 3, side, side, dtype=torch.uint8, device="meta"))
    images, draws = random_batch(count, side, side)
    expected = apply_draws(images, draws, "strength")
    monkeypatch.setattr(transform, "one_by_one_pays", lambda images_BCHW: not one_by_one)
    assert torch.equal(apply_draws(images, draws, "strength"), expected)


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_kernels_equal_pil_at_every_size_and_magnitude(name, road):
    """What test_augment_parity.py holds against Pillow for the PIL road, held for the kernels against that road."""
    generator = torch.Generator().manual_seed(1)
    magnitudes = torch.cat([torch.tensor([0.0, 1.0, 0.5, 0.25, 0.75, 0.1, 0.3, 0.62]), torch.rand(7, generator=generator)])
    count = 2 * len(magnitudes)
    sizes = [(33, 17), (50, 64), (1, 40), (1, 40), (40, 1), (40, 1), (1, 1), (2, 2), (3, 3), (224, 224)]
    for (height, width), ranges in zip(sizes, cycle(RANGES)):
        noise = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
        images = torch.where(torch.arange(count)[:, None, None, None] % 3 == 0, noise // 64 * 64, noise)
        images[1::3] = images[1::3, :, :1, :1]  # noise, a few levels, one level
        draws = Draws(torch.full((count, 1), OPERATION_NAMES.index(name)), torch.ones(count, 1, dtype=torch.bool),
                      magnitudes.repeat(2)[:, None], torch.tensor([1.0, -1.0]).repeat_interleave(len(magnitudes))[:, None],
                      torch.rand(count, 1, 2, generator=generator))
        if height == 224:
            images, draws = images[5:8], draws[5:8]
        got, expected = apply_draws(images, draws, ranges), through_pil(images, draws, ranges)
        assert torch.equal(got, expected), f"{height}x{width}"


def layouts(images):
    """The same images as they may lie in memory."""
    wide = torch.zeros(2 * len(images), *images.shape[1:2], images.shape[2] + 3, images.shape[3] + 2, dtype=torch.uint8)
    slices = wide[::2, :, 1:-2, 2:]
    slices.copy_(images)
    return {"contiguous": images, "channels_last": images.contiguous(memory_format=torch.channels_last), "slices": slices,
            "turned": images.transpose(2, 3).contiguous().transpose(2, 3)}


@pytest.mark.parametrize("count", [0, 1, 70])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (1, 7), (7, 1), (1, 1)])
def test_every_memory_format_gives_the_same_pixels(count, height, width):
    """70 images take the kernels, one takes the PIL road."""
    images, draws = random_batch(count, height, width)
    expected = through_pil(images, draws, "strength") if count else images
    for name, laid in layouts(images).items():
        before = laid.clone()
        got = apply_draws(laid, draws, "strength")
        assert got.dtype == torch.uint8 and torch.equal(got, expected), name
        assert torch.equal(laid, before)
        assert not count or got.data_ptr() != laid.data_ptr()
        channels_last = name == "channels_last" and not laid.is_contiguous()
        assert got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format), name


class Launches(TorchDispatchMode):
    """Names of all tensor operations on a device that run inside; where one meets a tensor on the CPU, also in `meetings`.

    The device is torch's "meta", which has no values at all: reading one, or making a shape from values, raises.
    """

    def __init__(self):
        super().__init__()
        self.names, self.meetings = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        if "meta" in devices:
            self.names.append(func.overloadpacket.__name__)
        if devices == {"meta", "cpu"}:
            self.meetings.append((func.overloadpacket.__name__, (kwargs or {}).get("non_blocking")))
        return result


WAITS = {"item": lambda tensor: tensor.amax().item(), "mask": lambda tensor: tensor[tensor > 0],
         "nonzero": lambda tensor: tensor.nonzero(), "cpu": lambda tensor: tensor.cpu(),
         "tolist": lambda tensor: tensor[0, 0, 0].tolist(), "unique": lambda tensor: tensor.unique(),
         "if": lambda tensor: 1 if tensor.amax() > 0 else 0, "bincount": lambda tensor: tensor.flatten().bincount()}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_the_meta_device_refuses_whatever_would_wait(wait):
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.empty(2, 3, 4, 4, dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize("draws_on", ["cpu", "meta"])
def test_a_device_never_waits_and_its_launches_do_not_grow_with_the_batch(draws_on):
    counts = []
    for size in (210, 840):
        images, draws = random_batch(210)
        repeated = draws[torch.arange(size) % 210].to(draws_on)
        on_device = torch.empty(size, *images.shape[1:], dtype=torch.uint8, device="meta")
        apply_draws(on_device, repeated, "strength")  # fills the tables that are kept on the device
        with Launches() as launches:
            result = apply_draws(on_device, repeated, "strength")
        assert result.device.type == "meta" and result.shape == on_device.shape and result.dtype == torch.uint8
        # From the CPU come the draws and the rows of each kernel, and nobody waits for them; nothing goes to it.
        assert set(launches.meetings) == ({("_to_copy", True)} if draws_on == "cpu" else set())
        counts.append(len(launches.names))
    assert counts[0] == counts[1]


def test_slots_that_are_off_change_nothing():
    images, draws = random_batch(30)
    off = Draws(draws.operations_BK, torch.zeros_like(draws.active_BK), draws.magnitudes_BK, draws.signs_BK,
                draws.centers_BK2)
    assert torch.equal(apply_draws(images, off, "strength"), images)


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
    with refused("uint8 [B,3,H,W]", "torch.float32", error=ValueError):
        apply_draws(images.float(), draws, "strength")
    with pytest.raises(ValueError, match="4 images but 3 draws"):
        apply_draws(images, draws[:3], "strength")
    with refused("'wide'", "strength", "autoaugment"):
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
