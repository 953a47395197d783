"""Two lookup operations in a row: one table, one pass over the pixels, and the pixels of one after the other."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dada_det.augment import OPERATION_NAMES, OPERATIONS, RANGES, Draws, apply_draws, apply_draws_pil, kernels

LOOKUPS = [index for index, name in enumerate(OPERATION_NAMES) if OPERATIONS[name].kind == "lookup"]
PAIRS = list(product(LOOKUPS, LOOKUPS))  # 49, the same operation twice among them


HEIGHT, WIDTH = 21, 18


def noise(generator):
    return torch.randint(0, 256, (len(PAIRS), 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)


def pictures(generator):
    """Seven images for each pair, [7 · 49,3,H,W]: noise, smooth, of one level, of one but for one column, of a few."""
    coarse = torch.rand(len(PAIRS), 3, 3, 3, generator=generator)
    smooth = (interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear") * 200 + 20).byte()
    constant = noise(generator)[:, :, :1, :1].expand(-1, -1, HEIGHT, WIDTH)
    but_for_one = torch.cat([constant[..., 1:], noise(generator)[..., :1]], 3)
    few = [noise(generator) // step * gap + lowest for step, gap, lowest in ((128, 100, 70), (60, 40, 9), (128, 255, 0))]
    return torch.cat([noise(generator), smooth, constant, but_for_one, *few])


def pair_draws(count, generator):
    """Pairs in their order over and over, with magnitudes of which a quarter each is 0 and 1."""
    pairs = torch.tensor(PAIRS)[torch.arange(count) % len(PAIRS)]
    magnitudes = (torch.rand(count, 2, generator=generator) * 2 - 0.5).clamp(0, 1)
    signs = torch.randint(0, 2, (count, 2), generator=generator) * 2.0 - 1
    return Draws(pairs, torch.ones(count, 2, dtype=torch.bool), magnitudes, signs, torch.zeros(count, 2, 2))


def only(draws, slot):
    return Draws(*(tensor[:, slot:slot + 1] for tensor in vars(draws).values()))


def assert_pairs_equal(got, expected):
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(one, other), (index, [OPERATION_NAMES[operation] for operation in PAIRS[index % len(PAIRS)]])


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1), (1, WIDTH)])
def test_all_pairs_equal_one_after_the_other(size, ranges, road):
    generator = torch.Generator().manual_seed(4)
    images = pictures(generator)[:, :, :size[0], :size[1]]
    draws = pair_draws(len(images), generator)
    composed = apply_draws(images, draws, ranges)
    after_another = apply_draws(apply_draws(images, only(draws, 0), ranges), only(draws, 1), ranges)
    assert_pairs_equal(composed, after_another)
    pillows = [apply_draws_pil(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), draws[index:index + 1], ranges)
               for index, image in enumerate(images)]
    assert_pairs_equal(composed, [torch.from_numpy(np.array(pillow)).permute(2, 0, 1) for pillow in pillows])


def test_all_pairs_on_photographs(shared, road):
    paths = sorted((shared / "data" / "imagenette-mini" / "val").rglob("*.JPEG"))[::140]
    assert paths
    generator = torch.Generator().manual_seed(5)
    for path in paths:
        photograph = torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((48, 40)))).permute(2, 0, 1)
        images, draws = photograph.expand(len(PAIRS), -1, -1, -1), pair_draws(len(PAIRS), generator)
        after_another = apply_draws(apply_draws(images, only(draws, 0), "strength"), only(draws, 1), "strength")
        assert_pairs_equal(apply_draws(images, draws, "strength"), after_another)


def test_both_slots_look_every_pixel_up_once(road, monkeypatch):
    images, draws = noise(torch.Generator()), pair_draws(len(PAIRS), torch.Generator())
    passes = []
    look_up = kernels.look_up
    monkeypatch.setattr(kernels, "look_up", lambda *arguments: passes.append(len(arguments[0])) or look_up(*arguments))
    apply_draws(images, draws, "strength")
    assert passes == [len(images)]


def test_a_third_and_a_fourth_slot_come_after_the_first_two(road):
    """No policy has them; `Draws` may, and then the order of the slots still holds."""
    generator = torch.Generator().manual_seed(6)
    images = noise(generator)
    operations = torch.randint(0, 15, (len(PAIRS), 4), generator=generator)
    draws = Draws(operations, torch.rand(operations.shape, generator=generator) < 0.8,
                  torch.rand(operations.shape, generator=generator), torch.ones(operations.shape),
                  torch.rand(*operations.shape, 2, generator=generator))
    expected = images
    for slot in range(4):
        expected = apply_draws(expected, only(draws, slot), "strength")
    assert torch.equal(apply_draws(images, draws, "strength"), expected)
