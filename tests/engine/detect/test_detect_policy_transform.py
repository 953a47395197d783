"""ApplyPolicy in MMDetection's own pipelines: boxes, masks and labels follow the image, on real annotations."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset, pseudo_collate
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from PIL import Image
from torch.utils.data import DataLoader

from dada_det.augment import OPERATIONS, Draws, PolicyTransform, apply_draws
from dada_det.augment.boxes import mask_extents
from dada_det.engine.detect.policy_transform import ApplyPolicy, PolygonMasks, datasets

GEOMETRY = [name for name, spec in OPERATIONS.items() if spec.kind == "affine"]
IMAGES = 10


def always(*names, magnitude=0.7):
    operations = [{"name": name, "probability": 1.0, "magnitude": magnitude} for name in names]
    return {"schema": 1, "ranges": "strength", "sub_policies": [{"weight": 1.0, "operations": operations}]}


def coco(folder, *steps, part="train", **loading):
    """The training part of a folder of data behind mmdet's own loading steps and `steps`."""
    annotations = next((folder / "annotations").glob(f"instances_{part}*.json"))
    images = next(folder.glob(f"{part}*"))
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_mask": True, **loading}, *steps]
    with DefaultScope.overwrite_default_scope("mmdet"):
        return datasets.CocoDataset(ann_file=str(annotations), data_prefix={"img": str(images)}, pipeline=pipeline,
                                    metainfo=None if "coco" in folder.name else {"classes": ("nucleus",)},
                                    filter_cfg={"filter_empty_gt": True}, serialize_data=False)


@pytest.fixture(scope="module")
def loaded(shared):
    """What mmdet loads for ten images of each data set: bitmaps, and the same as polygons."""
    found = {}
    for name in ("coco-tiny", "nuclei"):
        for kind, poly2mask in (("bitmaps", True), ("polygons", False)):
            dataset = coco(shared / "data" / name, poly2mask=poly2mask)
            found[name, kind] = [dataset[index] for index in range(IMAGES)]
    return found


def run(policy, results, **options):
    """(the step, its draw, what it made of a copy of `results`)."""
    step = ApplyPolicy(policy, **options)
    step.set_epoch(0)
    return step, step._draw(results["sample_idx"]), step.transform(copy.deepcopy(results))


def rendered(masks, draws, ranges):
    """Masks [N,H,W] drawn as pictures and moved by the image's own kernels; colours left out."""
    affine = torch.tensor([spec.kind == "affine" for spec in OPERATIONS.values()])
    draws = Draws(draws.operations_BK, draws.active_BK & affine[draws.operations_BK], draws.magnitudes_BK, draws.signs_BK,
                  draws.centers_BK2)
    channels = np.concatenate([masks, np.zeros_like(masks[:1]), np.zeros_like(masks[:1])])[:-(-len(masks) // 3) * 3]
    pictures = torch.from_numpy(channels.astype(np.uint8) * 255).unflatten(0, (-1, 3))  # three masks a picture
    moved = apply_draws(pictures, draws[torch.zeros(len(pictures), dtype=torch.long)], ranges)
    return (moved.flatten(0, 1)[:len(masks)] > 0).numpy()


POLICIES = [*(always(name) for name in GEOMETRY), always("ShearX", "Rotate"), "dada-imagenet", "uniform"]


@pytest.mark.parametrize("policy", POLICIES, ids=[*GEOMETRY, "two", "dada-imagenet", "uniform"])
@pytest.mark.parametrize("name", ["coco-tiny", "nuclei"])
def test_masks_move_with_the_pixels_and_boxes_hold_them(name, policy, loaded):
    moves, before, after, apart = 0, 0, 0, []
    for results in loaded[name, "bitmaps"]:
        step, draws, out = run(policy, results)
        expected = rendered(results["gt_masks"].masks, draws, step.policy_transform.policy.ranges)
        left = expected.any((1, 2))
        assert np.array_equal(out["gt_masks"].masks, expected[left])
        assert np.array_equal(out["gt_bboxes_labels"], results["gt_bboxes_labels"][left])
        assert np.array_equal(out["gt_ignore_flags"], results["gt_ignore_flags"][left])
        assert len(out["gt_bboxes"]) == left.sum()
        moves, before, after = moves + ("homography_matrix" in out), before + len(left), after + left.sum()
        assert out["img_shape"] == results["img_shape"] == out["img"].shape[:2]
        boxes, shape = out["gt_bboxes"].tensor, out["img"].shape
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([shape[1], shape[0]] * 2)).all()
        extents = mask_extents(torch.from_numpy(expected[left]))[0]
        apart.append(torch.cat([boxes[:, :2] - extents[:, :2], extents[:, 2:] - boxes[:, 2:]], 1))
    apart = torch.cat(apart)  # > 0: the mask reaches out of its box
    assert moves == IMAGES if isinstance(policy, dict) else 2 <= moves < IMAGES
    assert before / 2 < after <= before
    assert apart.max() < 2  # half a pixel an operation, and COCO's own boxes stand up to 1 inside their masks


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 0), ("TranslateY", 1)])
def test_instances_that_leave_are_dropped(name, axis, loaded):
    dropped = 0
    for results in loaded["coco-tiny", "bitmaps"]:
        _, draws, out = run(always(name, magnitude=1.0), results)
        masks = results["gt_masks"].masks
        share, side = 0.45 * float(draws.signs_BK[0, 0]), masks.shape[2 - axis]
        gone = slice(0, int(share * side)) if share > 0 else slice(side + int(np.ceil(share * side)), side)
        inside = np.moveaxis(masks, 2 - axis, 1).copy()
        inside[:, gone] = 0
        assert len(out["gt_bboxes"]) == inside.any((1, 2)).sum()
        dropped += len(masks) - len(out["gt_bboxes"])
    assert dropped > 5


@pytest.mark.parametrize("kind", ["bitmaps", "polygons"])
def test_boxes_may_be_recomputed_from_the_masks(kind, loaded):
    apart = []
    for results in loaded["coco-tiny", kind]:
        _, _, out = run(always("ShearY", "Rotate"), results, recompute_bbox=True)
        _, _, loose = run(always("ShearY", "Rotate"), results)
        drawn = torch.from_numpy(out["gt_masks"].to_ndarray())
        extents, visible = mask_extents(drawn)
        apart.append((out["gt_bboxes"].tensor - extents)[visible & ~torch.from_numpy(out["gt_ignore_flags"])].abs())
        assert out["gt_bboxes"].areas.sum() < loose["gt_bboxes"].areas.sum()
    # pycocotools rounds polygons to pixels, and leaves thin tips out.
    assert torch.cat(apart).quantile(0.98) < 1.5 if kind == "polygons" else torch.cat(apart).max() == 0


def test_polygons_stay_polygons_and_cover_what_their_bitmaps_cover(loaded):
    ious, count = [], 0
    for bitmaps, polygons in zip(loaded["coco-tiny", "bitmaps"], loaded["coco-tiny", "polygons"], strict=True):
        usable = ~polygons["gt_ignore_flags"]
        for key in ("gt_masks", "gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags"):
            bitmaps, polygons = ({**results, key: results[key][usable]} for results in (bitmaps, polygons))
        (_, _, pixels), (_, _, out) = (run(always("Rotate", magnitude=1.0), results) for results in (bitmaps, polygons))
        assert isinstance(out["gt_masks"], PolygonMasks)
        assert len(out["gt_masks"]) == len(out["gt_bboxes"]) == len(out["gt_bboxes_labels"])
        height, width = out["img"].shape[:2]
        for part in (part.reshape(-1, 2) for instance in out["gt_masks"] for part in instance):
            assert (part >= 0).all()
            assert (part <= [width, height]).all()
        drawn, expected = out["gt_masks"].to_ndarray(), pixels["gt_masks"].masks > 0
        if len(drawn) == len(expected):  # corners of less than a pixel may differ
            count += len(drawn)
            large = expected.sum((1, 2)) > 400
            ious.extend(((drawn & expected).sum((1, 2)) / (drawn | expected).sum((1, 2)))[large])
    assert count > 50
    assert np.median(ious) > 0.95
    assert min(ious) > 0.8


@pytest.mark.parametrize("policy", [always("Color", "Contrast"), always("Cutout", magnitude=1.0), "dada-imagenet"])
def test_colours_are_those_of_the_rgb_image(policy, loaded):
    for results in loaded["coco-tiny", "bitmaps"][:4]:
        step, draws, out = run(policy, results)
        rgb = Image.open(results["img_path"]).convert("RGB")
        assert np.abs(results["img"][..., ::-1].astype(int) - np.asarray(rgb)).mean() < 3  # mmdet gives BGR
        expected = PolicyTransform(step.policy_transform.policy).apply(
            Image.fromarray(np.ascontiguousarray(results["img"][..., ::-1])), draws)
        assert np.array_equal(out["img"][..., ::-1], np.asarray(expected))
        assert out["img"].flags.c_contiguous


def test_colour_alone_leaves_every_annotation_as_it_is(loaded):
    results = loaded["coco-tiny", "bitmaps"][0]
    _, _, out = run(always("Invert", "Cutout"), results)
    assert np.array_equal(out["gt_masks"].masks, results["gt_masks"].masks)
    assert torch.equal(out["gt_bboxes"].tensor, results["gt_bboxes"].tensor)
    assert not np.array_equal(out["img"], results["img"])
    assert "homography_matrix" not in out


def test_segmentation_maps_and_points_follow_too(loaded):
    results = copy.deepcopy(loaded["coco-tiny", "bitmaps"][0])
    masks = results["gt_masks"].masks
    results.update(gt_seg_map=masks[0] * 3, ignore_index=77)
    _, draws, out = run(always("ShearX", "Rotate"), results)
    moved = rendered(np.stack([masks[0], np.ones_like(masks[0])]), draws, "strength")
    assert np.array_equal(out["gt_seg_map"] == 3, moved[0])
    assert np.array_equal(out["gt_seg_map"] == 77, ~moved[1])
    middle = np.zeros_like(masks[:1])
    row, column = np.array(middle.shape[1:]) // 2 + [3, -5]
    middle[0, row, column] = 1
    (x1, y1, x2, y2), = mask_extents(torch.from_numpy(rendered(middle, draws, "strength")))[0].tolist()
    x, y, one = out["homography_matrix"] @ [column + 0.5, row + 0.5, 1]
    assert x1 - 1 < x < x2 + 1
    assert y1 - 1 < y < y2 + 1
    assert one == 1


def test_boxes_alone_and_plain_arrays_of_boxes(loaded):
    results = {key: value for key, value in loaded["coco-tiny", "bitmaps"][0].items() if key != "gt_masks"}
    _, _, out = run(always("TranslateY", magnitude=1.0), results)
    assert 0 < len(out["gt_bboxes"]) == len(out["gt_bboxes_labels"]) < len(results["gt_bboxes"])
    plain = {**results, "gt_bboxes": results["gt_bboxes"].numpy()}
    _, _, same = run(always("TranslateY", magnitude=1.0), plain)
    assert np.array_equal(same["gt_bboxes"], out["gt_bboxes"].numpy())
    image_only = {key: value for key, value in results.items() if not key.startswith("gt_")}
    _, _, image = run(always("TranslateY", magnitude=1.0), image_only)
    assert np.array_equal(image["img"], out["img"])


STEP = {"type": "ApplyPolicy", "policy": "dada-imagenet"}
RESIZE = {"type": "Resize", "scale": (200, 160), "keep_ratio": True}
REST = [{"type": "RandomFlip", "prob": 0.5}, {"type": "PackDetInputs"}]


@pytest.mark.parametrize("steps", [[STEP, RESIZE, *REST], [RESIZE, STEP, *REST]], ids=["before-resize", "behind-resize"])
@pytest.mark.parametrize("loading", [{}, {"poly2mask": False}, {"with_mask": False}], ids=["bitmaps", "polygons", "boxes"])
def test_whole_pipelines_pack_consistent_instances(steps, loading, shared):
    dataset = coco(shared / "data/coco-tiny", *steps, **loading)
    total = 0
    for index in range(IMAGES):
        sample = dataset[index]
        instances, (height, width) = sample["data_samples"].gt_instances, sample["data_samples"].img_shape
        assert sample["inputs"].shape == (3, height, width)
        assert len(instances.bboxes) == len(instances.labels)
        assert (instances.bboxes.tensor[:, 2:] > instances.bboxes.tensor[:, :2]).all()
        if loading.get("with_mask", True):
            assert len(instances.masks) == len(instances.bboxes)
            assert instances.masks.to_ndarray().shape == (len(instances.bboxes), height, width)
        total += len(instances.bboxes)
    assert total > 40


def images_of(loader):
    return [image for batch in loader for image in batch["inputs"]]


def equal(left, right):
    return [torch.equal(*pair) for pair in zip(left, right, strict=True)]


def test_draws_follow_from_seed_epoch_and_image_in_any_worker(shared):
    dataset = coco(shared / "data/nuclei", {"type": "ApplyPolicy", "policy": "uniform"}, {"type": "PackDetInputs"},
                   with_mask=False)
    dataset.data_list = dataset.data_list[:8]
    step = dataset.pipeline.transforms[2]
    step.set_epoch(3)
    here = images_of(DataLoader(dataset, 2, collate_fn=pseudo_collate))
    assert all(equal(here, images_of(DataLoader(dataset, 4, collate_fn=pseudo_collate))))
    workers = DataLoader(dataset, 2, collate_fn=pseudo_collate, num_workers=2, persistent_workers=True)
    assert all(equal(here, images_of(workers)))
    step.set_epoch(4)
    next_epoch = images_of(workers)  # the same processes see the epoch change
    assert sum(equal(here, next_epoch)) <= 2
    step.set_epoch(3)
    assert all(equal(here, images_of(workers)))


def test_the_hook_tells_the_epoch_where_an_image_comes_up_once_in_it(shared):
    data = coco(shared / "data/nuclei", {"type": "ApplyPolicy", "policy": "none"}, {"type": "PackDetInputs"})
    step = data.pipeline.transforms[2]
    hook = HOOKS.build({"type": "PolicyEpochHook"})

    def told(loop, dataset):
        step.set_epoch(-1)
        hook.before_train_epoch(SimpleNamespace(
            train_loop=object.__new__(loop), train_dataloader=SimpleNamespace(dataset=dataset), epoch=7))
        return int(step._epoch)

    assert told(EpochBasedTrainLoop, data) == 7
    assert told(EpochBasedTrainLoop, ConcatDataset([data, data])) == 7
    assert told(EpochBasedTrainLoop, RepeatDataset(data, 2)) == -1
    assert told(IterBasedTrainLoop, data) == -1


CONFIG = """
_base_ = "mmdet::_base_/datasets/coco_instance.py"
custom_imports = dict(imports=["dada_det.engine.policy_transform"], allow_failed_imports=False)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="ApplyPolicy", policy={policy!r}),
    dict(type="Resize", scale=(133, 80), keep_ratio=True),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    data_root="", ann_file={annotations!r}, data_prefix=dict(img={images!r}), pipeline=train_pipeline))
default_scope = "mmdet"
"""


def test_a_config_builds_it_by_custom_imports(shared, tmp_path):
    from mmcv.ops import roi_align
    from mmdet.structures.mask import structures

    folder = shared / "data/coco-tiny"
    text = CONFIG.format(policy=always("Rotate", "Invert"), annotations=str(folder / "annotations/instances_train2017.json"),
                         images=str(folder / "train2017"))
    (tmp_path / "config.py").write_text(text)
    config = Config.fromfile(tmp_path / "config.py")
    with DefaultScope.overwrite_default_scope("mmdet"):
        batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    assert len(batch["inputs"]) == 2
    assert all(len(sample.gt_instances.masks) for sample in batch["data_samples"])
    assert structures.roi_align is roi_align  # mmcv's operators were there when mmdet's masks were imported
