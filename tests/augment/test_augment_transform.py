"""PolicyTransform: draws with the policy's own probabilities, equal on a batch and on PIL images."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import OPERATION_NAMES, Operation, Policy, PolicyTransform, SubPolicy, apply_draws_pil
from dada_det.augment.named import resolve_policy

PAIR = SubPolicy(3.0, (Operation("Rotate", 0.25, 0.7), Operation("Invert", 0.9, 0.5)))
SINGLE = SubPolicy(1.0, (Operation("Solarize", 1.0, 0.2, spread=0.8),))
NEVER = SubPolicy(0.0, (Operation("Cutout", 1.0, 1.0),))
POLICY = Policy("strength", (PAIR, NEVER, SINGLE))
HALF = dataclasses.replace(POLICY, unaugmented=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_follow_weights_and_probabilities():
    draws = PolicyTransform(POLICY).draw(20000, seeded())
    rotate, solarize = OPERATION_NAMES.index("Rotate"), OPERATION_NAMES.index("Solarize")
    pair = draws.operations_BK[:, 0] == rotate
    assert torch.equal(~pair, draws.operations_BK[:, 0] == solarize)  # weight 0 is never drawn
    # 20,000 draws: 0.02 is more than four standard errors of every share below.
    assert pair.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert draws.active_BK[pair].float().mean(0).tolist() == pytest.approx([0.25, 0.9], abs=0.02)
    assert draws.active_BK[~pair, 0].all() and not draws.active_BK[~pair, 1].any()
    assert draws.signs_BK.abs().eq(1).all()
    assert draws.signs_BK.mean(0).tolist() == pytest.approx([0, 0], abs=0.03)
    assert draws.centers_BK2.shape == (20000, 2, 2)
    assert draws.centers_BK2.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.centers_BK2.min() >= 0 and draws.centers_BK2.max() < 1


def test_files_of_earlier_versions_draw_what_they_drew():
    spread = Policy("strength", [SubPolicy(1.0 + place, (Operation(name, 0.9, 0.6, 0.8), Operation("Cutout", 0.5, 0.7)))
                                 for place, name in enumerate(OPERATION_NAMES)])
    for policy, policys, drawn in ((spread, "3f9c3261348f3865", "b8e07ad1ea22c925"),
                                   (resolve_policy("dada-imagenet"), "569c1bda568c47ab", "80f0bf06460ef07c"),
                                   (resolve_policy("random"), "dc6810f5f619bde5", "0834cd9af3ad00cd"),
                                   (resolve_policy("one-op"), "c6fb334209025802", "c1ed6ae8f2cc7abc")):
        draws, digest = PolicyTransform(policy).draw(1000, seeded(5)), hashlib.sha256()
        for tensor in (draws.operations_BK, draws.active_BK, (draws.magnitudes_BK * 2**20).round(), draws.signs_BK,
                       draws.centers_BK2):
            digest.update(tensor.numpy().tobytes())
        assert (policy.sha256[:16], digest.hexdigest()[:16]) == (policys, drawn)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_unaugmented_share_of_the_images_stays_as_it_is(share):
    policy = dataclasses.replace(POLICY, unaugmented=share)
    draws = PolicyTransform(policy).draw(20000, seeded())
    first = draws.operations_BK[:, 0]
    rotate, solarize = ((first == OPERATION_NAMES.index(name)) for name in ("Rotate", "Solarize"))
    # 20,000 draws: 0.02 is more than four standard errors of every share below.
    assert rotate.float().mean().item() == pytest.approx(0.75 * (1 - share), abs=0.02)
    assert solarize.float().mean().item() == pytest.approx(0.25 * (1 - share), abs=0.02)
    assert not draws.active_BK[~(rotate | solarize)].any()
    if share < 1:
        assert draws.active_BK[rotate].float().mean(0).tolist() == pytest.approx([0.25, 0.9], abs=0.03)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 24, 24), dtype=np.uint8))
    same = (PolicyTransform(policy)(batch, seeded(2)) == batch).flatten(1).all(1)
    idle = ~draws_of(policy, 64, 2).active_BK.any(1)
    assert same[idle].all() and share * 64 * 0.5 <= idle.sum() and (share < 1 or same.all())
    # Of 64 images, 0.2 is more than three standard errors.
    always = Policy("strength", (SubPolicy(1.0, (Operation("Invert", 1.0, 0.0),)),), unaugmented=share)
    inverted = (PolicyTransform(always)(batch, seeded(3)) == 255 - batch).flatten(1).all(1)
    assert inverted.float().mean().item() == pytest.approx(1 - share, abs=0.2 * share * (1 - share) / 0.21)


def draws_of(policy, count, seed):
    return PolicyTransform(policy).draw(count, seeded(seed))


def test_magnitudes_are_the_policys_or_spread_around_it():
    draws = PolicyTransform(POLICY).draw(20000, seeded())
    pair = draws.operations_BK[:, 0] == OPERATION_NAMES.index("Rotate")
    assert draws.magnitudes_BK.dtype == torch.float32
    assert draws.magnitudes_BK[pair].unique().tolist() == pytest.approx([0.5, 0.7])
    logits = torch.logit(draws.magnitudes_BK[~pair, 0].double())
    assert logits.mean().item() == pytest.approx(np.log(0.2 / 0.8), abs=0.05)
    assert logits.std().item() == pytest.approx(0.8, abs=0.05)


def test_spread_leaves_the_ends_where_they_are():
    ends = [SubPolicy(1.0, (Operation("Rotate", 1.0, end, 2.0),)) for end in (0.0, 1.0)]
    assert set(PolicyTransform(Policy("strength", ends)).draw(200, seeded()).magnitudes_BK[:, 0].tolist()) == {0.0, 1.0}


def test_uniform_strength():
    policy = Policy("strength", (PAIR,), uniform_strength=True)
    magnitudes = PolicyTransform(policy).draw(20000, seeded()).magnitudes_BK
    assert magnitudes.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert magnitudes.std(0).tolist() == pytest.approx([12**-0.5] * 2, abs=0.02)


@pytest.mark.parametrize("count", [40, 100])
@pytest.mark.parametrize("policy", [POLICY, HALF, resolve_policy("dada-cifar10"), resolve_policy("random")])
def test_a_batch_equals_its_pil_images(policy, count):
    """40 images take the PIL road, 100 take the kernels."""
    images = torch.randint(0, 256, (count, 3, 18, 23), generator=seeded(), dtype=torch.uint8)
    transform = PolicyTransform(policy)
    draws = transform.draw(count, seeded(1))
    batch = transform.apply(images, draws)
    for index, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        alone = np.array(transform.apply(picture, draws[index:index + 1]))
        assert torch.equal(torch.from_numpy(alone).permute(2, 0, 1), batch[index])


def test_a_batch_on_a_device_takes_draws_from_the_cpu():
    images = torch.empty(6, 3, 18, 23, dtype=torch.uint8, device="meta")
    result = PolicyTransform(resolve_policy("dada-imagenet"))(images, seeded())
    assert result.device == images.device and result.shape == images.shape and result.dtype == torch.uint8


@pytest.mark.parametrize("policy", [POLICY, HALF, resolve_policy("dada-imagenet"), resolve_policy("one-op")])
def test_one_image_draws_what_a_batch_of_one_draws(policy):
    """Its own road to the draws, without tensors: the same numbers, and the generator ends in the same state."""
    transform = PolicyTransform(policy)
    for seed in range(200):
        one, batch = seeded(seed), seeded(seed)
        assert transform.draw_one(one) == transform.draw(1, batch).active_slots()[0]
        assert torch.equal(one.get_state(), batch.get_state())


def test_equal_generators_give_equal_results_and_none_is_the_global_one():
    transform = PolicyTransform(resolve_policy("dada-imagenet"))
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    assert torch.equal(transform(images, seeded(5)), transform(images, generator=seeded(5)))
    assert not torch.equal(transform(images, seeded(5)), transform(images, seeded(6)))
    state = torch.get_rng_state()
    torch.manual_seed(5)
    globally = transform(images)
    torch.set_rng_state(state)
    assert torch.equal(globally, transform(images, seeded(5)))
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    assert transform(picture, seeded(5)).tobytes() == transform(picture, seeded(5)).tobytes()


def test_pil_images_of_other_modes_become_rgb():
    transform = PolicyTransform(POLICY)
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert transform(Image.new(mode, (5, 4)), seeded()).mode == "RGB"
    with pytest.raises(ValueError, match="one PIL image needs one draw, not 2"):
        apply_draws_pil(Image.new("RGB", (5, 4)), transform.draw(2), "strength")
