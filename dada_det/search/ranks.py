"""Means over the processes of torch.distributed; without a process group a tensor is its own mean."""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Returns (rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mean_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the mean of each tensor over all processes, by one call to all_reduce."""
    size = world()[1]
    if size == 1 or not tensors:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / size).split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def mean_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`mean_over_ranks` of a dictionary."""
    return dict(zip(weights, mean_over_ranks(list(weights.values())), strict=True))
