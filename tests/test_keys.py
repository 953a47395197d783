"""Entries that nothing reads are refused with the nearest name, values of another type by what they should be."""

from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from dada_det import keys
from dada_det.errors import UserError

TABLE: keys.Table = {"epochs": (int,), "clip_grad": (*keys.NUMBER, None), "data": {"root": (str,), "val_root": (str, None)},
                     "ema": (dict, None), "anything": keys.ANY, "mirror": (bool,)}


@pytest.mark.parametrize(("config", "sentence"), [
    ({"epoch": 3}, "the config gives epoch, which nothing reads; the nearest entry is epochs"),
    ({"Clip_Grad": 3}, "the config gives Clip_Grad, which nothing reads; the nearest entry is clip_grad"),
    ({"data": {"roof": "x"}}, "the config gives data.roof, which nothing reads; the nearest entry is data.root"),
    ({"zzz": 3}, "the config gives zzz, which nothing reads; there are epochs, clip_grad, data, ema, anything, mirror"),
    ({"epochs": "many"}, "the config has 'many' for epochs; give int"),
    ({"epochs": True}, "the config has True for epochs; give int"),
    ({"epochs": None}, "the config has None for epochs; give int"),
    ({"clip_grad": "{}"}, "the config has '{}' for clip_grad; give int or float or None"),
    ({"data": 3}, "the config has 3 for data; give a dict of root, val_root"),
    ({"mirror": 1}, "the config has 1 for mirror; give bool")])
def test_what_a_table_does_not_have(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        keys.demand_entries(config, TABLE, "the config")
    assert str(caught.value) == sentence


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
    with pytest.raises(UserError, match=r"gives optimizer.Lr, which nothing reads; the nearest entry is optimizer.lr$"):
        keys.demand_arguments({"Lr": 1}, SGD, "the config", "optimizer.")
