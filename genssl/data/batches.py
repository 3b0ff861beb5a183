"""In which order a run sees the images, and how rows are cut into batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from genssl.runtime import generator


def order(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The permutation of an epoch: int64 (n,), a function of (seed, epoch, n) on every device.

    Drawn on the CPU, since each kind of device has its own random numbers.
    """
    return torch.randperm(n, generator=generator(seed, "order", epoch)).to(device)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows; the last one may be shorter."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
