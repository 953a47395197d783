"""Moving between host and device: what is copied to the host is waited for, and several tensors take one copy."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dada_det.devices import float32_arithmetic, move, move_all, safe_convolutions, tf32_arithmetic
from tests.conftest import ROOT


class Copies(TorchDispatchMode):
    """(from, to, non_blocking) of every copy between two devices; on "meta", which has no values, in the GPU's place."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy" and args[0].device != result.device:
            self.seen.append((args[0].device.type, result.device.type, bool((kwargs or {}).get("non_blocking"))))
        return result


MIXED = (torch.arange(6).view(2, 3), torch.tensor([True, False, True]), torch.rand(2, 0, 3), torch.rand(3, 2).t(),
         torch.tensor(7, dtype=torch.uint8), torch.rand(3, 1, dtype=torch.float64).expand(3, 4))


def test_nothing_waits_on_the_way_to_a_device():
    with Copies() as copies:
        assert move(torch.ones(3), "meta").device.type == "meta"
        moved = move_all(MIXED, torch.device("meta"))
    assert copies.seen == [("cpu", "meta", True)] * 2
    assert [(tensor.shape, tensor.dtype) for tensor in moved] == [(tensor.shape, tensor.dtype) for tensor in MIXED]


def test_on_the_host_the_values_are_there(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *arguments, **options: asked.append((arguments, options)) or self)
    move(torch.ones(2), "cpu")
    assert asked == [((torch.device("cpu"),), {})]  # not non_blocking


def test_many_tensors_keep_their_values_in_one_copy(monkeypatch):
    from dada_det import devices

    copied = []
    monkeypatch.setattr(devices, "move", lambda tensor, device: copied.append(tensor) or tensor)
    found = move_all(MIXED, "meta")
    assert len(copied) == 1 and copied[0].dtype == torch.uint8
    assert all(torch.equal(new, old) and new.dtype == old.dtype for new, old in zip(found, MIXED, strict=True))


def test_what_is_there_already_is_not_copied():
    tensors = [torch.rand(2), torch.rand(3)]
    assert all(new is old for new, old in zip(move_all(tensors, "cpu"), tensors, strict=True))


def test_no_other_file_copies_without_a_wait():
    """A copy to the host without a wait leaves what has been there before: `move` alone may leave one out."""
    files = [path for folder in ("dada_det", "tools") for path in (ROOT / folder).rglob("*.py") if path.name != "devices.py"]
    assert len(files) > 100
    assert not [path for path in files if re.search("non_blocking|pin_memory\\(", path.read_text())]


@pytest.mark.parametrize(("arithmetic", "tf32"), [(float32_arithmetic, False), (tf32_arithmetic, True)])
def test_arithmetic_is_lent(arithmetic, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    with pytest.raises(KeyError), arithmetic():
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 != tf32


@pytest.mark.parametrize(("capability", "onednn"), [("AVX2", False), ("AVX512", True)])
def test_onednn_is_left_out_where_it_is_not_safe(capability, onednn, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with safe_convolutions():
        assert torch.backends.mkldnn.enabled == onednn
    assert torch.backends.mkldnn.enabled
