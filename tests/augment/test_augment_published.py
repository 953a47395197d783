"""AutoAugment's three policies against torchvision's own lists and ranges: equal but for the losses that are stated."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_policy_original
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from dada_det.augment import OPERATIONS, Draws, PolicyTransform, SubPolicy
from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import INDEX, value_of

NAMES = ("imagenet", "cifar10", "svhn")
# The most that a value may be off, in the operation's own unit: float32's rounding, but for Translate at index 9.
ROUNDING = {"shear": 1e-7, "share": 1e-7, "degrees": 1e-5, "threshold": 1e-4, "bits": 0.0, "factor": 1e-7, "": 0.0}
TRANSLATE_9 = 150 / 331 - 0.45  # 0.003172.. of the side


def both(name):
    """Our policy and torchvision's list of ((operation, probability, index | None), the same)."""
    return resolve_policy(f"autoaugment-{name}"), AutoAugment(AutoAugmentPolicy(name)).policies


def entries():
    """Every operation that stands in one of the three, once: (operation name, torchvision's index, our Operation)."""
    found = {}
    for name in NAMES:
        policy, pairs = both(name)
        for sub_policy, pair in zip(policy.sub_policies, pairs, strict=True):
            found |= {(entry[0], entry[2]): operation for entry, operation in zip(pair, sub_policy.operations, strict=True)}
    return [(*key, operation) for key, operation in found.items()]


def theirs(operation, index, side):
    """torchvision's magnitude for a square image of `side` pixels, as it hands it to _apply_op without a sign."""
    return 0.0 if index is None else float(AutoAugment()._augmentation_space(10, (side, side))[operation][0][index])


def in_our_unit(operation, magnitude, sign, side):
    unit = OPERATIONS[operation].unit
    return {"share": sign * magnitude / side, "factor": 1 + sign * magnitude, "shear": sign * magnitude,
            "degrees": sign * magnitude}.get(unit, magnitude)


def ours(operation, sign):
    """Our value, from the float32 magnitude that an image draws."""
    return value_of(INDEX[operation.name], float(np.float32(operation.magnitude)), sign, "strength")


@pytest.mark.parametrize("name", NAMES)
def test_names_probabilities_and_order_are_torchvisions(name):
    policy, pairs = both(name)
    assert policy.ranges == "strength" and not policy.uniform_strength and len(policy.sub_policies) == 25
    assert {sub_policy.weight for sub_policy in policy.sub_policies} == {1.0}
    assert [tuple((operation.name, operation.probability) for operation in sub_policy.operations)
            for sub_policy in policy.sub_policies] == [tuple(entry[:2] for entry in pair) for pair in pairs]


def test_imagenets_list_is_timms_too():
    of_timm = [[(operation.name.removesuffix("Original"), operation.prob, operation.magnitude) for operation in pair]
               for pair in auto_augment_policy_original({})]
    for pair, their_pair in zip(both("imagenet")[1], of_timm, strict=True):
        for (name, probability, index), (their_name, their_probability, their_index) in zip(pair, their_pair, strict=True):
            assert (name, probability) == (their_name, their_probability) and index in (None, their_index)


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_loss_of_each_operation_is_the_one_that_the_provenance_states(name):
    policy, pairs = both(name)
    largest = {}
    for sub_policy, pair in zip(policy.sub_policies, pairs, strict=True):
        for operation, (called, _, index) in zip(sub_policy.operations, pair, strict=True):
            for sign in (1, -1):
                # 331 is the side for which torchvision's range is a whole number of pixels, 150.
                loss = abs(ours(operation, sign) - in_our_unit(called, theirs(called, index, 331), sign, 331))
                largest[called] = max(largest.get(called, 0.0), loss)
    stated = {called: TRANSLATE_9 for called in ("TranslateX", "TranslateY") if name == "cifar10"}
    for called, loss in largest.items():
        assert loss == pytest.approx(stated.get(called, 0.0), abs=ROUNDING[OPERATIONS[called].unit]), called
    losses = " ".join(policy.provenance["losses"])
    assert ("at index 9: 0.45 of the side" in losses) == bool(stated)
    assert ("pixel further" in losses) == any(called.startswith("Translate") for called in largest)
    assert f"{TRANSLATE_9:.4f}" == "0.0032" and ("0.0032 of the side less (0.7 of 224 pixels)" in losses) == bool(stated)
    assert re.search(r"Cubuk et al\., .*CVPR 2019 \(arXiv 1805\.09501\), Appendix A", policy.provenance["source"])


def test_a_shift_is_at_most_one_pixel_further_than_torchvisions_but_for_the_end_of_the_range():
    differences = set()
    for called, index, operation in entries():
        if called.startswith("Translate"):
            for side in (32, 33, 64, 97, 224, 331):  # beyond 315 pixels the end of the range is more than a pixel off
                differences.add(np.floor(ours(operation, 1) * side + 0.5) - int(theirs(called, index, side)))
    assert differences == {-1, 0, 1}


def test_every_operation_renders_as_torchvisions_but_for_shifts_and_single_levels(shared):
    paths = sorted((shared / "data" / "imagenette-mini" / "train").rglob("*.*"))[::199]
    images = [Image.open(path).convert("RGB").resize((97, 64)) for path in paths]
    seen = {}
    for called, index, operation in entries():
        if called.startswith("Translate"):
            continue
        signed = AutoAugment()._augmentation_space(10, (64, 97))[called][1]
        for image in images:
            for sign in (1.0, -1.0) if signed else (1.0,):
                expected = _apply_op(image, called, sign * theirs(called, index, 64), InterpolationMode.NEAREST, None)
                transform = PolicyTransform(policy_of(operation))
                one = torch.ones(1, 2)
                draws = Draws(transform.operations_SK, torch.tensor([[True, False]]), transform.magnitudes_SK, sign * one,
                              torch.zeros(1, 2, 2))
                difference = np.abs(np.asarray(transform.apply(image, draws), int) - np.asarray(expected, int))
                most, share = seen.get(called, (0, 0.0))
                seen[called] = max(most, difference.max()), max(share, (difference > 0).mean())
    unequal = {called: figures for called, figures in seen.items() if figures[0] > 0}
    assert set(unequal) <= {"Contrast", "Color", "Brightness", "Sharpness"} and len(seen) == 12
    assert all(most == 1 for most, _ in unequal.values())
    assert max(share for _, share in unequal.values()) == unequal["Brightness"][1] < 0.13


def policy_of(operation):
    policy = resolve_policy("autoaugment-imagenet")
    return type(policy)(policy.ranges, (SubPolicy(1.0, (operation,)),))
