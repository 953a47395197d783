"""Moving tensors between the host and a device, and float32 on a device as on the host.

Everything that moves goes through `move` or `move_all`: a copy to the host that nobody waits for leaves what has been there
before, and a copy from memory that is not pinned makes the host wait.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = 8  # bytes, of the largest element that is moved


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`, itself where it is there already.

    On the host it has arrived when this returns. To a GPU it goes contiguous, by way of pinned memory, and nothing waits:
    the GPU's own queue keeps the order.
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


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """Inside, a GPU multiplies float32 as float32: TF32, cuDNN's default, keeps eleven of its 24 bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
