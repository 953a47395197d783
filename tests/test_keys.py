"""Entries that nothing reads are refused with the nearest name, values of another type by what they should be."""

import re
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from dada_det import keys
from tests.messages import refused

TABLE: keys.Table = {"epochs": (int,), "clip_grad": (*keys.NUMBER, None), "data": {"root": (str,), "val_root": (str, None)},
                     "ema": (dict, None), "anything": keys.ANY, "mirror": (bool,)}


@pytest.mark.parametrize(("config", "names"), [
    ({"epoch": 3}, ("epoch", "epochs")),
    ({"Clip_Grad": 3}, ("Clip_Grad", "clip_grad")),
    ({"data": {"roof": "x"}}, ("data.roof", "data.root")),
    ({"zzz": 3}, ("zzz", "epochs, clip_grad, data, ema, anything, mirror")),
    ({"epochs": "many"}, ("'many'", "epochs", "int")),
    ({"epochs": True}, ("True", "epochs", "int")),
    ({"epochs": None}, ("None", "epochs", "int")),
    ({"clip_grad": "{}"}, ("'{}'", "clip_grad", "int or float or None")),
    ({"data": 3}, ("3", "data", "root, val_root")),
    ({"mirror": 1}, ("1", "mirror", "bool"))])
def test_what_a_table_does_not_have(config: dict[str, Any], names: tuple[str, ...]) -> None:
    with refused("the config", *names):
        keys.demand_entries(config, TABLE, "the config")


def test_what_a_table_has() -> None:
    keys.demand_entries({"epochs": 3, "clip_grad": None, "data": {"val_root": None}, "ema": {"a": 1}, "anything": None,
                         "mirror": False}, TABLE, "the config")
    keys.demand_entries({"data": None, "clip_grad": 5, "anything": True}, TABLE, "the config")


class Base:
    def __init__(self, size: int, *, depth: int = 1) -> None:
        pass


class Passes(Base):
    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(**options)


class Keeps:
    def __init__(self, name: str, **options: Any) -> None:
        self.options = options


class Module(nn.Module):
    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()


def test_the_arguments_of_a_class_are_its_bases_too() -> None:
    assert keys.arguments_of(Passes) == (["width", "size", "depth"], True)
    assert keys.arguments_of(Keeps) == (["name"], False)
    assert keys.arguments_of(Module)[1] is False
    assert keys.arguments_of(lambda lr, *, eps=1: None) == (["lr", "eps"], True)
    assert keys.arguments_of(object) == ([], True)


def test_an_argument_that_is_none() -> None:
    keys.demand_arguments({"lr": 1, "momentum": 0.9}, SGD, "the config", "optimizer.")
    keys.demand_arguments({"whatever": 1}, Keeps, "the config", "keeps.")
    with refused("optimizer.Lr", re.compile("optimizer.lr$")):
        keys.demand_arguments({"Lr": 1}, SGD, "the config", "optimizer.")
