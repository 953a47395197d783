"""Policies by name: the released ones, and the fixed ones that a search is held against."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.augment.schedule import Schedule, ScheduleTransform
from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import Images, PolicyTransform, random_numbers
from dada_det.errors import UserError
from dada_det.untrusted import printable, read_untrusted

PUBLISHED = Path(__file__).with_name("published")
FIXED = ("none", "random", "uniform", "one-op", "trivial", "rand", "cutout")
RANDOM_SUB_POLICIES = 25  # as many as a search writes


class TorchvisionAugment:
    """A transform of torchvision as it is, with its defaults, called like a PolicyTransform.

    name: what `--policy` calls it; transform: its name in torchvision.transforms. Images of a batch go one by one.
    """

    name: ClassVar[str]
    transform: ClassVar[str]

    def __call__(self, images: Images, generator: torch.Generator | None = None) -> Images:
        from torchvision import transforms  # 1 s to import, needed by these policies only

        augment = getattr(transforms, self.transform)()
        seed = int(random_numbers(torch.rand, (1,), generator) * 2**24)  # all 24 bits that a float32 draw has
        # torchvision reads the global generator only, so that one is lent out and given back.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return torch.stack([augment(image) for image in images]) if isinstance(images, Tensor) else augment(images)
        finally:
            torch.set_rng_state(state)


class TrivialAugment(TorchvisionAugment):
    """TrivialAugmentWide (Müller and Hutter, ICCV 2021): one of fourteen operations, its strength uniform."""

    name, transform = "trivial", "TrivialAugmentWide"


class RandAugment(TorchvisionAugment):
    """RandAugment (Cubuk et al., CVPR Workshops 2020): two of fourteen operations, each at 9 of 30."""

    name, transform = "rand", "RandAugment"


AnyPolicy = Policy | TorchvisionAugment | None  # what `--policy` stands for; None is crop and flip alone
Replayable = AnyPolicy | Schedule  # and in pretraining


def published_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PUBLISHED.glob("*.json")))


def resolve_policy(text: str, seed: int = 0) -> AnyPolicy:
    """What `--policy text` means: a name of FIXED or published_names(), else a file.

    seed: chooses the 25 sub-policies of `random`. UserError lists the names where `text` is neither name nor file.
    """
    if text == "none":
        return None
    for borrowed in (TrivialAugment, RandAugment):
        if text == borrowed.name:
            return borrowed()
    if text in FIXED:
        return _fixed(text, seed)
    if text in published_names():
        return Policy.load(PUBLISHED / f"{text}.json")
    if not os.path.exists(text):  # Path.exists raises where a name is too long
        names = ", ".join((*FIXED, *published_names()))
        raise UserError(f"the policy {printable(text)} is neither a file nor a name; names are {names}")
    return Policy.load(text)


def resolve_replayable(text: str, seed: int = 0) -> Replayable:
    """What `--policy text` means to a training that can replay a schedule: its file too."""
    if text in (*FIXED, *published_names()) or not os.path.exists(text):
        return resolve_policy(text, seed)
    data, source = read_untrusted(text, "policy", "give a policy.json of a search")
    made: type[Policy] | type[Schedule] = Schedule if isinstance(data, dict) and "schedule" in data else Policy
    return made.from_dict(data, source)


def _fixed(name: str, seed: int) -> Policy:
    space = SearchSpace()
    if name == "cutout":
        always = SubPolicy(1.0, (Operation("Cutout", probability=1.0, magnitude=1.0),))
        return Policy(space.ranges, (always,), {"source": name})
    if name == "one-op":
        sub_policies = [SubPolicy(1.0, (Operation(operation, 1.0, 0.5),)) for operation in OPERATION_NAMES]
        return Policy(space.ranges, tuple(sub_policies), {"source": name}, uniform_strength=True)
    chosen = space.pairs
    provenance: dict[str, str | int] = {"source": name}
    if name == "random":
        order = torch.randperm(len(space), generator=torch.Generator().manual_seed(seed))
        chosen = [space.pairs[index] for index in sorted(order[:RANDOM_SUB_POLICIES].tolist())]
        provenance["seed"] = seed
    sub_policies = [SubPolicy(1.0, tuple(Operation(OPERATION_NAMES[index], 0.5, 0.5) for index in pair))
                    for pair in chosen]
    return Policy(space.ranges, tuple(sub_policies), provenance, uniform_strength=True)


def image_transform(policy: Replayable) -> Callable[..., Image.Image | Tensor]:
    """The policy as a callable (images, generator=None) on one PIL image or a uint8 batch; None is the identity."""
    if policy is None:
        return _identity
    if isinstance(policy, Schedule):
        return ScheduleTransform(policy)
    return PolicyTransform(policy) if isinstance(policy, Policy) else policy


def _identity(images: Images, generator: torch.Generator | None = None) -> Images:
    return images
