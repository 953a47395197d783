"""Policies by name: what each control draws, and the released ones."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dada_det.augment import OPERATION_NAMES, Policy, PolicyTransform, load_transform
from dada_det.augment.named import image_transform, published_names, resolve, resolve_policy
from dada_det.augment.policy import FIXED, NamedPolicy
from tests.messages import refused


def test_released_policies_are_the_papers(shared):
    names = ("dada-cifar10", "dada-cifar100", "dada-imagenet", "dada-svhn")
    assert set(published_names()) == {*names, "autoaugment-cifar10", "autoaugment-imagenet", "autoaugment-svhn"}
    for name in names:
        policy = resolve_policy(name)
        facts = json.loads((shared / "reference" / "policies" / f"{name.replace('-', '_')}.json").read_text())
        assert policy.ranges == facts["ranges"] == "autoaugment" and len(policy.sub_policies) == 25
        assert {sub_policy.weight for sub_policy in policy.sub_policies} == {1.0}
        assert [[[operation.name, operation.probability, operation.magnitude] for operation in sub_policy.operations]
                for sub_policy in policy.sub_policies] == facts["sub_policies"]
        assert "ECCV 2020" in policy.provenance["source"] and policy.provenance["dataset"] == facts["dataset"]


def test_random_is_25_of_the_105_by_seed():
    policy = resolve_policy("random", seed=3)
    pairs = [tuple(operation.name for operation in sub_policy.operations) for sub_policy in policy.sub_policies]
    assert len(set(pairs)) == 25 and policy.uniform_strength and policy.ranges == "strength"
    assert {operation.probability for sub_policy in policy.sub_policies for operation in sub_policy.operations} == {0.5}
    assert policy == resolve_policy("random", seed=3) != resolve_policy("random", seed=4)


def test_uniform_and_one_op_and_cutout():
    uniform = resolve_policy("uniform")
    assert len(uniform.sub_policies) == 105 and uniform.uniform_strength
    one_op = resolve_policy("one-op")
    assert [sub_policy.operations[0].name for sub_policy in one_op.sub_policies] == list(OPERATION_NAMES)
    assert one_op.uniform_strength
    draws = PolicyTransform(one_op).draw(100, torch.Generator().manual_seed(0))
    assert draws.active_BK[:, 0].all() and not draws.active_BK[:, 1].any()
    grey = torch.zeros(6, 3, 30, 30, dtype=torch.uint8)
    cut = image_transform(resolve_policy("cutout"))(grey, generator=torch.Generator().manual_seed(0))
    assert (cut[:, 0] == 125).flatten(1).any(1).all() and (cut[:, 0] == 125).flatten(1).sum(1).max() <= 49


def test_controls_survive_a_file(tmp_path):
    for name in set(FIXED) - {"none", "trivial", "rand"} | set(published_names()):
        policy = resolve_policy(name)
        policy.save(tmp_path / "policy.json")
        assert resolve_policy(str(tmp_path / "policy.json")) == policy == Policy.load(tmp_path / "policy.json")


@pytest.mark.parametrize("name", FIXED)
def test_a_file_holds_a_fixed_policy_exactly(name, tmp_path):
    path, seed = tmp_path / "policy.json", 3 if name == "random" else None
    NamedPolicy(name, seed).save(path)
    expected, (policy, mirror) = resolve_policy(name, 3), resolve(str(path), seed=8)
    assert mirror is None and type(policy) is type(expected)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for image in (picture, torch.from_numpy(np.stack([np.array(picture).transpose(2, 0, 1)] * 9))):
        got, wanted = (image_transform(each)(image, generator=torch.Generator().manual_seed(1))
                       for each in (policy, expected))
        assert np.array_equal(np.asarray(got), np.asarray(wanted))
    if isinstance(expected, Policy):
        assert policy == expected and policy.sha256 == expected.sha256
    NamedPolicy(name, seed, mirror=False, provenance={"seed": 1}).save(path)
    assert json.loads(path.read_text()) == {"schema": 1, "named": name, **({"seed": 3} if seed else {}), "mirror": False,
                                            "provenance": {"seed": 1}}
    policy, mirror = resolve(str(path))
    assert mirror is False and (getattr(policy, "mirror", False), type(policy)) == (False, type(expected))
    if name not in ("none", "trivial", "rand"):
        assert policy.sha256 != expected.sha256
    assert NamedPolicy(name, seed).sha256 != NamedPolicy(name, seed, mirror=True).sha256


@pytest.mark.parametrize(("entries", "names"), [
    ({"named": "dada-imagenet"}, ("'dada-imagenet'", "none, random")),
    ({"named": ["none"]}, ("['none']",)),
    ({"named": "trivial", "seed": 0}, ("trivial", "seed")),
    ({"named": "random"}, ("random", "seed", "None", "0..2^32-1")),
    ({"named": "random", "seed": -1}, ("random", "seed", "is -1")),
    ({"named": "random", "seed": True}, ("random", "seed", "True")),
    ({"named": "rand", "mirror": "no"}, ("mirror", "true or false")),
    ({"named": "rand", "unaugmented": 0.5}, ("'unaugmented'", "key")),
    ({"named": "rand", "ranges": "strength"}, ("'ranges'", "key")),
    ({"named": "rand", "schema": 2}, ("schema is 2", "schema 1")),
    ({"named": "rand", "provenance": 3}, ("provenance", "JSON object"))])
def test_a_broken_file_of_a_fixed_policy_gets_one_sentence(entries, names, tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"schema": 1, **entries}))
    with refused(tmp_path / "policy.json", *names):
        resolve(str(tmp_path / "policy.json"))


def test_none_leaves_images_alone():
    image = Image.new("RGB", (4, 4), "red")
    assert resolve_policy("none") is None and image_transform(None)(image, generator=None) is image


@pytest.mark.parametrize(("name", "torchvisions"), [("trivial", transforms.TrivialAugmentWide),
                                                    ("rand", transforms.RandAugment)])
def test_trivial_and_rand_are_torchvisions_and_leave_the_global_generator_alone(name, torchvisions):
    policy = resolve_policy(name)
    transform = image_transform(policy)
    assert policy.name == name and transform is policy
    batch = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8)
    state = torch.get_rng_state()
    first = transform(batch, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8 and first.shape == batch.shape and not torch.equal(first, batch)
    assert torch.equal(first, transform(batch, generator=torch.Generator().manual_seed(1)))
    picture = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3))
    results = set()
    for seed in range(8):
        result = transform(picture, generator=torch.Generator().manual_seed(seed)).tobytes()
        lent = int(torch.rand(1, generator=torch.Generator().manual_seed(seed)) * 2**24)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lent)
            assert result == torchvisions()(picture).tobytes()
        results.add(result)
    assert len(results) > 3


def test_a_name_that_is_none_lists_the_choices(tmp_path):
    with refused("dada-coco", "none, random, uniform, one-op, trivial, rand, cutout, autoaugment-cifar10", "dada-svhn"):
        resolve_policy("dada-coco")
    (tmp_path / "broken.json").write_text("no")
    with refused(tmp_path / "broken.json", "JSON"):
        resolve_policy(str(tmp_path / "broken.json"))
    with refused("x" * 147 + "..." + "x" * 150, "none, random"):
        resolve_policy("x" * 10_000)


@pytest.mark.parametrize("name", FIXED)
def test_a_search_may_hand_over_any_policy_and_its_file_gives_the_transform(name, tmp_path):
    """Most searches on few images hand over a fixed one; Policy.load takes tables only."""
    NamedPolicy(name, seed=5 if name == "random" else None).save(tmp_path / "policy.json")
    transform, expected = load_transform(tmp_path / "policy.json"), image_transform(resolve_policy(name, seed=5))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    batch = torch.randint(0, 256, (4, 3, 24, 20), dtype=torch.uint8)
    for images in (picture, batch):
        found, wanted = (one(images, generator=torch.Generator().manual_seed(1)) for one in (transform, expected))
        assert type(found) is type(images) and np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("name", ["none", "trivial", "one-op"])
def test_transforms_of_all_kinds_take_and_give_the_same(name):
    transform = load_transform(name)
    for mode in ("L", "RGBA", "P", "RGB"):
        assert transform(Image.new(mode, (12, 10))).mode == "RGB"
    numbers = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for images in (numbers[0], numbers.float(), numbers[:, :1]):
        with pytest.raises(ValueError, match=r"uint8 \[B,3,H,W\]"):
            transform(images)
    assert transform(numbers[:0]).shape == (0, 3, 8, 8)
    assert isinstance(pickle.loads(pickle.dumps(transform)), type(transform))  # a loader's workers may be spawned


def test_a_searchs_folder_in_place_of_its_policy_is_told_the_file(tmp_path):
    resolve_policy("dada-imagenet").save(tmp_path / "policy.json")
    with refused(tmp_path, f"give {tmp_path / 'policy.json'}"):
        load_transform(tmp_path)
    with refused("give a policy.json of a search"):
        load_transform(tmp_path.parent)
    (tmp_path / "schedule.json").write_text('{"schema": 1, "schedule": []}')
    with refused("schedule", "progress", "policy.json"):
        load_transform(tmp_path / "schedule.json")


def test_the_transform_of_a_table_and_of_no_file(tmp_path):
    resolve_policy("dada-imagenet").save(tmp_path / "policy.json")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    found, wanted = (np.asarray(load_transform(text)(picture, generator=torch.Generator().manual_seed(2)))
                     for text in (tmp_path / "policy.json", "dada-imagenet"))
    assert np.array_equal(found, wanted) and not np.array_equal(found, np.asarray(picture))
    with refused("no.json", "none, random"):
        load_transform("no.json")
