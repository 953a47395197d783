"""Detection images in memory against mmdet's own loading rules, and policies on them against rendering."""

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from dada_det.augment import OPERATIONS, Draws, apply_draws
from dada_det.augment.boxes import mask_extents
from dada_det.augment.operations import INDEX
from dada_det.data.checks import find_annotations
from dada_det.data.detection import PADDING, DetectionTargets, apply_with_instances, load_coco
from planted_coco import detector_oracle, moved, plant_detection, write_coco
from tests.messages import refused

SIDE = 64
GEOMETRY = [name for name, spec in OPERATIONS.items() if spec.kind == "affine"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def entry(number, image, box, category=7, **changes):
    x, y, w, h = box
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": w * h, "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], **changes}


@pytest.fixture
def folder(tmp_path):
    """Two images with objects, one without, and objects that mmdet's training leaves out."""
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    rle = coco_mask.encode(np.asfortranarray(np.pad(np.ones((20, 30), np.uint8), ((10, 30), (40, 50)))))
    for number, size in ((1, (120, 60)), (2, (32, 64)), (3, (64, 64))):
        Image.new("RGB", size, (10 * number, 0, 0)).save(tmp_path / f"train/{number}.png")
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "width": w, "height": h}
                   for number, w, h in ((1, 120, 60), (2, 32, 64), (3, 64, 64))],
        "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
        "annotations": [
            entry(1, 1, [40, 10, 30, 20], segmentation={"size": [60, 120], "counts": rle["counts"].decode()}),
            entry(2, 1, [-10, 20, 30, 10], 9), entry(3, 1, [0, 0, 50, 50], iscrowd=1), entry(4, 1, [5, 5, 0.5, 9]),
            entry(5, 1, [5, 5, 9, 9], area=0), entry(6, 1, [130, 5, 9, 9]), entry(7, 1, [5, 5, 1, 1]),
            entry(8, 2, [4, 8, 16, 24], segmentation=None)]}
    (tmp_path / "annotations/train.json").write_text(json.dumps(content))
    return tmp_path


def test_absolute_names_are_kept_relative_to_the_folder(folder):
    path = folder / "annotations/train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = str(folder / "train/1.png")
    path.write_text(json.dumps(content))
    assert load_coco(path, folder / "train", SIDE, True, None, generator())[0].names == ["1.png", "2.png"]


def test_images_are_scaled_and_padded_and_their_instances_follow(folder):
    memory, broken = load_coco(folder / "annotations/train.json", folder / "train", SIDE, True, None, generator())
    assert broken == []
    assert len(memory) == 2  # the third has nothing on it
    assert memory.images_NCHW.shape == (2, 3, SIDE, SIDE)
    assert (memory.images_NCHW[0, :, 32:] == torch.tensor(PADDING)[:, None, None]).all()
    assert (memory.images_NCHW[0, 0, :32] == 10).all()
    assert (memory.images_NCHW[1, :, :, 32:] == torch.tensor(PADDING)[:, None, None]).all()
    scale = torch.tensor([64 / 120, 32 / 60] * 2)
    torch.testing.assert_close(memory.boxes_M4[0], torch.tensor([[40.0, 10, 70, 30], [0, 20, 20, 30]]) * scale)
    assert torch.equal(memory.labels_M[0], torch.tensor([1, 0]))  # by the categories' order in the file
    assert torch.equal(memory.boxes_M4[1], torch.tensor([[4.0, 8, 20, 32]]))
    images, targets = memory.batch(torch.tensor([0, 1]))
    extents, some = mask_extents(targets.masks_MSS[0])
    assert some.all()
    assert (extents - targets.boxes_M4[0]).abs().max() <= 1
    assert targets.masks_MSS[1].sum() == 0  # no segmentation: an empty mask
    assert torch.equal(images, memory.images_NCHW)
    assert load_coco(folder / "annotations/train.json", folder / "train", SIDE, False, None, generator())[0].masks is None


def test_some_images_are_drawn_by_the_generator(folder):
    drawn = {load_coco(folder / "annotations/train.json", folder / "train", SIDE, False, 1, generator(seed))[0]
             .images_NCHW[0, 0, 0, 0].item() for seed in range(8)}
    assert drawn == {10, 20}


def test_a_file_without_a_box_that_counts_is_a_users_mistake(folder):
    with refused("train.json", "1 px", "2 px", "--image-size"):
        load_coco(folder / "annotations/train.json", folder / "train", 2, False, None, generator())


def test_images_that_do_not_decode_are_left_out_and_named(folder):
    def loads():
        return load_coco(folder / "annotations/train.json", folder / "train", SIDE, True, None, generator())

    (folder / "train/2.png").write_bytes(b"no image")
    memory, broken = loads()
    assert (len(memory), broken) == (1, ["2.png"])
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/nonexistent/image.png", path)):
        (folder / "train/2.png").rename(folder / "train" / f"away{make}")
        make(folder / "train/2.png")
        assert loads()[1] == ["2.png"]


def test_an_image_of_another_size_is_refused_with_both_sizes(folder):
    """An image scaled down, and a photograph that stands upright only by its EXIF orientation; a JPEG is decoded smaller."""
    Image.new("RGB", (16, 32)).save(folder / "train/2.png")
    with refused("2.png", re.compile("32 x 64 px in .*train.json"), re.compile("16 x 32 px in .*train,"), "correct"):
        load_coco(folder / "annotations/train.json", folder / "train", SIDE, True, None, generator())
    exif = Image.Exif()
    exif[0x0112] = 6
    for size, lies in (((32, 64), True), ((64, 32), False)):
        Image.new("RGB", size).save(folder / "train/2.png", "JPEG", exif=exif)
        if lies:
            with refused("2.png", re.compile("32 x 64 px in .*train.json"), re.compile("64 x 32 px in .*train "), "EXIF"):
                load_coco(folder / "annotations/train.json", folder / "train", 8, True, None, generator())
        else:
            assert len(load_coco(folder / "annotations/train.json", folder / "train", SIDE, True, None, generator())[0]) == 2


def test_what_training_ignores_and_small_images_are_left_out(folder):
    content = json.loads((folder / "annotations/train.json").read_text())
    content["annotations"][0]["ignore"] = 1
    content["images"].append({"id": 4, "file_name": "4.png", "width": 80, "height": 31})
    content["annotations"].append(entry(9, 4, [4, 8, 16, 16]))
    Image.new("RGB", (80, 31)).save(folder / "train/4.png")
    (folder / "annotations/train.json").write_text(json.dumps(content))
    memory, _ = load_coco(folder / "annotations/train.json", folder / "train", SIDE, False, None, generator())
    assert list(map(len, memory.labels_M)) == [1, 1]


def test_a_box_of_which_half_a_pixel_is_seen_is_learned_as_in_training(folder):
    content = json.loads((folder / "annotations/train.json").read_text())
    content["annotations"].append(entry(9, 3, [-9.5, 5, 10, 9]))
    (folder / "annotations/train.json").write_text(json.dumps(content))
    memory, _ = load_coco(folder / "annotations/train.json", folder / "train", SIDE, False, None, generator())
    assert torch.equal(memory.boxes_M4[2], torch.tensor([[0, 5, 0.5, 14]]))


def test_the_only_image_must_decode(folder):
    content = json.loads((folder / "annotations/train.json").read_text())
    content["images"] = content["images"][:1]
    (folder / "annotations/train.json").write_text(json.dumps(content))
    (folder / "train/1.png").write_bytes(b"no image")
    with refused("1.png", folder / "train", "whole"):
        load_coco(folder / "annotations/train.json", folder / "train", SIDE, False, None, generator())


def test_mirrored_images_have_mirrored_boxes_and_masks(folder):
    memory, _ = load_coco(folder / "annotations/train.json", folder / "train", SIDE, True, None, generator())
    plain, before = memory.batch(torch.tensor([0, 0]))
    images, targets = memory.batch(torch.tensor([0, 0]), torch.tensor([False, True]))
    assert torch.equal(images[0], plain[0])
    assert torch.equal(images[1], plain[1].flip(2))
    assert torch.equal(targets.boxes_M4[0], before.boxes_M4[0])
    assert torch.equal(targets.masks_MSS[1], before.masks_MSS[1].flip(2))
    assert (mask_extents(targets.masks_MSS[1])[0] - targets.boxes_M4[1]).abs().max() <= 1


def test_targets_have_the_rows_that_the_core_asks_for():
    targets = DetectionTargets([torch.full((k, 4), float(k)) for k in range(4)], [torch.full((k,), k) for k in range(4)])
    assert len(targets) == 4
    assert [len(b) for b in targets[1:3].boxes_M4] == [1, 2]
    assert [len(b) for b in targets[torch.tensor([3, 0])].labels_M] == [3, 0]
    assert [len(b) for b in targets.repeat(2).boxes_M4] == [0, 1, 2, 3, 0, 1, 2, 3]
    first = [torch.zeros(1, 4)] * 4
    assert targets.proposals(lambda: first) is first and targets.proposals(lambda: []) is first
    for others in (targets[:4], targets.repeat(1)):  # other objects, which have made none
        assert others.proposals(lambda: []) == []


@pytest.fixture(scope="module")
def drawn_boxes():
    """24 images whose pixels are their instances, red, green and blue, on black, with boxes and masks."""
    source = generator(4)
    boxes, masks = [], []
    for _ in range(24):
        low = torch.randint(0, 44, (3, 2), generator=source)
        size = torch.randint(4, 20, (3, 2), generator=source)
        boxes.append(torch.cat([low, low + size], 1).float())
        grid = torch.arange(SIDE)
        inside = [(grid >= low[:, axis:axis + 1]) & (grid < (low + size)[:, axis:axis + 1]) for axis in (0, 1)]
        masks.append((inside[1][:, :, None] & inside[0][:, None, :]).byte())
    return torch.stack(masks) * 255, DetectionTargets(boxes, [torch.arange(3)] * 24, masks)


def always(name, n):
    return Draws(torch.full((n, 1), INDEX[name]), torch.ones(n, 1, dtype=torch.bool), torch.ones(n, 1), torch.ones(n, 1),
                 torch.zeros(n, 1, 2))


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize("names", [*((name,) for name in GEOMETRY), ("ShearX", "Rotate")], ids="+".join)
def test_a_batchs_boxes_are_where_they_are_rendered(names, masks, drawn_boxes):
    images, targets = drawn_boxes
    n = len(images)
    source = generator(7)
    shape = (n, len(names))
    draws = Draws(torch.tensor([INDEX[name] for name in names]).expand(n, -1), torch.rand(shape, generator=source) < 0.8,
                  torch.rand(shape, generator=source), torch.randint(0, 2, shape, generator=source) * 2.0 - 1,
                  torch.rand(*shape, 2, generator=source))
    given = targets if masks else DetectionTargets(targets.boxes_M4, targets.labels_M)
    pixels, out = apply_with_instances(images, given, draws, "strength")
    assert torch.equal(pixels, apply_draws(images, draws, "strength"))
    dropped = 0
    for row in range(n):
        rendered, seen = mask_extents(pixels[row] > 0)  # each instance is a colour channel
        labels = out.labels_M[row]
        dropped += 3 - len(labels)
        if masks:
            assert torch.equal(labels, seen.nonzero().flatten())
            assert torch.equal(out.boxes_M4[row], rendered[labels])
            assert torch.equal(out.masks_MSS[row], (pixels[row][labels] > 0).byte())
        else:
            assert set(labels.tolist()) >= set(seen.nonzero().flatten().tolist())
            both = seen[labels]
            outside = torch.cat([out.boxes_M4[row][:, :2] - rendered[labels][:, :2],
                                 rendered[labels][:, 2:] - out.boxes_M4[row][:, 2:]], 1)[both]
            assert outside.numel() == 0 or outside.max() < 1.5  # what is rendered lies in the box
            if len(names) == 1 and not names[0].startswith("Rotate"):
                assert outside.numel() == 0 or outside.min() > -1.5 - 0.3 * 20 * names[0].startswith("Shear")
    assert dropped > 0 or not names[0].startswith("Translate")
    assert len(targets.labels_M[0]) == 3  # the batch that was given is as it was


def test_colours_leave_instances_alone_and_an_image_may_lose_all(drawn_boxes):
    images, targets = drawn_boxes
    _, out = apply_with_instances(images, targets, always("Invert", 24), "strength")
    assert all(torch.equal(a, b) for a, b in zip(out.boxes_M4, targets.boxes_M4, strict=True))
    one = DetectionTargets([torch.tensor([[0.0, 0, 9, 9]])], [torch.zeros(1).long()])
    _, out = apply_with_instances(images[:1], one, always("TranslateX", 1), "strength")
    assert (out.boxes_M4[0].shape, out.labels_M[0].shape) == ((0, 4), (0,))


def test_val_data_is_a_file_or_a_folder(folder):
    assert find_annotations(folder) == (folder / "annotations/train.json", folder / "train")
    assert find_annotations(folder / "annotations/train.json") == (folder / "annotations/train.json", folder / "train")
    (folder / "annotations/instances_train.json").write_text((folder / "annotations/train.json").read_text())
    assert find_annotations(folder / "annotations/instances_train.json")[1] == folder / "train"
    (folder / "beside.json").write_text("{}")
    assert find_annotations(folder / "beside.json")[1] == folder
    with refused("--val-data", "no.json", "COCO"):
        find_annotations("no.json")


@pytest.fixture(scope="module")
def inverted(shared):
    return plant_detection("Invert", 0, shared / "data/nuclei", 128)


def test_a_planted_shift_moves_two_thirds_with_their_masks(inverted):
    train, val, unseen = inverted
    assert min(map(len, (train, val, unseen))) > 350
    assert train.images_NCHW.float().mean() < 60 < 180 < val.images_NCHW.float().mean()
    hashes = [{bytes(image.numpy().data) for image in part} for part in
              (train.images_NCHW, 255 - val.images_NCHW, 255 - unseen.images_NCHW)]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
    turned = moved(train[torch.arange(40)], "Rotate", generator())
    for part in (train, turned):
        _, targets = part.batch(torch.arange(20))
        for boxes, masks in zip(targets.boxes_M4, targets.masks_MSS, strict=True):
            assert torch.equal(boxes, mask_extents(masks)[0])
    assert detector_oracle("Rotate").sub_policies[0].operations[0].magnitude == 1.0


def test_what_is_written_is_what_is_loaded(inverted, tmp_path):
    images = inverted[0][torch.arange(12)]
    root = write_coco(tmp_path, train=images)
    again, _ = load_coco(root / "annotations/instances_train.json", root / "train", 128, True, None, generator())
    assert torch.equal(again.images_NCHW, images.images_NCHW)
    for name in ("boxes_M4", "labels_M"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(again, name), getattr(images, name), strict=True))
    assert again.masks == images.masks
