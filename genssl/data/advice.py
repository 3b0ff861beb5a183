"""Word to the kernel of which rows of a memory-mapped tensor will be read.

Without it a read of one row brings in what surrounds it, which pays only for files that are read from end to
end, and the next row is not asked for before this one has come. It matters where a file is larger than the
memory that is free: see docs/scaling.md.
"""

import ctypes
import functools
import mmap
from collections.abc import Sequence

from torch import Tensor

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
