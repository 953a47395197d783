"""Schedules and images as the pretraining configs state them: rates, sizes, and what happens to an image in which order."""

import numpy as np
import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from PIL import Image
from torchvision.transforms import ColorJitter

from dada_det.augment import Operation, Policy, PolicyTransform, SubPolicy
from dada_det.commands.common import load_config
from dada_det.data.decode import load_image
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import random_crop
from dada_det.data.random import generator_for
from dada_det.engine.pretrain.data import (
    PCA_COMPONENTS,
    PCA_EIGENVALUES,
    WholeBatches,
    image_sizes,
    lighten,
    loaders,
    training_images,
)
from dada_det.engine.pretrain.recipe import schedule
from tests.conftest import write_noise
from tests.messages import refused


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Eight images of two classes, 20 px."""
    return scan_folder(write_noise(tmp_path_factory.mktemp("images"), classes=2, images=4, side=20, spread=60))


def curve(config, updates_per_epoch):
    """The learning rate of each update, as mmengine's schedulers set it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(part, default_args={"optimizer": optimizer})
                  for part in schedule(config, updates_per_epoch)]
    rates = []
    for _ in range(config.epochs * updates_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def test_the_papers_learning_rate_is_02_warmed_up_to_twice_in_3_epochs_and_falls_at_90_180_and_240():
    config, per_epoch = load_config("configs/pretrain_r50_paper.py"), 5
    rates = curve(config, per_epoch)
    assert len(rates) == 270 * 5 and config.batch_size == config.auto_scale_lr.base_batch_size == 1024
    expected = {0: 0.2, 1: 0.2 * (1 + 1 / 3), 3: 0.4, 89: 0.4, 90: 0.04, 179: 0.04, 180: 0.004, 239: 0.004, 240: 0.0004}
    assert {epoch: rates[epoch * per_epoch] for epoch in expected} == pytest.approx(expected)
    assert rates[90 * per_epoch - 1] == pytest.approx(0.4) and rates[-1] == pytest.approx(0.0004)
    assert (config.optimizer.nesterov, config.optimizer.weight_decay, config.label_smoothing) == (True, 1e-4, 0)


def test_the_cosine_starts_at_the_end_of_the_warm_up_and_ends_at_zero():
    config, per_epoch = load_config("configs/pretrain_r50.py"), 4
    rates = curve(config, per_epoch)
    assert rates[0] == pytest.approx(0.1 / 21) and rates[20] == pytest.approx(0.1) and max(rates) == rates[20]
    assert rates[210] == pytest.approx(0.05) and 0 < rates[-1] < 1e-5  # halfway between 20 and 400


def test_a_short_run_keeps_the_papers_shape():
    config = load_config("configs/pretrain_r50_paper.py", ["epochs=27"])
    rates = curve(config, 10)
    assert [rates[step] for step in (0, 27, 89, 90, 180, 240)] == pytest.approx([0.2, 0.4, 0.4, 0.04, 0.004, 0.0004])


def test_the_modern_recipe_grows_from_160_to_224_px_and_is_at_full_size_in_the_last_quarter():
    sizes = image_sizes(load_config("configs/pretrain_r50_modern.py"))
    assert sizes == [160] * 38 + [192] * 37 + [224] * 25
    assert sum(size**2 for size in sizes) / (100 * 224**2) == pytest.approx(0.72, abs=0.005)  # as its docstring says
    assert image_sizes(load_config("configs/pretrain_r50_modern.py", ["epochs=1"])) == [224]
    assert image_sizes(load_config("configs/pretrain_r50.py", ["epochs=3"])) == [224] * 3


SOLARIZE = Policy("strength", (SubPolicy(1.0, (Operation("Solarize", 1.0, 0.5, 0.3),)),))  # a threshold: order shows
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}


def test_crop_flip_policy_jitter_and_lighting_come_in_this_order(listed):
    options = ["image_size=16", "epochs=3", "seed=5", "color_jitter.brightness=0.4", "color_jitter.contrast=0.4",
               "color_jitter.saturation=0.4", "lighting=0.1"]
    dataset = training_images(load_config("configs/pretrain_r50.py", options), listed, SOLARIZE)
    dataset.set_epoch(2)
    for index in range(len(listed)):
        stream = generator_for(5, 2, index)
        image = load_image(listed.path(index))
        image = image.resize((16, 16), Image.Resampling.BILINEAR, box=random_crop(*image.size, stream))
        if torch.rand((), generator=stream) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = PolicyTransform(SOLARIZE)(image, generator=stream)
        torch.manual_seed(int(torch.randint(2**62, (), generator=stream)))
        image = ColorJitter(**JITTER)(image)
        alphas = 0.1 * torch.randn(3, generator=stream, dtype=torch.float64).numpy()
        shifts = 255 * (PCA_COMPONENTS * alphas * PCA_EIGENVALUES).sum(1)
        expected = (np.asarray(image) + shifts).round().clip(0, 255).astype(np.uint8)
        assert np.array_equal(dataset[index]["image"].permute(1, 2, 0).numpy(), expected)


def test_the_papers_config_jitters_and_lightens_by_seed_epoch_and_index_alone(listed):
    config = load_config("configs/pretrain_r50_paper.py", ["image_size=16"])
    assert (dict(config.color_jitter), config.lighting) == (JITTER, 0.1)
    dataset, again = (training_images(config, listed, None) for _ in range(2))
    state = torch.get_rng_state()
    first = dataset[3]["image"]
    assert torch.equal(torch.get_rng_state(), state)  # torchvision's global draws are given back
    torch.rand(7)
    assert torch.equal(again[3]["image"], first)
    again.set_epoch(1)
    assert not torch.equal(again[3]["image"], first)


def test_lighting_shifts_every_pixel_along_the_principal_colours():
    grey = Image.new("RGB", (2, 2), (100, 100, 250))
    # The first component is nearly grey: 255 * 0.2175 * 0.57 = 31 levels for an alpha of 1, and white stays white.
    assert lighten(grey, np.array([-1.0, 0.0, 0.0])).getpixel((0, 0)) == (131, 132, 255)
    assert lighten(grey, np.zeros(3)).getpixel((1, 1)) == (100, 100, 250)


@pytest.mark.parametrize(("images", "batch", "kept", "in_pairs"), [(29, 64, 29, 28), (30, 64, 30, 30), (29, 8, 24, 24),
                                                                   (1, 8, 1, 0)])
def test_fewer_images_than_a_batch_are_an_even_number_where_pairs_are_mixed(images, batch, kept, in_pairs):
    for pairs, expected in ((False, kept), (True, in_pairs)):
        sampler = WholeBatches(range(images), batch, seed=0, pairs=pairs)
        assert len(sampler) == len(set(sampler)) == expected


def test_mixup_of_an_odd_part_of_a_batch_is_refused(listed):
    def made(*options):
        config = load_config("configs/pretrain_r50.py", ["image_size=16", "workers=0", "mixup.mixup_alpha=0.1", *options])
        return loaders(config, listed, listed, None)

    with refused("mixup", "1 processes", "7 at once", "batch_size 7", "accumulation 1", "--batch-size"):
        made("batch_size=7")
    with refused("3 at once", "batch_size 6", "accumulation 2"):
        made("batch_size=6", "accumulation=2")
    listed = listed.select(range(7))
    assert [len(batch["label"]) for batch in made("batch_size=8")[0]] == [6]
    listed = listed.select(range(1))
    with refused("mixup", "of 1 each of 1 processes", "more images"):
        made("batch_size=8")
