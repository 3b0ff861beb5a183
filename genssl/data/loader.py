"""How a split's images reach the device: all of them at once, or batch by batch from the host."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genssl.data.rows import is_mapped, read_rows, verify
from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError

MEMORY_SHARE = 0.5  # of the device's free memory that a resident split may take
WORKERS = 2  # processes that read batches ahead of a GPU


@dataclass(frozen=True)
class Loader:
    """A split to train on, and how it reaches the device.

    Attributes:
        split: on the device, or on the host where it is streamed. On a CPU it may be memory-mapped.
        device: where the batches are wanted.
        stream: whether the images stay on the host, and batches are copied when they are needed.
    """

    split: Split
    device: torch.device
    stream: bool = False

    def batches(self, rows: Tensor) -> Iterator[Tensor]:
        """The images of each row of `rows`, int64 (S, B), on the device."""
        if self.stream or is_mapped(self.split.images):
            return streamed(self.split.images, rows, self.device)
        return resident(self.split.images, rows)


def make_loader(split: Split, device: torch.device, limit: float | None = None) -> Loader:
    """Put a split on the device if it fits there.

    On a CPU a split that is memory-mapped stays so: its batches are read from the file, which is as fast as
    the step needs, and checked.

    Args:
        split: on the host.
        device: where its images are wanted.
        limit: the most GiB that they may take; half of the free memory when None.

    Raises:
        UserError: images that go to another device are not those that were written to the cache.
    """
    if fits(split.images.numel(), device, limit):
        return Loader(split if device.type == "cpu" else split.to(device), device)
    return Loader(split, device, stream=True)


def place(split: Split, device: torch.device, limit: float | None = None) -> Split:
    """The split for an evaluation: on the device if it fits there, else on the host, to be taken in batches.

    What fits is in memory, on a CPU too: a page of a map ends the process where the file is cut meanwhile.

    Args:
        split: on the host.
        device: where it is evaluated.
        limit: as for `make_loader`.

    Raises:
        UserError: the images are not those that were written to the cache.
    """
    if fits(split.images.numel(), device, limit):
        return split.to(device)
    verify(split.images)
    return split


def fits(size: int, device: torch.device, limit: float | None = None) -> bool:
    """Whether `size` bytes may stay on the device: half of what is free, or `limit` GiB."""
    return size <= (MEMORY_SHARE * free_bytes(device) if limit is None else limit * 2**30)


def free_bytes(device: torch.device) -> int:
    """Free memory: that of a CUDA device, with what torch holds for later use; else of the host."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return int(psutil.virtual_memory().available)


def resident(images: Tensor, batches: Tensor) -> Iterator[Tensor]:
    """The batches of images that lie on the device.

    Args:
        images: uint8 (N, C, H, W).
        batches: int64 (S, B), the rows of each batch.
    """
    for rows in batches.to(images.device):
        # It copies whole rows, and is several times as fast as images[rows] on a CPU
        yield images.index_select(0, rows)


def streamed(images: Tensor, batches: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The same batches of images that stay on the host, as in a memory-mapped file.

    For CUDA, worker processes read ahead and batches are copied from pinned memory while the device works.

    Args:
        images: uint8 (N, C, H, W), on the host.
        batches: int64 (S, B), the rows of each batch.
        device: where the batches go.

    Raises:
        UserError: the file of the images was cut, cannot be read, or is damaged.
    """
    on_gpu = device.type == "cuda"
    # Only forked workers share the open file; others would be sent a copy of its content
    forks = on_gpu and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _Rows(images),
        batch_size=None,
        sampler=batches.cpu().numpy(),  # the run's own order, one array of rows per batch
        num_workers=WORKERS if forks else 0,
        multiprocessing_context="fork" if forks else None,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # else the loader would draw a seed from the global one
    )
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch, FAILED_RUN)
        yield batch.to(device, non_blocking=on_gpu)


class _Rows(Dataset["Tensor | str"]):
    """Batches by their rows, or why one cannot be read: a worker's error would come with its traceback."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> "Tensor | str":
        if not is_mapped(self.images):
            # numpy gathers, since torch would do so with threads beside those of the step
            return torch.from_numpy(np.take(self.images.numpy(), rows, axis=0))
        try:
            return read_rows(self.images, torch.from_numpy(rows))
        except UserError as error:
            return str(error)
