"""Random streams: each follows from a tuple of whole numbers, such as (seed, epoch, index), and from nothing else."""

import hashlib
import operator

import torch
from torch import Tensor


def generator_for(*keys: int) -> torch.Generator:
    """A random stream of its own for each tuple of whole numbers, such as (seed, epoch, index).

    Equal numbers give equal streams, whether they are Python's, numpy's or tensors.

    Raises:
        TypeError: one is no whole number.
    """
    digest = hashlib.blake2b(repr(tuple(map(operator.index, keys))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of `n` images in an epoch."""
    return torch.randperm(n, generator=generator_for(seed, epoch))


def cycle_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """The `batch` indices of step `step` when all `n` are walked through again and again, reshuffled each time."""
    start = step * batch
    rounds = range(start // n, (start + batch - 1) // n + 1)
    return torch.cat([epoch_order(n, seed, r) for r in rounds])[start - rounds[0] * n:][:batch]
