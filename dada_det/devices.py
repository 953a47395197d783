"""Moving tensors between the host and a device, and float32 arithmetic with and without TF32.

All copies go through `move` or `move_all`. A copy to the host has to be waited for, else the host reads what was there
before. A copy from memory that is not pinned makes the host wait too.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = 8  # bytes, of the largest element that is moved


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copies `tensor` to `device`; returns `tensor` itself if it is there already.

    A copy to the host has arrived when this returns. A copy to a GPU goes through pinned memory and nothing waits for
    it: the GPU's own queue keeps the order.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return tensor.to(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


def move_all(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """`move` of each, in one copy for all."""
    device = torch.device(device)
    if len({tensor.device for tensor in tensors}) != 1 or tensors[0].device.type == device.type:
        return [move(tensor, device) for tensor in tensors]
    bytes_of = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
    aligned = [F.pad(own, (0, -len(own) % ALIGNMENT)) for own in bytes_of]
    parts = move(torch.cat(aligned), device).split([len(own) for own in aligned])
    return [part[:len(own)].view(tensor.dtype).view(tensor.shape)
            for part, own, tensor in zip(parts, bytes_of, tensors, strict=True)]


def float32_arithmetic() -> AbstractContextManager[None]:
    """Switches TF32 off inside: cuDNN's default keeps eleven of float32's 24 bits."""
    return _arithmetic(tf32=False)


def tf32_arithmetic() -> AbstractContextManager[None]:
    """Switches TF32 on inside: convolutions and matrix products in float32 run on a GPU's tensor cores."""
    return _arithmetic(tf32=True)


@contextmanager
def _arithmetic(tf32: bool) -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def safe_convolutions() -> Iterator[None]:
    """Leaves oneDNN out inside, on CPUs whose widest instructions are AVX2: there torch 2.11's oneDNN corrupts memory when
    DARTS's cells train (seen with 4 and 8 channels), and the process aborts; without oneDNN it does not."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and torch.backends.cpu.get_cpu_capability() != "AVX2"  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
