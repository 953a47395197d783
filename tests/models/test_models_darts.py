"""DARTS's cells: sizes of the released code, one path at a time and in memory, and the network of a genotype."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.errors import UserError
from dada_det.models.classifiers import build_classifier
from dada_det.models.darts import BUILD, CandidateEdge, CellNetwork, SuperNet, name_of, reductions
from dada_det.models.genotype import OPERATIONS, Genotype
from dada_det.search import alignment
from tests.messages import refused

# The genotype that DARTS's authors call DARTS_V2.
DARTS_V2 = Genotype.from_text(
    "sep_conv_3x3:0,sep_conv_3x3:1/sep_conv_3x3:0,sep_conv_3x3:1/sep_conv_3x3:1,skip_connect:0/skip_connect:0,dil_conv_3x3:2|"
    "max_pool_3x3:0,max_pool_3x3:1/skip_connect:2,max_pool_3x3:1/max_pool_3x3:0,skip_connect:2/skip_connect:2,max_pool_3x3:1")


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_sizes_are_those_of_darts() -> None:
    assert weights(SuperNet(10)) == 1_930_618  # its released code prints 1.930842 M with the 2 x 14 x 8 logits
    assert weights(CellNetwork(DARTS_V2, 10)) == 3_349_342  # Table 1 rounds it to 3.3 million


def test_two_reductions_of_the_depth() -> None:
    assert [sorted(reductions(cells)) for cells in (1, 2, 3, 8, 20)] == [[0], [1], [1, 2], [2, 5], [6, 13]]


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_or_halves_the_side(name: str, affine: bool, stride: int, side: int) -> None:
    x = torch.randn(2, 4, side, side)
    y = BUILD[name](4, stride, affine)(x)
    assert y.shape == (2, 4, -(-side // stride), -(-side // stride))
    if name == "none":
        assert not y.any()
    elif name == "skip_connect" and stride == 1:
        assert torch.equal(x, y)
    elif "pool" in name and affine:
        pooled = F.max_pool2d(x, 3, stride, 1) if "max" in name else F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        assert torch.equal(y, pooled)


def test_the_shifted_half_of_a_reduction_sees_the_other_pixels() -> None:
    """Of an even side the padding changes nothing: DARTS's own x[:, :, 1:, 1:]."""
    reduce, x = BUILD["skip_connect"](4, 2, True), torch.randn(2, 4, 8, 8)
    expected = reduce.bn(torch.cat([reduce.first(x.relu()), reduce.second(x.relu()[:, :, 1:, 1:])], 1))
    torch.testing.assert_close(reduce(x), expected)


def supernet(**changes: Any) -> SuperNet:
    torch.manual_seed(0)
    return SuperNet(3, **{"channels": 4, "cells": 3, "nodes": 2, **changes})


def test_a_pass_runs_the_operations_of_its_path_alone() -> None:
    network = supernet()
    generator = torch.Generator().manual_seed(0)
    choices = torch.randint(0, 8, (2, 5), generator=generator).tolist()
    ran = []
    for kind, cell in zip(network.kinds, network.cells, strict=True):
        for number, edge in enumerate(cell.edges):
            for choice, operation in enumerate(edge):
                operation.register_forward_hook(lambda *_, place=(kind, number, choice): ran.append(place))
    with network.on(choices):
        network(torch.randn(2, 3, 8, 8))
    assert ran == [(kind, number, choices[kind][number]) for kind in network.kinds for number in range(5)]
    with pytest.raises(AssertionError, match="outside"):
        network(torch.randn(2, 3, 8, 8))


def test_a_weight_that_is_not_on_the_path_has_no_gradient() -> None:
    network = supernet()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    convolution = OPERATIONS.index("sep_conv_3x3")
    with network.on([[convolution] * 5] * 2):
        gradient, _ = alignment.training_gradient(network, images, labels)
    edges = {name: re.fullmatch(r"cells.\d.edges.\d.(\d).*", name) for name in gradient}  # the number of the operation
    assert all(tensor.any() for name, tensor in gradient.items() if not edges[name] or edges[name][1] == str(convolution))
    assert not any(tensor.any() for name, tensor in gradient.items() if edges[name] and edges[name][1] != str(convolution))


def saved_bytes(network: SuperNet, choices: list[list[int]], images: Tensor) -> int:
    """What autograd keeps of one forward pass for the backward pass, weights left out, in bytes."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor  # held, so that no other tensor can take its place
        return tensor

    with network.on(choices), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_is_that_of_one_path_and_not_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against DARTS's mixture, all eight operations on every edge, of the same supernet."""
    network, images = supernet(channels=8, nodes=4), torch.randn(4, 3, 16, 16)
    generator = torch.Generator().manual_seed(1)
    paths = [torch.randint(0, 8, (2, 14), generator=generator).tolist() for _ in range(4)]
    largest = [[OPERATIONS.index("sep_conv_5x5")] * 14] * 2
    one = [saved_bytes(network, path, images) for path in (*paths, largest)]
    monkeypatch.setattr(CandidateEdge, "forward", lambda self, x, _: sum(operation(x) / len(self) for operation in self))
    mixture = saved_bytes(network, largest, images)
    assert sum(one[:4]) / 4 < 0.25 * mixture and one[4] < 0.4 * mixture, (one, mixture)


def test_what_no_supernet_can_be() -> None:
    for options, sentence in (({"operations": ["none", "conv"]}, r"operations are \['none', 'conv'\]; give two or more"),
                              ({"operations": ["skip_connect"]}, "give two or more different ones"),
                              ({"operations": ["skip_connect", "skip_connect"]}, "give two or more different ones"),
                              ({"cells": 0}, "the supernet has 0 cells; give a whole number from 1 to 100"),
                              ({"nodes": 17}, "the supernet has 17 nodes"), ({"channels": "x"}, "'x' channels")):
        with pytest.raises(UserError, match=sentence):
            build_classifier("darts_supernet", 3, 32, **options)
    with refused("darts_supernet", "{'depth': 3}"):
        build_classifier("darts_supernet", 3, 32, depth=3)


@pytest.mark.parametrize(("side", "cells"), [(32, 3), (9, 5), (8, 2), (8, 1)])
def test_a_network_by_its_name(side: int, cells: int) -> None:
    network = build_classifier(name_of(DARTS_V2, 4, cells, 0.2, True), 7, side)
    assert isinstance(network, CellNetwork) and network.drop_path == 0.2 and len(network.cells) == cells
    images = torch.randn(3, 3, side, side)
    logits, auxiliary = network(images)
    assert logits.shape == auxiliary.shape == (3, 7)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    assert network(images).shape == (3, 7)
    plain = build_classifier(name_of(DARTS_V2, 4, cells), 7, side)
    assert plain(images).shape == (3, 7) and plain.auxiliary is None


@pytest.mark.parametrize("name", ["darts/", "darts/4/3/0/0", "darts/4/x/0/0/a|b", "darts/0/3/0/0/a|b", "darts/4/3/1.5/0/a|b",
                                  "darts/4/3/nan/0/a|b", "darts/4/3/0/0/a|b"])
def test_a_name_that_is_none_gets_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"the classifier 'darts/|is no genotype"):
        build_classifier(name, 7, 32)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    """Each of a node's two parts is 0 or 1 / (1 - p) times itself, image by image; the identity and a test drop nothing."""
    network = CellNetwork(Genotype.from_text("max_pool_3x3:0,skip_connect:1|max_pool_3x3:0,skip_connect:1"), 3, 4, 3)
    cell, x = network.cells[0], torch.randn(400, 12, 6, 6)
    torch.manual_seed(0)
    dropped = cell(x, x, 0.4)
    pooled, skipped = cell.operations[0](cell.before(x)), cell.last(x)
    factors = ((dropped - skipped).flatten(1) * pooled.flatten(1)).sum(1) / pooled.flatten(1).square().sum(1)
    zero, kept = factors.abs() < 1e-4, (factors - 1 / 0.6).abs() < 1e-4
    assert bool((zero | kept).all()) and 0.3 < zero.float().mean() < 0.5
    network.eval()
    reference = copy.deepcopy(network)
    network.drop_path, network.progress = 0.4, 1.0
    assert torch.equal(network(x[:, :3]), reference(x[:, :3]))
