"""Classifiers by name: timm's, those of the papers' CIFAR tables, which timm lacks, and a three-layer network for trials.

Shapes: B images, C = 3 channels, H x W pixels, K classes. Weights are random unless some are given.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dada_det.errors import UserError
from dada_det.models.darts import PREFIX, SuperNet, from_name
from dada_det.models.pyramidnet import PyramidNet
from dada_det.models.shake import ShakeShake


def build_classifier(name: str, num_classes: int, image_size: int, weights: str | None = None, **options: Any) -> nn.Module:
    """A network float32 [B,3,H,W] -> logits float32 [B,num_classes].

    Args:
        name: one of OWN, a darts.name_of, or any of timm's.
        image_size: side of the images in pixels, for those of timm's networks that are built for one size (vision
            transformers).
        options: the network's own, such as the supernet's cells.
        weights: what it starts from, a file or "timm" (models/weights.py); None for random weights.

    Raises:
        UserError: the name is unknown, or the weights do not fit.
    """
    network = with_random_weights(name, num_classes, image_size, **options)
    if weights is not None:
        from dada_det.models.weights import start_from

        start_from(network, weights, name)
    return network


def with_random_weights(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    try:
        return _built(name, num_classes, image_size, **options)
    except TypeError as error:
        if not options:
            raise
        raise UserError(f"the classifier {name} does not take {options} ({error}); leave out what it does not "
                        "know") from error


def _built(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    if name.startswith(PREFIX):
        return from_name(name, num_classes)
    if name in OWN:
        return OWN[name](num_classes, **options)
    import timm  # takes seconds, and the small networks do without it

    if not timm.is_model(name):
        raise UserError(f"there is no classifier {name!r}; give one of timm.list_models(), such as resnet50, "
                        f"or one of {', '.join(OWN)}")
    size: dict[str, Any] = {"img_size": image_size} if has_fixed_size(name) else {}
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **size, **options)


def is_own(name: str) -> bool:
    """Whether the network is this project's own and not timm's."""
    return name in OWN or name.startswith(PREFIX)


def demand_plain(name: str, image_size: int, options: Mapping[str, Any]) -> None:
    """Raises UserError if `options` make another network of timm's than its name alone, which is all that a backbone's file
    says: one of other tensors, or one that computes other features from the same tensors."""
    if is_own(name) or not options:
        return
    with torch.device("meta"):
        plain, changed = ({tensor: value.shape for tensor, value in
                           with_random_weights(name, 0, image_size, **given).state_dict().items()}
                          for given in ({}, options))
    if changed != plain:
        first = next(tensor for tensor in {**changed, **plain} if changed.get(tensor) != plain.get(tensor))
        raise UserError(f"classifier has {dict(options)}, with which it is another network than timm's {name} (the tensor "
                        f"{first} differs), so no detector could load its backbone; leave that out, or write the name "
                        "of a network of timm's that has it")
    one, other = (with_random_weights(name, 0, image_size, **given) for given in ({}, options))
    if not computes_the_same(one, other, image_size):
        raise UserError(f"classifier has {dict(options)}, with which it computes other features than timm's {name}, so no "
                        "detector could use its backbone; leave that out, or write the name of a network of timm's that "
                        "has it")


@torch.no_grad()
def computes_the_same(one: nn.Module, other: nn.Module, image_size: int) -> bool:
    """Whether two networks of timm's with the same tensors predict the same features of an image.

    All tensors are drawn, as timm's first weights hide some layers behind zeros.
    """
    source = torch.Generator().manual_seed(0)
    state = {name: value if not value.is_floating_point() else torch.rand(value.shape, generator=source) * 0.1
             + (0.95 if value.dim() == 1 and name.endswith(("weight", "running_var")) else -0.05)
             for name, value in one.state_dict().items()}
    image = torch.randn(1, 3, image_size, image_size, generator=source)

    def features(network: nn.Module) -> Tensor:
        network.eval().load_state_dict(state)
        return network.forward_features(image)  # type: ignore[operator]

    ours, theirs = features(one), features(other)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))


def has_fixed_size(name: str) -> bool:
    """Whether the network is built for one size of images, as most of timm's transformers are; False for unknown names."""
    if is_own(name):
        return False
    import timm

    default = timm.get_pretrained_cfg(name)
    return default is not None and bool(default.fixed_input_size)


def convnet(num_classes: int) -> nn.Sequential:
    """Three 3x3 convolutions of 16, 32 and 64 channels with BatchNorm, for images of 16 px and more."""
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*block(3, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class WideResNet(nn.Module):
    """Wide Residual Network for 32 px images (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146), without dropout.

    `depth` = 6 n + 4 layers: three groups of n blocks of two 3x3 convolutions, 16, 32 and 64 times `width` channels,
    with BatchNorm and ReLU before each convolution.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.groups = nn.Sequential(*[
            nn.Sequential(*[WideBlock(channels[group] if block == 0 else channels[group + 1], channels[group + 1],
                                      stride=2 if group > 0 and block == 0 else 1) for block in range(blocks)])
            for group in range(3)])
        self.bn = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BDhw = functional.relu(self.bn(self.groups(self.conv(images_BCHW))))
        return self.fc(features_BDhw.mean((2, 3)))


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut, which is a 1x1 convolution where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = functional.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(functional.relu(self.bn2(self.conv1(active))))


# Name -> function of the number of classes.
OWN: dict[str, Callable[..., nn.Module]] = {
    "wide_resnet40_2": partial(WideResNet, 40, 2), "wide_resnet28_10": partial(WideResNet, 28, 10),
    "shake_shake26_2x32d": partial(ShakeShake, 26, 32), "shake_shake26_2x96d": partial(ShakeShake, 26, 96),
    "shake_shake26_2x112d": partial(ShakeShake, 26, 112), "pyramidnet272_a200_shakedrop": partial(PyramidNet, 272, 200),
    "darts_supernet": SuperNet, "convnet": convnet}
