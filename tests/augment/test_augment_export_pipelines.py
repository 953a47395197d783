"""Exported code in the pipelines of the packages it was written for."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import OPERATION_NAMES, Draws, Operation, Policy, PolicyTransform, SubPolicy, apply_draws_pil
from dada_det.augment.export import export
from dada_det.augment.named import resolve_policy
from tests.messages import refused

EVERYTHING = Policy("strength", tuple(SubPolicy(index + 1.0, (Operation(name, 0.9, 0.7, 0.5),))
                                      for index, name in enumerate(OPERATION_NAMES)))


@pytest.fixture(autouse=True)
def global_generator():
    """The exported code reads torch's global generator; other tests get it back as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, size=(51, 64, 3), dtype=np.uint8)


def chw(image):
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def run_code(policy, target):
    """The names that the exported code defines."""
    module = types.ModuleType("exported")
    exec(export(policy, target), module.__dict__)
    return module


@pytest.mark.parametrize("flips", [{}, {"hflip": 0.0}], ids=["flips", "no flips"])
def test_timms_transform_takes_the_policy_in_as_the_codes_head_says(image, flips):
    from timm.data import create_transform

    transform = create_transform(48, is_training=True, color_jitter=None, **flips)
    policy = resolve_policy("dada-imagenet")
    assert "# transform.transforms.insert(1, AugmentationPolicy())" in export(policy, "timm").splitlines()
    transform.transforms.insert(1, run_code(policy, "timm").AugmentationPolicy())
    assert type(transform.transforms[0]).__name__ == "RandomResizedCropAndInterpolation"
    assert transform(Image.fromarray(image)).shape == (3, 48, 48)


def test_in_torchvision_boxes_and_masks_follow_and_colours_leave_them_alone():
    from torchvision import tv_tensors

    inside = torch.zeros(1, 80, 90, dtype=torch.bool)
    inside[:, 20:50, 30:70] = True
    image = tv_tensors.Image(inside.expand(3, -1, -1).to(torch.uint8) * 255)
    for name, moves in (("Rotate", True), ("ShearX", True), ("ShearY", True), ("TranslateX", True), ("TranslateY", True),
                        ("Brightness", False), ("Solarize", False), ("Cutout", False)):
        transform = run_code(Policy("strength", (SubPolicy(1.0, (Operation(name, 1.0, 0.6),)),)), "torchvision")
        boxes = tv_tensors.BoundingBoxes([[30, 20, 70, 50]], format="XYXY", canvas_size=(80, 90))
        torch.manual_seed(3)
        sample = transform.AugmentationPolicy()(
            {"image": image, "boxes": boxes, "masks": tv_tensors.Mask(inside), "label": 5})
        assert sample["label"] == 5 and torch.equal(sample["masks"], inside) != moves, name
        if moves:
            assert torch.equal(sample["masks"][0], sample["image"][0] > 0), name
            rows, columns = sample["masks"][0].any(1).nonzero(), sample["masks"][0].any(0).nonzero()
            extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (sample["boxes"][0] - extent).abs().max() <= 1, name
        else:
            assert torch.equal(sample["boxes"], boxes), name


def test_torchvision_takes_uint8_of_any_batch_and_nothing_else(image):
    transform = run_code(EVERYTHING, "torchvision").AugmentationPolicy()
    batch = torch.stack([chw(image), chw(image[::-1].copy())])
    for seed in range(30):
        torch.manual_seed(seed)
        together = transform(batch)
        torch.manual_seed(seed)
        assert torch.equal(together[1], transform(batch[1])) and together.dtype == torch.uint8
    with refused("uint8", "torch.float32", "v2.ToDtype", error=TypeError):
        transform(batch.float())
    grey = Image.fromarray(image).convert("L")
    assert transform(grey).mode == "RGB"


def test_mmpretrains_pipeline_runs_the_file(image, tmp_path, monkeypatch):
    pytest.importorskip("mmpretrain")
    from mmcv.transforms import Compose
    from mmengine import Config
    from mmpretrain.registry import TRANSFORMS

    policy = resolve_policy("dada-imagenet")
    (tmp_path / "augmentation_policy.py").write_text(export(policy, "mmpretrain"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.py").write_text(
        "custom_imports = dict(imports=['augmentation_policy'], allow_failed_imports=False)\n"
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='AugmentationPolicy'), dict(type='PackInputs')]\n")
    Image.fromarray(image).save(tmp_path / "in.png")
    config = Config.fromfile(tmp_path / "config.py")
    import mmpretrain.datasets.transforms  # noqa: F401

    pipeline = Compose([TRANSFORMS.build(step) for step in config.pipeline])
    for seed in range(20):
        torch.manual_seed(seed)
        got = pipeline({"img_path": str(tmp_path / "in.png"), "gt_label": 3})["inputs"]
        expected = PolicyTransform(policy)(Image.fromarray(image), torch.Generator().manual_seed(seed))
        assert torch.equal(got, chw(np.array(expected)[..., ::-1].copy()))


def test_mmdets_config_builds_and_renders_every_operation(image, tmp_path):
    from mmengine import Config

    policy = Policy("autoaugment", EVERYTHING.sub_policies, {"source": "it's \"quoted\"\n'''", "seeds": [1, None, True]})
    (tmp_path / "config.py").write_text(export(policy, "mmdet"))
    config = Config.fromfile(tmp_path / "config.py")
    from mmdet.registry import TRANSFORMS

    # Another test may have left mmengine as the default scope.
    transform = TRANSFORMS.build({**config.augmentation_policy, "_scope_": "mmdet"})
    assert transform.policy_transform.policy == policy
    generator = torch.Generator().manual_seed(2)
    for index, name in enumerate(OPERATION_NAMES):
        for sign in (1.0, -1.0):
            draws = Draws(torch.tensor([[index]]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([[0.8]]),
                          torch.tensor([[sign]]), torch.rand(1, 1, 2, generator=generator))
            transform._draw = lambda image_index, draws=draws: draws
            got = transform.transform({"img": image[..., ::-1].copy()})["img"][..., ::-1]
            assert np.array_equal(got, np.array(apply_draws_pil(Image.fromarray(image), draws, "autoaugment"))), name
