"""ApplyPolicy on images made here: what it is given, what it refuses, where its randomness comes from."""

import copy
import pickle

import numpy as np
import pytest
import torch

from dada_det.augment.named import resolve_policy
from dada_det.engine.detect.policy_transform import ApplyPolicy, BitmapMasks, HorizontalBoxes, PolygonMasks, datasets
from tests.messages import refused


def always(*names, magnitude=0.7):
    operations = [{"name": name, "probability": 1.0, "magnitude": magnitude} for name in names]
    return {"schema": 1, "ranges": "strength", "sub_policies": [{"weight": 1.0, "operations": operations}]}


def run(policy, results, **options):
    """(the step, its draw, what it made of a copy of `results`)."""
    step = ApplyPolicy(policy, **options)
    step.set_epoch(0)
    return step, step._draw(results["sample_idx"]), step.transform(copy.deepcopy(results))


@pytest.fixture
def results():
    """What mmdet's loading steps give for an image of noise with two boxes."""
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return {"img": image, "img_shape": (40, 60), "ori_shape": (40, 60), "sample_idx": 0,
            "gt_bboxes": HorizontalBoxes(torch.tensor([[0.0, 0, 4, 40], [56, 0, 60, 40]])),
            "gt_bboxes_labels": np.zeros(2, np.int64), "gt_ignore_flags": np.zeros(2, bool)}


def test_a_polygon_in_parts_loses_those_that_leave():
    square = np.array([0.0, 0, 8, 0, 8, 8, 0, 8])
    far = square + np.tile([30.0, 10.0], 4)
    results = {"img": np.zeros((40, 60, 3), np.uint8), "img_shape": (40, 60), "sample_idx": 0,
               "gt_bboxes": HorizontalBoxes(torch.tensor([[0.0, 0, 38, 18], [0, 0, 8, 8], [0, 0, 50, 30]])),
               "gt_bboxes_labels": np.arange(3), "gt_ignore_flags": np.array([False, False, True]),
               "gt_masks": PolygonMasks([[square, far], [square], [np.zeros(6)]], 40, 60)}
    shift = always("TranslateX", magnitude=12 / 27)  # 0.45 of 60 pixels at 1: 12 pixels to the left or the right
    outs = {}
    for index in range(12):
        _, draws, out = run(shift, {**results, "sample_idx": index}, recompute_bbox=True)
        outs[float(draws.signs_BK[0, 0])] = out
    left, right = outs[1.0], outs[-1.0]
    assert left["gt_bboxes_labels"].tolist() == [0, 2]  # the ignored one has no polygon and goes by its box
    np.testing.assert_allclose(left["gt_masks"].masks[0][0].reshape(-1, 2).min(0), [18, 10], atol=1e-4)
    assert len(left["gt_masks"].masks[0]) == 1
    np.testing.assert_allclose(left["gt_bboxes"].tensor, [[18, 10, 26, 18], [0, 0, 38, 30]], atol=1e-4)
    assert [len(parts) for parts in right["gt_masks"].masks] == [2, 1, 1]
    np.testing.assert_allclose(right["gt_bboxes"].tensor, [[12, 0, 50, 18], [12, 0, 20, 8], [12, 0, 60, 30]], atol=1e-4)


def test_an_image_that_loses_all_instances_is_packed_as_background(results):
    results["gt_masks"] = BitmapMasks(np.ones((2, 40, 60), np.uint8), 40, 60)
    results["gt_masks"].masks[:, :, 4:] = 0
    at_the_left = {**results, **{key: results[key][:1] for key in results if key.startswith("gt_")}}
    outs = [run(always("TranslateX", magnitude=0.3), {**at_the_left, "sample_idx": index})[2] for index in range(12)]
    assert {len(out["gt_bboxes"]) for out in outs} == {0, 1}  # 8 pixels to the left or to the right
    empty = next(out for out in outs if not len(out["gt_bboxes"]))
    packed = datasets.transforms.PackDetInputs(meta_keys=())(empty)["data_samples"].gt_instances
    assert len(packed.bboxes) == len(packed.labels) == len(packed.masks) == 0
    _, _, again = run(always("Rotate"), {**empty, "sample_idx": 0})  # a second step of the kind takes it as it is
    assert len(again["gt_masks"]) == 0


def test_without_an_epoch_numpy_s_generator_draws_as_in_mmdet_s_own_transforms(results):
    step = ApplyPolicy("uniform")
    images = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        images.append([step.transform(copy.deepcopy(results))["img"] for _ in range(4)])
    same, other = ([np.array_equal(*pair) for pair in zip(images[0], images[index], strict=True)] for index in (1, 2))
    assert all(same)
    assert not all(other)


def test_names_files_and_dicts_mean_the_same_policy(tmp_path, results):
    policy = resolve_policy("dada-svhn")
    policy.save(tmp_path / "policy.json")
    images = [run(form, results)[2]["img"] for form in ("dada-svhn", tmp_path / "policy.json", policy.to_dict())]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    random = [ApplyPolicy("random", seed=seed).policy_transform.policy for seed in (0, 1)]
    assert random[0] == resolve_policy("random", 0) != random[1]
    assert ApplyPolicy("none").transform({"img": None}) == {"img": None}


def test_it_travels_to_workers_and_says_what_it_is(results):
    step = ApplyPolicy("dada-imagenet", recompute_bbox=True, seed=4)
    step.set_epoch(2)
    twin = pickle.loads(pickle.dumps(step))
    assert np.array_equal(*(each.transform(copy.deepcopy(results))["img"] for each in (step, twin)))
    sha = resolve_policy("dada-imagenet").sha256[:12]
    assert repr(step) == (f"ApplyPolicy(policy=<dada-imagenet: 25 sub-policies, sha256 {sha}>, recompute_bbox=True, "
                          "seed=4)")
    assert repr(ApplyPolicy("none")) == "ApplyPolicy(policy=<none>, recompute_bbox=False, seed=0)"


@pytest.mark.parametrize(("policy", "names"), [
    ("nobody", ("nobody", "none, random")),
    ("trivial", ("trivial", "boxes")),
    ({**always("Rotate"), "schema": 2}, ("ApplyPolicy's policy", "schema is 2")),
    (always("Flip"), ("ApplyPolicy's policy", "sub_policies[0].operations[0]", "'Flip'")),
])
def test_what_is_no_policy_is_refused(policy, names):
    with refused(*names):
        ApplyPolicy(policy)


class OtherBoxes(HorizontalBoxes.__base__):
    """Boxes of a kind of their own, as rotated detection has them."""

    box_dim = 4

    def _unused(self, *args):
        raise NotImplementedError

    for name in HorizontalBoxes.__base__.__abstractmethods__:
        locals()[name] = _unused


@pytest.mark.parametrize(("change", "names"), [
    ({"img": np.zeros((8, 8, 3), np.float32)}, ("uint8 [H,W,3]", "float32")),
    ({"img": np.zeros((8, 8), np.uint8)}, ("uint8 [8, 8]", "LoadImageFromFile")),
    ({"gt_masks": BitmapMasks([], 16, 8)}, ("[(16, 8)]", "LoadAnnotations", "Resize")),
    ({"gt_masks": BitmapMasks([], 8, 8)}, ("masks", "boxes")),
    ({"gt_bboxes": OtherBoxes(torch.zeros(1, 4))}, ("upright boxes", "OtherBoxes")),
])
def test_what_cannot_be_carried_along_is_refused(change, names):
    results = {"img": np.zeros((8, 8, 3), np.uint8), "sample_idx": 0, **change}
    with refused(*names):
        ApplyPolicy("dada-imagenet").transform(results)
