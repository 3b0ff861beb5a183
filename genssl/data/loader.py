"""How a split's images reach the device: all of them at once, or batch by batch from the cache."""

import ctypes
import functools
import mmap
import queue
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from genssl.data.split import Split

KNOWN = hasattr(mmap, "MADV_RANDOM")  # not on Windows


def expect_single_rows(images: Tensor) -> None:
    """The rows of `images`, contiguous, will be read in no order: nothing that surrounds them is of use."""
    if KNOWN:
        _advise(images.data_ptr(), images.nbytes, mmap.MADV_RANDOM)


def expect(images: Tensor, rows: Sequence[int]) -> None:
    """These rows of `images`, contiguous, will be read soon: all of them may be fetched at once."""
    if not KNOWN:
        return
    size = images.nbytes // max(1, len(images))
    for row in rows:
        _advise(images.data_ptr() + row * size, size, mmap.MADV_WILLNEED)


def _advise(address: int, length: int, advice: int) -> None:
    """Advice on whole pages. Where the kernel does not take it, nothing is lost but time."""
    start = address - address % mmap.PAGESIZE
    _madvise()(ctypes.c_void_p(start), ctypes.c_size_t(address + length - start), ctypes.c_int(advice))


@functools.cache
def _madvise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise


BUFFERS = 2
FROM_MEMORY = 2e-6  # seconds that reading a row takes at most where the file is in memory: 0.2e-6 measured
MEMORY_SHARE = 0.5  # of the device's free memory that a resident split may take


def resident(images: Tensor, batches: Tensor) -> Generator[Tensor]:
    """The batches of images that lie on the device.

    Args:
        images: uint8 (N, 3, H, W).
        batches: int64 (S, B), the rows of each batch.
    """
    for rows in batches.to(images.device):
        yield images[rows]


def streamed(images: Tensor, batches: Tensor, device: torch.device) -> Generator[Tensor]:
    """The same batches of images that stay where they are, as in a memory-mapped file.

    A thread copies the rows of the next batch into one of two buffers, pinned for CUDA, while a step is
    taken on the other. A batch is to be used before the next one is asked for.

    Args:
        images: uint8 (N, 3, H, W), on the host.
        batches: int64 (S, B), the rows of each batch.
        device: where the batches go.

    Raises:
        OSError: or whatever else reading raised in the thread.
    """
    filler = _Filler(images, batches.cpu(), pinned=device.type == "cuda")
    try:
        for _ in range(len(batches)):
            buffer = filler.next()
            batch = buffer.images.to(device, non_blocking=buffer.pinned)
            if buffer.pinned:  # the device has its own copy, as soon as it has come so far
                filler.give_back(buffer, device)
            yield batch
            if not buffer.pinned:
                filler.give_back(buffer, device)
    finally:
        filler.stop()


class _Buffer:
    """A batch on the host, and the moment from which it may be written again."""

    def __init__(self, shape: tuple[int, ...], pinned: bool) -> None:
        self.pinned = pinned
        self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self.copied = torch.cuda.Event(blocking=True) if pinned else None

    def wait(self) -> None:
        """Until the device has copied what is in it."""
        if self.copied is not None:
            self.copied.synchronize()


class _Filler:
    """The thread that fills buffers, and the two queues between it and the training loop."""

    def __init__(self, images: Tensor, batches: Tensor, pinned: bool) -> None:
        self.free: queue.SimpleQueue[_Buffer | None] = queue.SimpleQueue()
        self.full: queue.SimpleQueue[_Buffer | BaseException] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self.free.put(_Buffer((batches.shape[1], *images.shape[1:]), pinned))
        self.thread = threading.Thread(target=self._fill, args=(images, batches), daemon=True)
        self.thread.start()

    def _fill(self, images: Tensor, batches: Tensor) -> None:
        source = images.numpy()  # torch would gather with threads of its own beside those of the step
        expect_single_rows(images)
        from_disk = True
        try:
            for rows in batches.numpy():
                buffer = self.free.get()
                if buffer is None:
                    return
                buffer.wait()
                if from_disk:
                    expect(images, rows.tolist())
                start = time.perf_counter()
                np.take(source, rows, axis=0, out=buffer.images.numpy(), mode="clip")
                from_disk = time.perf_counter() - start > len(rows) * FROM_MEMORY
                self.full.put(buffer)
        except BaseException as error:  # to be raised where the batch is asked for
            self.full.put(error)

    def next(self) -> _Buffer:
        """The next batch, once it is there."""
        found = self.full.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def give_back(self, buffer: _Buffer, device: torch.device) -> None:
        """Let a buffer be written again once the device has copied it."""
        if buffer.copied is not None:
            buffer.copied.record(torch.cuda.current_stream(device))
        self.free.put(buffer)

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self.free.put(None)
        self.thread.join()


@dataclass(frozen=True)
class Loader:
    """A split to train on, and how it reaches the device.

    Attributes:
        split: on the device, or on the host where it is streamed.
        device: where the batches are wanted.
        stream: whether they are read one by one.
    """

    split: Split
    device: torch.device
    stream: bool = False

    def batches(self, rows: Tensor) -> Generator[Tensor]:
        """The images of each row of `rows`, int64 (S, B), on the device."""
        if self.stream:
            return streamed(self.split.images, rows, self.device)
        return resident(self.split.images, rows)


def make_loader(split: Split, device: torch.device, limit: float | None = None) -> Loader:
    """Put a split on the device if it fits there.

    Args:
        split: on the host.
        device: where its images are wanted.
        limit: the most GiB that they may take; half of what is free when None.
    """
    most = MEMORY_SHARE * free_bytes(device) if limit is None else limit * 2**30
    if split.images.numel() <= most:
        return Loader(split.to(device), device)
    return Loader(split, device, stream=True)


def free_bytes(device: torch.device) -> int:
    """Memory that is free: a CUDA device's own, else the host's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
