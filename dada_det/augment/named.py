"""What `--policy` means: the released policies, the fixed ones, and policy.json.

How a policy reaches the pixels: (1) a name or a file; (2) `resolve`, once, in the command, gives a Policy, a Schedule,
torchvision's transform or None; (3) `image_transform` makes it callable; (4) the training's images draw from it;
(5) `apply_draws` in the workers, or in the preprocessor on the device; (6) one lookup table, matrix, factor or box an
image.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import FIXED, NamedPolicy, Operation, Policy, SubPolicy
from dada_det.augment.schedule import Schedule, ScheduleTransform
from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import Images, PolicyTransform, check_images, random_numbers
from dada_det.errors import UserError
from dada_det.untrusted import printable, read_untrusted

PUBLISHED = Path(__file__).with_name("published")
RANDOM_SUB_POLICIES = 25  # as many as a search writes


class TorchvisionAugment:
    """One of torchvision's transforms with its defaults, called like a PolicyTransform. Images of a batch go one by one.

    Attributes:
        name: what `--policy` calls it.
        transform: its name in torchvision.transforms.
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
            if not isinstance(images, Tensor):
                return augment(images)
            return torch.stack([augment(image) for image in images]) if len(images) else images.clone()
        finally:
            torch.set_rng_state(state)


class TrivialAugment(TorchvisionAugment):
    """TrivialAugmentWide (Müller and Hutter, ICCV 2021): one of fourteen operations, its strength uniform."""

    name, transform = "trivial", "TrivialAugmentWide"


class RandAugment(TorchvisionAugment):
    """RandAugment (Cubuk et al., CVPR Workshops 2020): two of fourteen operations, each at 9 of 30."""

    name, transform = "rand", "RandAugment"


BORROWED: dict[str, type[TorchvisionAugment]] = {borrowed.name: borrowed for borrowed in (TrivialAugment, RandAugment)}
AnyPolicy = Policy | TorchvisionAugment | None  # what `--policy` stands for; None is crop and flip alone
Replayable = AnyPolicy | Schedule  # and in pretraining


def policy_key(policy: Replayable) -> str:
    """What tells policies apart, whatever file they are in: "none", a fixed policy's name, or a SHA-256 (hexadecimal)."""
    return "none" if policy is None else policy.sha256 if isinstance(policy, Policy | Schedule) else policy.name


def published_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PUBLISHED.glob("*.json")))


def resolve(text: str, seed: int = 0) -> tuple[AnyPolicy, bool | None]:
    """What `--policy text` means.

    Args:
        text: a name of FIXED or of published_names(), else a file, which holds a table or a name of FIXED.
        seed: chooses the 25 sub-policies of `random`, unless a file says them.

    Returns:
        The policy, and whether horizontal flips belong to it (None: unknown).

    Raises:
        UserError: `text` is neither name nor file (the sentence lists the names), or the file is broken (it names file
            and entry).
    """
    if text in FIXED:
        return fixed_policy(text, seed), None
    if text in published_names():
        return Policy.load(PUBLISHED / f"{text}.json"), None
    if not os.path.exists(text):  # Path.exists raises where a name is too long
        names = ", ".join((*FIXED, *published_names()))
        raise UserError(f"the policy {printable(text)} is neither a file nor a name; names are {names}")
    return resolve_dict(*read_untrusted(text, "policy", advice_for(text)))


def advice_for(text: str) -> str:
    """What to do about a policy that cannot be read: of a search's folder, give its file."""
    file = os.path.join(text, "policy.json")
    return f"give {printable(file)}" if os.path.isfile(file) else "give a policy.json of a search"


def resolve_replayable(text: str, seed: int = 0) -> tuple[Replayable, bool | None]:
    """`resolve` for a training that can replay a schedule: `text` may be a schedule.json of DDAS too."""
    if text in (*FIXED, *published_names()) or not os.path.exists(text):
        return resolve(text, seed)
    data, source = read_untrusted(text, "policy", advice_for(text))
    if not (isinstance(data, dict) and "schedule" in data):
        return resolve_dict(data, source)
    schedule = Schedule.from_dict(data, source)
    return schedule, schedule.mirror


def resolve_dict(data: Any, source: str = "policy") -> tuple[AnyPolicy, bool | None]:
    """`resolve` for the content of a policy.json.

    Raises:
        UserError: an entry is wrong; the sentence names it and `source`.
    """
    if not (isinstance(data, dict) and "named" in data):
        policy = Policy.from_dict(data, source)
        return policy, policy.mirror
    named = NamedPolicy.from_dict(data, source)
    fixed = fixed_policy(named.name, named.seed or 0)
    return replace(fixed, mirror=named.mirror) if isinstance(fixed, Policy) else fixed, named.mirror


def resolve_policy(text: str, seed: int = 0) -> AnyPolicy:
    """resolve(text, seed) without the flips."""
    return resolve(text, seed)[0]


def fixed_policy(name: str, seed: int = 0) -> AnyPolicy:
    """The policy of FIXED that is called `name`; `seed` chooses the 25 sub-policies of `random`."""
    if name == "none":
        return None
    return BORROWED[name]() if name in BORROWED else _table(name, seed)


def _table(name: str, seed: int) -> Policy:
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


@dataclass(frozen=True)
class AnyTransform:
    """A policy of any kind as a callable (images, generator=None), which takes and gives the same whatever the kind is.

    A PIL image becomes RGB; a batch must be uint8 [B,3,H,W], else it raises ValueError.
    """

    transform: Callable[..., Image.Image | Tensor]

    def __call__(self, images: Images, generator: torch.Generator | None = None) -> Image.Image | Tensor:
        if isinstance(images, Tensor):
            check_images(images)
        elif images.mode != "RGB":
            images = images.convert("RGB")
        return self.transform(images, generator=generator)


def load_transform(text: str | os.PathLike[str], seed: int = 0) -> AnyTransform:
    """What `--policy text` means, as a transform for anybody's training.

    Args:
        text: the file that a search handed over, whichever kind of policy it holds, or a policy's name.
        seed: chooses the 25 sub-policies of `random`.

    Returns:
        A callable (images, generator=None). Of a PIL image it makes one in RGB, of uint8 [B,3,H,W] on any device the same.

    Raises:
        UserError: there is no such file or name, the file is broken, or it is a schedule, which needs a training's progress.
    """
    return AnyTransform(image_transform(resolve_policy(str(text), seed)))


def image_transform(policy: Replayable) -> Callable[..., Image.Image | Tensor]:
    """The policy as a callable (images, generator=None) on one PIL image or a uint8 batch; None is the identity."""
    if policy is None:
        return _identity
    if isinstance(policy, Schedule):
        return ScheduleTransform(policy)
    return PolicyTransform(policy) if isinstance(policy, Policy) else policy


def _identity(images: Images, generator: torch.Generator | None = None) -> Images:
    return images
