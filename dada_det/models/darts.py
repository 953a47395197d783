"""DARTS's cells (Liu et al., ICLR 2019, arXiv:1806.09055): a supernet that runs one path, and the network of a genotype.

B images, C channels, H x W pixels, K classes, E edges of a cell, O candidate operations; 2 the two cells, normal and
reduction. Cells and stem as in DARTS for CIFAR; odd sides of a feature map are allowed, and the auxiliary head pools
adaptively (DARTS: 8 px alone), so that images of any size do. Weights are random.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.errors import UserError
from dada_det.models.genotype import MOST_NODES, NONE, OPERATIONS, Genotype
from dada_det.untrusted import short

PREFIX = "darts/"  # of a CellNetwork's name
AUXILIARY_WEIGHT = 0.4  # of the auxiliary head's loss, as in DARTS
STEM = 3  # channels of the stem over those of the first cells


class Zero(nn.Module):
    """`none`: zeros, at every stride-th pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW[:, :, ::self.stride, ::self.stride] * 0.0


class FactorizedReduce(nn.Module):
    """Half the side: two 1x1 convolutions of stride 2, the second one a pixel further down and right."""

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.second = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.relu()
        shifted_BCHW = F.pad(x_BCHW, (0, 1, 0, 1))[:, :, 1:, 1:]  # the border matters for odd sides alone
        return self.bn(torch.cat([self.first(x_BCHW), self.second(shifted_BCHW)], 1))


def relu_conv_bn(inputs: int, outputs: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine))


def depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, a convolution of each channel, one of 1x1 over all, BatchNorm."""
    return [nn.ReLU(), nn.Conv2d(channels, channels, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation,
                                 groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=affine)]


def sep_conv(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: nn.Sequential(*depthwise(channels, kernel, stride, 1, affine),
                                                          *depthwise(channels, kernel, 1, 1, affine))


def dil_conv(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: nn.Sequential(*depthwise(channels, kernel, stride, 2, affine))


def pool(kind: Callable[..., nn.Module], **options: bool) -> Callable[[int, int, bool], nn.Module]:
    """Pooling, and without affine, in a search, BatchNorm behind it, as in DARTS."""
    return lambda channels, stride, affine: nn.Sequential(
        kind(3, stride, padding=1, **options), *([] if affine else [nn.BatchNorm2d(channels, affine=False)]))


def skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


# (channels, stride, affine) -> features [B,C,H,W] to [B,C,H/stride,W/stride]; affine: BatchNorm has weights, in no search
BUILD: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda channels, stride, affine: Zero(stride), "max_pool_3x3": pool(nn.MaxPool2d),
    "avg_pool_3x3": pool(nn.AvgPool2d, count_include_pad=False), "skip_connect": skip, "sep_conv_3x3": sep_conv(3),
    "sep_conv_5x5": sep_conv(5), "dil_conv_3x3": dil_conv(3), "dil_conv_5x5": dil_conv(5)}


def reductions(cells: int) -> set[int]:
    """The cells that halve the side and double the channels: at a third and two thirds; of two cells the second."""
    return {cells // 3, 2 * cells // 3} if cells > 2 else {cells - 1}


def edges_of(nodes: int) -> list[tuple[int, int]]:
    """(node from 0, input) of all edges that a cell of `nodes` nodes can have, by node."""
    return [(node, index) for node in range(nodes) for index in range(2 + node)]


class Cell(nn.Module):
    """Two inputs, made equal in channels and side; then what a subclass does with them."""

    def __init__(self, before: int, last: int, channels: int, halved: bool, affine: bool) -> None:
        super().__init__()
        self.before = FactorizedReduce(before, channels, affine) if halved else relu_conv_bn(before, channels, affine)
        self.last = relu_conv_bn(last, channels, affine)


class SearchCell(Cell):
    """All candidates on all edges; a pass runs one on each."""

    def __init__(self, before: int, last: int, channels: int, halved: bool, reduction: bool, nodes: int,
                 operations: Sequence[str]) -> None:
        super().__init__(before, last, channels, halved, affine=False)
        self.places = edges_of(nodes)
        self.edges = nn.ModuleList(
            CandidateEdge(BUILD[name](channels, 2 if reduction and index < 2 else 1, False) for name in operations)
            for _, index in self.places)

    def forward(self, before: Tensor, last: Tensor, choices_E: Sequence[int]) -> Tensor:
        states = [self.before(before), self.last(last)]
        for (node, index), edge, choice in zip(self.places, self.edges, choices_E, strict=True):
            part = edge(states[index], choice)
            if len(states) == 2 + node:
                states.append(part)
            else:
                states[-1] = states[-1] + part
        return torch.cat(states[2:], 1)


class CandidateEdge(nn.ModuleList):
    """The candidates of one edge, of which `choice` runs."""

    def forward(self, x_BCHW: Tensor, choice: int) -> Tensor:
        return self[choice](x_BCHW)


class GenotypeCell(Cell):
    """The cell that a genotype says, with drop-path: each operation but the identity drops out, image by image."""

    def __init__(self, before: int, last: int, channels: int, halved: bool, reduction: bool, genotype: Genotype) -> None:
        super().__init__(before, last, channels, halved, affine=True)
        nodes = genotype.reduction if reduction else genotype.normal
        self.inputs = [edge.input for node in nodes for edge in node]
        self.operations = nn.ModuleList(BUILD[edge.operation](channels, 2 if reduction and edge.input < 2 else 1, True)
                                        for node in nodes for edge in node)

    def forward(self, before: Tensor, last: Tensor, drop: float) -> Tensor:
        states = [self.before(before), self.last(last)]
        parts: list[Tensor] = []
        for index, operation in zip(self.inputs, self.operations, strict=True):
            part = operation(states[index])
            if drop and self.training and not isinstance(operation, nn.Identity):
                part = part * (torch.rand(len(part), 1, 1, 1, device=part.device) >= drop) / (1 - drop)
            parts.append(part)
            if len(parts) == 2:
                states.append(parts[0] + parts[1])
                parts = []
        return torch.cat(states[2:], 1)


class CellStack(nn.Module):
    """Stem, `cells` cells of `channels` channels (twice as many after each reduction), mean over pixels, classifier."""

    def __init__(self, channels: int, cells: int, nodes: int, num_classes: int, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        before = last = STEM * channels
        self.stem = nn.Sequential(nn.Conv2d(3, last, 3, padding=1, bias=False), nn.BatchNorm2d(last))
        self.kinds = [int(number in reductions(cells)) for number in range(cells)]  # 0 normal, 1 reduction
        self.cells, halved = nn.ModuleList(), False
        for kind in self.kinds:
            channels *= 1 + kind
            self.cells.append(make(before, last, channels, halved, bool(kind)))
            before, last, halved = last, nodes * channels, bool(kind)
        self.head = nn.Linear(last, num_classes)


class SuperNet(CellStack):
    """The network of a search: normalised images [B,3,H,W] -> logits [B,K] along the path of `on`.

    Args:
        channels, cells, nodes, operations: the size of the space (DARTS: 16, 8, 4 and its eight operations).

    The architecture is no part of its weights: the caller gives the path. `edges` are those of one cell.
    """

    def __init__(self, num_classes: int, channels: int = 16, cells: int = 8, nodes: int = 4,
                 operations: Sequence[str] = OPERATIONS) -> None:
        unknown = [name for name in operations if name not in OPERATIONS]
        if unknown or len(set(operations)) < max(2, len(operations)) or set(operations) == {NONE, operations[0]}:
            raise UserError(f"the supernet's operations are {list(operations)}; give two or more different ones of "
                            f"{', '.join(OPERATIONS)}")
        for name, size, most in (("channels", channels, 1024), ("cells", cells, 100), ("nodes", nodes, MOST_NODES)):
            if not isinstance(size, int) or not 1 <= size <= most:
                raise UserError(f"the supernet has {size!r} {name}; give a whole number from 1 to {most}")
        super().__init__(channels, cells, nodes, num_classes, partial(SearchCell, nodes=nodes, operations=operations))
        self.operations = tuple(operations)
        self.size = f"{channels} channels, {cells} cells of {nodes} nodes"
        self.edges = len(edges_of(nodes))
        self.choices_2E: Sequence[Sequence[int]] = ()

    @contextmanager
    def on(self, choices_2E: Sequence[Sequence[int]]) -> Iterator[None]:
        """Every pass in this block, functional_call's too, runs operation choices_2E[cell][edge] on that edge."""
        self.choices_2E = choices_2E
        try:
            yield
        finally:
            self.choices_2E = ()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        assert self.choices_2E, "a pass outside of SuperNet.on"
        before = last = self.stem(images_BCHW)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            before, last = last, cell(before, last, self.choices_2E[kind])
        return self.head(last.mean((2, 3)))


class AuxiliaryHead(nn.Module):
    """A second classifier on the features at two thirds of the depth, in training alone (DARTS, for CIFAR)."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Conv2d(inputs, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU(), nn.Flatten(), nn.Linear(768, num_classes))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return self.layers(features_BCHW)


class CellNetwork(CellStack):
    """The network of a genotype: normalised images [B,3,H,W] -> logits [B,K].

    In training it gives (logits, auxiliary logits) where it has an auxiliary head, and drops paths with the probability
    drop_path * progress; `progress`, the share of the training that is over, is set from outside before each epoch.
    """

    def __init__(self, genotype: Genotype, num_classes: int, channels: int = 36, cells: int = 20, drop_path: float = 0.0,
                 auxiliary: bool = False) -> None:
        nodes = len(genotype.normal)
        super().__init__(channels, cells, nodes, num_classes, partial(GenotypeCell, genotype=genotype))
        self.drop_path, self.progress = drop_path, 0.0
        self.auxiliary_cell = 2 * cells // 3
        width = nodes * channels * (4 if cells > 2 else 2)
        self.auxiliary = AuxiliaryHead(width, num_classes) if auxiliary else None

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        auxiliary_BK = None
        before = last = self.stem(images_BCHW)
        for number, cell in enumerate(self.cells):
            before, last = last, cell(before, last, self.drop_path * self.progress)
            if self.auxiliary is not None and self.training and number == self.auxiliary_cell:
                auxiliary_BK = self.auxiliary(last)
        logits_BK = self.head(last.mean((2, 3)))
        return logits_BK if auxiliary_BK is None else (logits_BK, auxiliary_BK)


def name_of(genotype: Genotype, channels: int, cells: int, drop_path: float = 0.0, auxiliary: bool = False) -> str:
    """The name that says a CellNetwork whole, so that whatever takes a classifier's name takes one."""
    return f"{PREFIX}{channels}/{cells}/{drop_path:g}/{int(auxiliary)}/{genotype}"


def from_name(name: str, num_classes: int) -> CellNetwork:
    """The CellNetwork of a `name_of`.

    Raises:
        UserError: `name` is none.
    """
    try:
        channels, cells, drop_path, auxiliary, genotype = name.removeprefix(PREFIX).split("/", 4)
        sizes = int(channels), int(cells), float(drop_path), bool(int(auxiliary))
    except ValueError as error:
        raise UserError(f"the classifier {short(name)} has no name of the form {PREFIX}CHANNELS/CELLS/DROP_PATH/"
                        "AUXILIARY/GENOTYPE; tools/train_arch.py makes one of a genotype.json") from error
    if not (1 <= sizes[0] <= 4096 and 1 <= sizes[1] <= 1000 and 0 <= sizes[2] < 1):
        raise UserError(f"the classifier {short(name)} has {channels} channels, {cells} cells and drop-path {drop_path}; "
                        "give at least one of both and a probability below 1")
    return CellNetwork(Genotype.from_text(genotype), num_classes, *sizes)
