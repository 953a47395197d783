"""Exported code: every operation rendered both ways, the draws, and the code alone in a fresh interpreter."""

import json
import subprocess
import sys
import types
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import (
    OPERATION_NAMES,
    RANGES,
    Draws,
    Operation,
    Policy,
    PolicyTransform,
    SubPolicy,
    apply_draws_pil,
)
from dada_det.augment.export import MMCV_DIFFERENCES, TARGETS, TENSOR_DIFFERENCES, as_data, export, limits
from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import value_of
from tests.messages import assert_names

EVERYTHING = {ranges: Policy(ranges, tuple(SubPolicy(1.0, (Operation(name, 1.0, 0.7),)) for name in OPERATION_NAMES))
              for ranges in RANGES}
# Weights of every size, a weight 0, certain and impossible operations, spread on one slot, ends that spread leaves alone.
MIXED = Policy("strength", (
    SubPolicy(3.0, (Operation("Rotate", 0.25, 0.7, 0.8), Operation("Invert", 0.9, 0.5))),
    SubPolicy(0.0, (Operation("Equalize", 1.0, 1.0),)),
    SubPolicy(1.5, (Operation("Solarize", 1.0, 0.2, 1.0),)),
    SubPolicy(0.5, (Operation("Cutout", 0.5, 1.0, 2.0), Operation("TranslateX", 0.0, 0.5))),
    SubPolicy(0.0, (Operation("Posterize", 1.0, 1.0),))))
POLICIES = [MIXED, replace(MIXED, unaugmented=0.4, mirror=False),
            *map(resolve_policy, ("dada-imagenet", "autoaugment-cifar10", "random", "one-op", "cutout"))]
SINGLE = Policy("strength", (SubPolicy(1.0, (Operation("Invert", 1.0, 0.0),)),))
MAGNITUDES = [0.0, 0.1, 0.25, 0.3, 0.62, 0.75, 1.0]


@pytest.fixture(autouse=True)
def global_generator():
    """The exported code reads torch's global generator; other tests get it back as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def images():
    """RGB, uint8 [H,W,3]: noise and a photograph, each at 64 px and at an odd size."""
    photograph = Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg"))
    noise = np.random.default_rng(0)
    return [*(noise.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in ((64, 64), (51, 37))),
            *(np.array(photograph.resize(size)) for size in ((64, 64), (97, 75)))]


@pytest.fixture(scope="module")
def cases(images):
    """{operation: [(image, value, centre, dada_det's result)]} for every image, magnitude, sign and table of ranges."""
    generator = torch.Generator().manual_seed(1)
    found = {name: [] for name in OPERATION_NAMES}
    for index, name in enumerate(OPERATION_NAMES):
        for ranges in RANGES:
            for magnitude in MAGNITUDES:
                for sign in (1.0, -1.0):
                    draws = one_draw(index, magnitude, sign, torch.rand(2, generator=generator))
                    value = value_of(index, draws.magnitudes_BK.item(), sign, ranges)
                    found[name] += [(image, value, draws.centers_BK2.flatten().tolist(),
                                     np.array(apply_draws_pil(Image.fromarray(image), draws, ranges))) for image in images]
    return found


def one_draw(index, magnitude, sign, center):
    return Draws(torch.tensor([[index]]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([[magnitude]]),
                 torch.tensor([[sign]]), center[None, None])


def run_code(policy, target):
    """The names that the exported code defines."""
    module = types.ModuleType("exported")
    exec(compile(export(policy, target), f"exported for {target}", "exec"), module.__dict__)
    return module


@pytest.fixture
def registry(monkeypatch):
    """mmpretrain's registry, empty, so that its transform can be rendered where mmpretrain is not installed."""
    from mmengine.registry import Registry

    stand_in = types.ModuleType("mmpretrain.registry")
    stand_in.TRANSFORMS = Registry("transform")
    monkeypatch.setitem(sys.modules, "mmpretrain", types.ModuleType("mmpretrain"))
    monkeypatch.setitem(sys.modules, "mmpretrain.registry", stand_in)
    return stand_in.TRANSFORMS


def chw(image):
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def on_pil(function):
    return lambda image, value, center: np.array(function(Image.fromarray(image), value, center))


def on_tensor(function):
    return lambda image, value, center: function(chw(image), value, center).permute(1, 2, 0).numpy()


def on_bgr(function):
    return lambda image, value, center: function(image[..., ::-1].copy(), value, center)[..., ::-1]


@pytest.mark.parametrize(("target", "road"), [("torchvision", on_pil), ("timm", on_pil), ("mmpretrain", on_bgr)])
def test_every_operation_is_equal_in_every_pixel(target, road, cases, registry):
    operations = run_code(EVERYTHING["strength"], target).OPERATIONS
    assert list(operations) == list(OPERATION_NAMES)
    for name, rendered in cases.items():
        for image, value, center, expected in rendered:
            got = road(operations[name])(image, value, center)
            assert got.dtype == np.uint8 and np.array_equal(got, expected), (target, name, value, image.shape)


def differences(road, rendered):
    """Largest difference in levels, and the largest share of pixels of an image that differ at all."""
    apart = [np.abs(road(image, value, center).astype(int) - expected).max(2) for image, value, center, expected in rendered]
    return max(difference.max() for difference in apart), max((difference > 0).mean() for difference in apart)


def check_table(table, roads, cases):
    """Nothing exceeds what is stated, and nothing stated is five times what is there; what is not in the table is equal."""
    for name, road in roads.items():
        measured = differences(road, cases[name])
        for found, stated in zip(measured, table.get(name, (0, 0.0)), strict=True):
            assert 0.2 * stated <= found <= stated, (name, measured)


def test_on_tensors_torchvision_differs_by_what_is_stated(cases):
    operations = run_code(EVERYTHING["strength"], "torchvision").OPERATIONS
    check_table(TENSOR_DIFFERENCES, {name: on_tensor(function) for name, function in operations.items()}, cases)


def test_only_shifts_of_half_a_pixel_differ():
    """Pillow's running sum decides column by column where a shift of -4.5 pixels ends; no other function follows it."""
    import mmcv

    code = run_code(EVERYTHING["strength"], "torchvision")
    row = np.arange(100, dtype=np.uint8)[None, :, None].repeat(3, 2)
    for value, equal in ((0.0451, True), (0.0449, True), (-0.0449, True), (-0.045000000000000005, False)):
        expected = np.array(Image.fromarray(row).transform((100, 1), Image.Transform.AFFINE, (1, 0, value * 100, 0, 1, 0)))
        assert np.array_equal(on_pil(code.OPERATIONS["TranslateX"])(row, value, None), expected)
        moved = on_tensor(code.OPERATIONS["TranslateX"])(row, value, None)
        assert np.array_equal(moved, expected) == equal and (np.abs(moved.astype(int) - expected) <= 1).all()
        moved = mmcv.imtranslate(row, -value * 100, "horizontal", border_value=0, interpolation="nearest")
        assert np.array_equal(moved, expected) == equal and (np.abs(moved.astype(int) - expected) <= 1).all()


def test_mmcvs_own_functions_differ_by_what_is_stated(cases):
    """Why the code for mmpretrain calls Pillow: mmcv's functions at their closest (nearest pixel, black outside)."""
    import mmcv

    outside = {"border_value": 0, "interpolation": "nearest"}
    functions = {
        "ShearX": lambda image, value, _: mmcv.imshear(image, -value, "horizontal", **outside),
        "ShearY": lambda image, value, _: mmcv.imshear(image, -value, "vertical", **outside),
        "Rotate": lambda image, value, _: mmcv.imrotate(image, -value, **outside),
        "Contrast": lambda image, value, _: mmcv.adjust_contrast(image, value),
        "Color": lambda image, value, _: mmcv.adjust_color(image, value),
        "Sharpness": lambda image, value, _: mmcv.adjust_sharpness(image, value)}
    assert set(functions) == set(MMCV_DIFFERENCES)
    check_table(MMCV_DIFFERENCES, {name: on_bgr(function) for name, function in functions.items()}, cases)


@pytest.mark.parametrize("target", ["torchvision", "timm", "mmpretrain"])
def test_equal_seeds_give_dada_dets_images(target, images, registry):
    """Weights, flags, magnitudes, spread, signs, centres and order of the operations at once."""
    for policy in POLICIES:
        transform, ours = run_code(policy, target).AugmentationPolicy(), PolicyTransform(policy)
        for seed in range(60):
            image = images[seed % len(images)]
            torch.manual_seed(seed)
            if target == "mmpretrain":
                got = transform({"img": image[..., ::-1].copy()})["img"][..., ::-1]
            else:
                got = np.array(transform(Image.fromarray(image)))
            expected = ours(Image.fromarray(image), torch.Generator().manual_seed(seed))
            assert np.array_equal(got, np.array(expected)), (policy.provenance, seed)
        if target == "mmpretrain":
            registry.module_dict.clear()


def chi_square(counts, probabilities, n):
    return sum((counts[key] - n * share) ** 2 / (n * share) for key, share in probabilities.items())


def test_draws_follow_the_policy():
    n = 8000
    torch.manual_seed(0)
    draw = run_code(MIXED, "timm").draw
    lots = [draw() for _ in range(n)]
    first, second = 0.6, 0.3  # shares of the first and the second sub-policy with a weight; the third has 0.1
    expected = {("Rotate", "Invert"): first * 0.25 * 0.9, ("Rotate",): first * 0.25 * 0.1, ("Invert",): first * 0.75 * 0.9,
                ("Solarize",): second, ("Cutout",): 0.05, (): first * 0.75 * 0.1 + 0.05}
    counts = Counter(tuple(name for name, _, _ in lot) for lot in lots)
    assert set(counts) == set(expected)
    assert chi_square(counts, expected, n) < 20.5  # the 99.9 % point of chi-square with 5 degrees of freedom
    values = {name: np.array([value for lot in lots for found, value, _ in lot if found == name])
              for name in ("Rotate", "Solarize", "Cutout")}
    signs = Counter(np.sign(values["Rotate"]))
    assert chi_square(signs, {1.0: 0.5, -1.0: 0.5}, len(values["Rotate"])) < 10.8  # one degree of freedom
    for magnitudes, mean, spread in ((np.abs(values["Rotate"]) / 30, 0.7, 0.8), (1 - values["Solarize"] / 256, 0.2, 1.0)):
        logits = np.log(magnitudes / (1 - magnitudes))
        assert abs(logits.mean() - np.log(mean / (1 - mean))) < 4 * spread / len(logits) ** 0.5
        assert abs(logits.std() / spread - 1) < 4 / (2 * len(logits)) ** 0.5
    assert set(values["Cutout"]) == {0.2}  # spread leaves the ends where they are
    centers = np.array([center for lot in lots for name, _, center in lot if name == "Cutout"])
    assert chi_square(Counter(map(tuple, (centers > 0.5).tolist())),
                      {(x, y): 0.25 for x in (False, True) for y in (False, True)}, len(centers)) < 16.3


def test_any_strength_is_drawn_uniformly():
    torch.manual_seed(0)
    rotate = SubPolicy(1.0, (Operation("Rotate", 1.0, 0.9),))
    draw = run_code(Policy("autoaugment", (rotate,), uniform_strength=True), "timm").draw
    tenths = Counter(int((draw()[0][1] + 30) // 6) for _ in range(4000))
    assert chi_square(tenths, dict.fromkeys(range(10), 0.1), 4000) < 27.9  # 99.9 %, nine degrees of freedom


ALONE = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dada_det":
            raise ImportError("dada_det was imported")
sys.meta_path.insert(0, Blocker())
for target in ("torchvision", "timm"):
    sys.argv = [target + ".py", "in.png", target + ".png"]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_code_runs_where_dada_det_is_not(images, tmp_path):
    for target in ("torchvision", "timm"):
        (tmp_path / f"{target}.py").write_text(export(resolve_policy("dada-imagenet"), target))
    Image.fromarray(images[0]).save(tmp_path / "in.png")
    done = subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for target in ("torchvision", "timm"):
        with Image.open(tmp_path / f"{target}.png") as picture:
            assert picture.size == (64, 64) and picture.mode == "RGB"


def test_mmpretrain_refuses_float_images(images, registry):
    transform = run_code(MIXED, "mmpretrain").AugmentationPolicy()
    with pytest.raises(TypeError, match="must be uint8, not float32"):
        transform({"img": images[0].astype(np.float32)})


def test_data_speaks_real_units():
    data = as_data(MIXED)
    assert [entry["weight"] for entry in data["sub_policies"]] == pytest.approx([0.6, 0.0, 0.3, 0.1, 0.0])
    assert data["sub_policies"][0]["operations"] == [
        {"name": "Rotate", "probability": 0.25, "unit": "degrees", "spans": [[0.0, 30.0], [0.0, -30.0]],
         "values": [21.0, -21.0], "spread": 0.8},
        {"name": "Invert", "probability": 0.9, "unit": None, "spans": [], "values": [], "spread": 0.0}]
    assert data["sub_policies"][4]["operations"][0]["values"] == [4.0]
    assert data["sha256"] == MIXED.sha256 and data["uniform_strength"] is False
    whole = [entry["operations"][0] for entry in as_data(EVERYTHING["autoaugment"])["sub_policies"]]
    contrast, translate = (next(entry for entry in whole if entry["name"] == name) for name in ("Contrast", "TranslateY"))
    assert contrast["values"] == pytest.approx([1.36]) and contrast["spans"] == [pytest.approx([0.1, 1.9])]
    assert translate["unit"] == "share of the height" and translate["values"] == pytest.approx([0.18, -0.18])
    drawn = as_data(resolve_policy("one-op"))
    assert drawn["uniform_strength"] and "values" not in drawn["sub_policies"][0]["operations"][0]
    assert json.loads(export(MIXED, "data")) == data


def test_images_that_stay_as_they_are_are_a_row_without_operations():
    half = replace(MIXED, unaugmented=0.5)
    data, plain = as_data(half)["sub_policies"], as_data(MIXED)["sub_policies"]
    assert data[0] == {"weight": 0.5, "operations": []}
    assert [entry["weight"] for entry in data[1:]] == pytest.approx([entry["weight"] / 2 for entry in plain])
    assert [entry["operations"] for entry in data[1:]] == [entry["operations"] for entry in plain]
    everything = replace(MIXED, unaugmented=1.0)
    names = {}
    exec(export(everything, "timm"), names)
    assert not any(names["draw"]() for _ in range(50))


@pytest.mark.parametrize("target", TARGETS)
def test_who_exports_a_policy_that_was_searched_without_flips_is_told(target):
    assert ["flip" in sentence for sentence in limits(replace(SINGLE, mirror=False), target)] == [True]
    assert limits(replace(SINGLE, mirror=True), target) == limits(SINGLE, target) == []
    assert as_data(replace(SINGLE, mirror=False))["mirror"] is False and "mirror" not in as_data(SINGLE)
    names = {}
    exec(export(replace(SINGLE, mirror=False, unaugmented=0.25), "mmdet"), names)
    assert names["augmentation_policy"]["policy"]["mirror"] is False
    assert Policy.from_dict(names["augmentation_policy"]["policy"]) == replace(SINGLE, mirror=False, unaugmented=0.25)


def test_limits_name_what_is_in_the_policy_and_head_the_code():
    assert_names("\n".join(limits(MIXED, "timm")), "Cutout", "timm", "Pillow")
    assert limits(MIXED, "mmdet") == limits(MIXED, "data") == []
    whole = EVERYTHING["strength"]
    for target, table in (("torchvision", TENSOR_DIFFERENCES), ("mmpretrain", MMCV_DIFFERENCES)):
        named = {name for sentence in limits(whole, target) for name in sentence.split(":")[0].split(", ")}
        assert named == {*table, "TranslateX", "TranslateY", *(["Cutout"] if target == "mmpretrain" else [])}
        assert not any("Color" in sentence for sentence in limits(MIXED, target))
    for target in set(TARGETS) - {"data"}:
        head = export(whole, target).split("\n\n")[0].splitlines()
        assert all(line.startswith("# ") for line in head) and whole.sha256 in head[1]
        assert [line[2:] for line in head[2:2 + len(limits(whole, target))]] == limits(whole, target)


def test_a_file_cannot_smuggle_code_into_the_export(tmp_path):
    policy = Policy("strength", MIXED.sub_policies, {"source": "\"\"\"'''\nraise SystemExit(3)\n# ${head} $drawing {{ x }}"})
    for target in ("torchvision", "timm"):
        assert "SystemExit" not in export(policy, target)
    names = {}
    exec(export(policy, "mmdet"), names)
    assert Policy.from_dict(names["augmentation_policy"]["policy"]) == policy
