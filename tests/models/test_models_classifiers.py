import pytest
import torch

from dada_det.models.classifiers import build_classifier, demand_plain, has_fixed_size
from tests.messages import refused


def test_wide_resnet_40_2_has_the_size_of_the_paper():
    model = build_classifier("wide_resnet40_2", num_classes=10, image_size=32)
    # Table 5 of arXiv:1605.07146 rounds it to 2.2 million; forty layers: 37 of 3x3 and the three shortcuts, and fc.
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_243_546
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 40
    assert not any("module" in name for name in model.state_dict())


@pytest.mark.parametrize(("name", "size"), [("wide_resnet40_2", 32), ("convnet", 16), ("resnet18", 64),
                                            ("vit_tiny_patch16_224", 64)])
def test_every_source_of_networks_gives_logits_of_all_classes(name, size):
    torch.manual_seed(0)
    model = build_classifier(name, num_classes=7, image_size=size)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_unknown_name_says_what_there_is():
    with refused("'resnet5O'", "resnet50", "wide_resnet40_2, wide_resnet28_10, shake_shake26_2x32d", "convnet"):
        build_classifier("resnet5O", num_classes=10, image_size=32)


def test_networks_that_take_one_size_only_are_known():
    assert has_fixed_size("vit_tiny_patch16_224") and has_fixed_size("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert not any(has_fixed_size(name) for name in ("resnet50", "convnext_tiny", "convnet", "no such network"))


@pytest.mark.parametrize("name", ["resnet18", "convnet", "darts_supernet"])
def test_an_option_that_a_network_does_not_take_is_told(name):
    with refused(f"classifier {name}", "'width': 3", "does not take"):
        build_classifier(name, num_classes=10, image_size=32, width=3)


def test_options_that_make_another_network_are_told_by_a_tensor():
    demand_plain("resnet18", 64, {"drop_path_rate": 0.1})
    demand_plain("test_vit", 64, {})
    demand_plain("convnet", 64, {"whatever": 1})  # no backbone is written of it
    for name, options, tensor in (("resnet18", {"stem_type": "deep"}, "conv1.0.weight"),
                                  ("test_vit", {"embed_dim": 128}, "cls_token")):
        with refused(f"timm's {name}", tensor, next(iter(options)), "leave that out"):
            demand_plain(name, 64, options)


def test_options_that_keep_the_tensors_and_change_the_features_are_told():
    demand_plain("test_vit", 64, {"drop_path_rate": 0.1})
    for name, options in (("resnet18", {"output_stride": 16}), ("test_vit", {"act_layer": "relu"})):
        with refused(f"timm's {name}", next(iter(options)), "other features", "leave that out"):
            demand_plain(name, 64, options)
