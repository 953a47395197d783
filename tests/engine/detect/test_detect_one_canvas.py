"""The search on a detector and ApplyPolicy make the same of an image: pixels, boxes and masks, on its own canvas."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from dada_det.augment import OPERATION_NAMES, Draws, apply_draws_pil
from dada_det.augment.operations import INDEX
from dada_det.data.detection import PADDING, apply_with_instances, load_coco
from dada_det.engine.detect.policy_transform import ApplyPolicy
from dada_det.engine.search.detector_losses import data_sample
from tests.engine.detect.test_detect_policy_transform import always, coco

SIDE = 64
SIZES = ((64, 48), (40, 64), (64, 64), (64, 32))  # width, height; the longer side is SIDE, so that nothing is scaled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A COCO folder of noisy images, landscape and portrait, each with three instances with masks."""
    root, random = tmp_path_factory.mktemp("canvas"), np.random.default_rng(0)
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number, (width, height) in enumerate(SIZES):
        pixels = random.integers(30, 220, (height, width, 3)) // (1 + 3 * (np.arange(width)[None, :, None] > width / 2))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"train/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for _ in range(3):
            left, top = int(random.integers(0, width - 12)), int(random.integers(0, height - 12))
            mask = np.zeros((height, width), np.uint8, order="F")
            mask[top:top + 12, left:left + 9] = 1
            mask[top, left] = 0  # no rectangle
            run_lengths = coco_mask.encode(mask)
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 107,
                                "bbox": [left, top, 9, 12], "segmentation": {"size": [height, width],
                                                                             "counts": run_lengths["counts"].decode()}})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize("names", [*((name,) for name in OPERATION_NAMES), ("ShearX", "TranslateY"), ("Rotate", "Equalize")],
                         ids="+".join)
def test_search_and_apply_policy_agree_in_pixels_boxes_and_masks(names, masks, folder):
    dataset = coco(folder, with_mask=masks)
    memory, _ = load_coco(folder / "annotations/instances_train.json", folder / "train", SIDE, masks, None,
                          torch.Generator().manual_seed(0))
    step = ApplyPolicy(always(*names), recompute_bbox=masks)
    step.set_epoch(1)
    results = [dataset[index] for index in range(len(dataset))]
    each = [step._draw(result["sample_idx"]) for result in results]
    draws = Draws(*(torch.cat(fields) for fields in zip(*(draw._tensors() for draw in each), strict=True)))
    images, targets = memory.batch(torch.arange(len(memory)))
    # Two policies of each image, as a search draws them.
    pixels, moved = apply_with_instances(images.repeat(2, 1, 1, 1), targets.repeat(2),
                                         Draws(*(tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in draws._tensors())),
                                         "strength")
    changed = 0
    for row in range(2 * len(results)):
        result = step.transform(dict(results[row % len(results)]))
        width, height = SIZES[row % len(results)]
        changed += not torch.equal(pixels[row], images[row % len(results)])
        assert np.array_equal(pixels[row, :, :height, :width].permute(1, 2, 0).numpy(), result["img"][..., ::-1])
        assert (pixels[row, :, height:] == torch.tensor(PADDING)[:, None, None]).all()
        assert (pixels[row, :, :, width:] == torch.tensor(PADDING)[:, None, None]).all()
        assert torch.equal(moved.boxes_M4[row], result["gt_bboxes"].tensor)
        assert moved.labels_M[row].tolist() == result["gt_bboxes_labels"].tolist()
        if masks:
            assert np.array_equal(moved.masks_MSS[row][:, :height, :width].numpy(), result["gt_masks"].masks)
            assert not moved.masks_MSS[row][:, height:].any() and not moved.masks_MSS[row][:, :, width:].any()
    assert changed > len(results)


def test_a_translation_is_a_share_of_the_image_and_not_of_its_square(tmp_path):
    """640 x 480: half of TranslateY's range is 108 px, which it would be 144 px of the padded square."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (640, 480), "red").save(tmp_path / "train/0.png")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [100, 300, 10, 10]}
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "0.png", "width": 640, "height": 480}],
                                                 "annotations": [entry], "categories": [{"id": 1, "name": "a"}]}))
    memory, _ = load_coco(tmp_path / "a.json", tmp_path / "train", 640, False, None, torch.Generator())
    draws = Draws(torch.tensor([[INDEX["TranslateY"]]]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([[0.5]]),
                  torch.ones(1, 1), torch.zeros(1, 1, 2))
    images, targets = memory.batch(torch.tensor([0]))
    pixels, moved = apply_with_instances(images, targets, draws, "strength")
    assert moved.boxes_M4[0].tolist() == [[100, 192, 110, 202]]
    expected = apply_draws_pil(Image.new("RGB", (640, 480), "red"), draws, "strength")
    assert np.array_equal(pixels[0, :, :480].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_flips_leave_the_padding_where_it_is(folder):
    memory, _ = load_coco(folder / "annotations/instances_train.json", folder / "train", SIDE, True, None,
                          torch.Generator().manual_seed(0))
    rows = torch.arange(len(memory))
    plain, before = memory.batch(rows)
    images, targets = memory.batch(rows, torch.tensor([True, True, False, True]))
    for row, flipped in enumerate((True, True, False, True)):
        width, height = SIZES[row]
        assert torch.equal(images[row, :, :height, :width], plain[row, :, :height, :width].flip(2) if flipped
                           else plain[row, :, :height, :width])
        assert torch.equal(images[row, :, height:], plain[row, :, height:])
        assert torch.equal(images[row, :, :, width:], plain[row, :, :, width:])
        boxes = before.boxes_M4[row].clone()
        if flipped:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        assert torch.equal(targets.boxes_M4[row], boxes)
        assert torch.equal(targets.masks_MSS[row][:, :height, :width].bool(),
                           (before.masks_MSS[row].flip(2)[:, :height, SIDE - width:] if flipped
                            else before.masks_MSS[row][:, :height, :width]).bool())
    assert torch.equal(memory.images_NCHW, plain)  # what is kept stays as it is


def test_the_detector_is_told_the_size_without_padding(folder):
    memory, _ = load_coco(folder / "annotations/instances_train.json", folder / "train", SIDE, True, None,
                          torch.Generator().manual_seed(0))
    images, targets = memory.batch(torch.arange(4))
    shapes = [data_sample(targets, row, images).metainfo for row in range(4)]
    assert [shape["img_shape"] for shape in shapes] == [(height, width) for width, height in SIZES]
    assert [shape["pad_shape"] for shape in shapes] == [(64, 64), (64, 64), (64, 64), (32, 64)]  # multiples of 32
    assert {shape["batch_input_shape"] for shape in shapes} == {(SIDE, SIDE)}
    assert [targets[torch.tensor([3, 0])].sizes, targets[1:2].sizes] == [[(32, 64), (48, 64)], [(64, 40)]]
