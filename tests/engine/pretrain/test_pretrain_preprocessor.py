"""What reaches the network: normalised images, and a policy that gives the same pixels in the workers and on the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dada_det.augment import OPERATION_NAMES, Operation, Policy, PolicyTransform, SubPolicy
from dada_det.augment.named import resolve_policy
from dada_det.augment.schedule import Schedule, ScheduleTransform
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder
from dada_det.engine.pretrain.preprocessor import DrawnImages, ImagePreprocessor, TrainImages, blank

# Every operation with a drawn magnitude, before Cutout.
SPREAD = Policy("strength", [SubPolicy(1.0 + place, (Operation(name, 0.9, 0.6, 0.8), Operation("Cutout", 0.5, 0.7)))
                             for place, name in enumerate(OPERATION_NAMES)])
SCHEDULE = Schedule.from_dict({"schema": 1, "ranges": "strength", "atoms": [{"name": "Invert", "magnitude": 0.0}],
                               "schedule": [{"until": 1.0, "probability": 0.8, "preferences": [1.0]}]})
POLICIES = {"spread": SPREAD, "half": replace(SPREAD, unaugmented=0.5),
            **{name: resolve_policy(name) for name in ("dada-imagenet", "autoaugment-cifar10", "uniform")}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve images of two classes: noise, gradients and one grey level, of odd sizes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(12):
        height, width = random.integers(25, 70, 2)
        pixels = [random.integers(0, 256, (height, width, 3)),
                  np.linspace(0, 255, height * width * 3).reshape(height, width, 3) * random.random(3),
                  np.full((height, width, 3), 37 * index % 256)][index % 3]
        (root / f"class{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"class{index % 2}" / f"{index}.png")
    return scan_folder(root)


def test_images_are_normalised_on_the_0_to_255_scale():
    batch = {"image": torch.full((2, 3, 1, 1), 10, dtype=torch.uint8), "label": torch.tensor([0, 1]), "broken": ["", ""]}
    result = ImagePreprocessor(mean=[10, 0, 20], std=[1, 2, 5])(batch)
    assert set(result) == {"images", "labels"} and result["images"].dtype == torch.float32
    assert result["images"][0].flatten().tolist() == [0, 5, -2]
    assert not ImagePreprocessor().state_dict()


def epoch_of(dataset, epoch, workers=0):
    """All images of one epoch as the network would get them, [N,3,H,W] float32."""
    dataset.set_epoch(epoch)
    preprocessor = ImagePreprocessor()
    return torch.cat([preprocessor(batch, training=True)["images"]
                      for batch in DataLoader(dataset, batch_size=5, num_workers=workers)])


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_images_come_from_the_workers_and_from_the_device(name, images):
    policy = POLICIES[name]
    in_workers = ImageFolder(images, 33, train=True, transform=PolicyTransform(policy), seed=3)
    on_device = DrawnImages(images, [33], PolicyTransform(policy), seed=3)
    plain = ImageFolder(images, 33, train=True, seed=3)
    changed = 0
    for epoch in range(20):
        expected = epoch_of(in_workers, epoch)
        assert torch.equal(epoch_of(on_device, epoch), expected)
        changed += int((expected != epoch_of(plain, epoch)).flatten(1).any(1).sum())
    assert changed > 240 / 4  # of 240 images; the policy is at work


def test_the_draws_do_not_depend_on_the_workers_and_change_from_epoch_to_epoch(images):
    dataset = DrawnImages(images, [33], PolicyTransform(SPREAD), seed=3)
    first = epoch_of(dataset, 1)
    assert torch.equal(epoch_of(dataset, 1, workers=2), first)
    assert not torch.equal(epoch_of(dataset, 2), first)
    assert torch.equal(epoch_of(DrawnImages(images, [33], PolicyTransform(SPREAD), seed=3), 1), first)
    assert not torch.equal(epoch_of(DrawnImages(images, [33], PolicyTransform(SPREAD), seed=4), 1), first)


def test_the_samples_hold_the_images_before_the_policy(images):
    sample = DrawnImages(images, [33], PolicyTransform(SPREAD), seed=3)[7]
    plain = ImageFolder(images, 33, train=True, seed=3)[7]
    assert torch.equal(sample.pop("image"), plain.pop("image"))
    assert sample.pop("ranges") == "strength" and sample.pop("draws").shape == (2, 6)
    assert sample == plain


@pytest.mark.parametrize("transform", [PolicyTransform(SPREAD), ScheduleTransform(SCHEDULE)])
def test_a_worker_draws_without_tensors(transform, images, monkeypatch):
    """`draw` on one image takes a worker as long as Pillow takes to apply a policy, and would free nothing."""
    monkeypatch.setattr(transform, "draw", None)
    assert DrawnImages(images, [33], transform, seed=3)[7]["draws"].shape == (2, 6)


@pytest.mark.gpu
def test_a_gpu_gives_the_images_of_the_workers_within_one_level(images):
    dataset = DrawnImages(images, [33], PolicyTransform(SPREAD), seed=3)
    batch = next(iter(DataLoader(dataset, batch_size=12, pin_memory=True)))
    levels = ImagePreprocessor(mean=[0, 0, 0], std=[1, 1, 1])
    difference = (levels.cuda()(batch)["images"].cpu() - levels.cpu()(batch)["images"]).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("kind", [TrainImages, DrawnImages])
def test_without_mirror_no_image_is_flipped_and_all_other_draws_stay(kind, images):
    flipped, plain = (kind(images, [33], PolicyTransform(SPREAD), seed=3, mirror=mirror) for mirror in (True, False))
    flipped.transform = plain.transform = PolicyTransform(replace(SPREAD, unaugmented=1.0))
    flips = 0
    for epoch in range(10):
        before, after = epoch_of(plain, epoch), epoch_of(flipped, epoch)
        same = (before == after).flatten(1).all(1)
        assert torch.equal(torch.where(same[:, None, None, None], before, before.flip(3)), after)
        flips += int((~same).sum())
    assert 25 < flips < 70  # half of 120 images; a grey one looks the same


def cut_training_images(images, cutout, policy=None):
    transform = PolicyTransform(policy) if policy else lambda image, generator: image
    return TrainImages(images, [33], transform, seed=3, cutout=cutout)


def test_cutout_blanks_a_square_around_a_uniform_pixel_of_each_normalised_image(images):
    plain, cut = cut_training_images(images, 0), cut_training_images(images, 10)
    lefts, tops = [], []
    for epoch in range(40):
        before, after = epoch_of(plain, epoch), epoch_of(cut, epoch)
        cut.set_epoch(epoch)
        for index in range(len(images)):
            left, top, right, bottom = cut[index]["cutout"].tolist()
            assert (right - left, bottom - top) == (10, 10)
            expected = before[index].clone()
            expected[:, max(top, 0):bottom, max(left, 0):right] = 0
            assert torch.equal(after[index], expected)
            lefts.append(left)
            tops.append(top)
    # The centre, five pixels right and down of the corner, is any of the image's 33 x 33 pixels: 480 draws miss no row.
    assert set(lefts) == set(tops) == set(range(-5, 28))
    assert abs(np.corrcoef(lefts, tops)[0, 1]) < 0.2
    assert not torch.equal(epoch_of(cut, 0), epoch_of(cut, 1))


def test_cutout_comes_after_the_policy_in_the_workers_and_on_the_device(images):
    in_workers = cut_training_images(images, 11, SPREAD)
    on_device = DrawnImages(images, [33], PolicyTransform(SPREAD), seed=3, cutout=11)
    uncut = cut_training_images(images, 0, SPREAD)
    for epoch in range(3):
        expected = epoch_of(in_workers, epoch)
        assert torch.equal(epoch_of(on_device, epoch, workers=epoch % 2), expected)
        blanked = (expected == 0).all(1, keepdim=True)
        assert torch.equal(torch.where(blanked, 0, epoch_of(uncut, epoch)), expected)
        assert (blanked.flatten(1).sum(1) >= 30).all()  # a corner of 11 x 11 pixels has 30 of them, or 36


def test_boxes_are_clipped_and_each_image_has_its_own():
    boxes = torch.tensor([[-3, -2, 2, 1], [4, 3, 9, 9], [0, 0, 6, 5], [7, 7, 9, 9]])
    images = torch.ones(4, 2, 5, 6)
    result = blank(images, boxes)
    expected = images.clone()
    expected[0, :, :1, :2] = 0
    expected[1, :, 3:, 4:] = 0
    expected[2] = 0
    assert torch.equal(result, expected) and images.min() == 1
