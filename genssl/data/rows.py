"""Rows of cached images: read from their file, and compared with their checksums.

A page of a memory-mapped file that was cut meanwhile, or that the disk does not give, ends the process by a
signal (SIGBUS) and says nothing. So rows are read from the file and not from the map.
"""

import functools
import math
import os
import tokenize
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genssl.errors import FAILED_RUN, UserError
from genssl.files import flush
from genssl.runtime import chunks

AT_ONCE = 256  # rows that are checked at a time


def checksums(rows: npt.NDArray[Any]) -> list[int]:
    """CRC-32 of each row of an array (N, ...) that is contiguous."""
    return [zlib.crc32(row.data) for row in rows.reshape(len(rows), -1)]


def write_checksums(path: Path, sums: list[int]) -> None:
    """Write checksums to a .npy file, flushed."""
    with path.open("wb") as file:
        np.save(file, np.array(sums, np.uint32))
        file.flush()
        flush(file.fileno())


def load_array(path: Path, mmap_mode: Literal["c"] | None = None) -> npt.NDArray[Any]:
    """`np.load`, which parses a damaged header as Python and gives that parser's errors, too.

    Raises:
        ValueError: the file is no array.
        OSError: the file cannot be read.
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode=mmap_mode)
    except (SyntaxError, tokenize.TokenError, EOFError) as error:
        raise ValueError(f"no header of an array ({error})") from error
    return array


def read_checksums(path: Path, n: int) -> npt.NDArray[Any]:
    """Read the checksums of n rows into memory.

    Raises:
        ValueError: they are not as many.
        OSError: the file cannot be read.
    """
    sums = load_array(path)
    if sums.dtype != np.uint32 or sums.shape != (n,):
        raise ValueError(f"checksums of shape {sums.shape}")
    return sums


def crc32(pieces: Iterable[npt.NDArray[Any]]) -> int:
    """CRC-32 of arrays, one after the other."""
    return functools.reduce(lambda crc, piece: zlib.crc32(piece.tobytes(), crc), pieces, 0)


def read_labels(path: Path) -> Tensor:
    """Read labels into memory: they are 8 bytes per image."""
    return torch.from_numpy(load_array(path))


def mapped(file: Path, sums: npt.NDArray[Any] | None) -> Tensor:
    """A .npy file as a tensor, copy-on-write: torch has no read-only tensors.

    Args:
        file: of rows, which `read_rows` and `verify` read from it as long as the tensor lives.
        sums: of each row; None where there are none.
    """
    array = load_array(file, "c")
    assert isinstance(array, np.memmap)
    _register(file, array, sums)
    return torch.from_numpy(array)


class RowFile:
    """The .npy file of a cached array that is memory-mapped.

    It is open for as long as the map is: a file that is removed meanwhile stays readable, as the map does.

    Args:
        path: of the file.
        array: its map, of shape (N, ...).
        sums: the CRC-32 of each row, (N,); None where they were not written, as by earlier versions.
    """

    def __init__(self, path: Path, array: np.memmap[Any, Any], sums: npt.NDArray[Any] | None) -> None:
        self.path, self.shape, self.dtype = path, array.shape[1:], array.dtype
        self._bytes, self._sums = math.prod(self.shape) * array.itemsize, sums
        self._start, self._end = array.offset, array.offset + array.nbytes
        self._file = path.open("rb", buffering=0)

    def read(self, rows: Iterable[int]) -> npt.NDArray[Any]:
        """The rows, (B, ...), as a new array.

        Raises:
            UserError: the file was cut, cannot be read, or a row is not what was written.
        """
        rows = list(rows)
        try:
            data = [self._read_row(row) for row in rows]
        except OSError as error:
            raise UserError(
                f"cannot read {self.path} ({error.strerror or error}); check it", FAILED_RUN
            ) from error
        for row, content in zip(rows, data, strict=True):
            if len(content) < self._bytes:
                raise self._damaged("was cut while it was read")
            if self._sums is not None and zlib.crc32(content) != self._sums[row]:
                raise self._damaged(f"is damaged: image {row} does not match its checksum")
        return np.frombuffer(bytearray().join(data), self.dtype).reshape(len(rows), *self.shape)

    def _read_row(self, row: int) -> bytes:
        offset = self._start + row * self._bytes
        if hasattr(os, "pread"):  # moves no position that forked processes share
            return os.pread(self._file.fileno(), self._bytes, offset)
        self._file.seek(offset)
        return self._file.read(self._bytes)

    def _damaged(self, how: str) -> UserError:
        return UserError(
            f"{self.path} {how}; remove {self.path.parent}, and the same command makes it again", FAILED_RUN
        )

    def require_whole(self) -> None:
        """Raises a UserError where the file is shorter than it was."""
        if os.fstat(self._file.fileno()).st_size < self._end:
            raise self._damaged("was cut while it was read")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_FILES: dict[int, RowFile] = {}  # by the address of the mapped array


def _register(path: Path, array: np.memmap[Any, Any], sums: npt.NDArray[Any] | None) -> None:
    """Keep a mapped array's file until the array is freed."""
    address, file = array.ctypes.data, RowFile(path, array, sums)
    _FILES[address] = file

    def forget() -> None:
        if _FILES.get(address) is file:
            del _FILES[address]
        file.close()

    weakref.finalize(array, forget).atexit = False


def _file_of(images: Tensor) -> tuple[RowFile, int] | None:
    """The file of mapped images and their first row in it; None of images that are in memory."""
    if images.device.type != "cpu" or not (file := _FILES.get(images.untyped_storage().data_ptr())):
        return None
    numel = math.prod(file.shape)
    first, rest = divmod(images.storage_offset(), numel)
    # Gray images may be seen as three equal channels, by a stride of 0
    shape = (1, *images.shape[2:]) if images.ndim == 4 and images.stride(1) == 0 else images.shape[1:]
    fits = tuple(shape) == file.shape
    return (file, first) if fits and rest == 0 and images.stride(0) == numel else None


def is_mapped(images: Tensor) -> bool:
    """Whether images are those of a file that rows are read from."""
    return _file_of(images) is not None


def read_rows(images: Tensor, rows: Tensor) -> Tensor:
    """`images[rows]`, read from the file of images that are memory-mapped.

    Args:
        images: uint8 (N, C, H, W).
        rows: int64 (B,).

    Raises:
        UserError: the file was cut, cannot be read, or is not what was written.
    """
    if (source := _file_of(images)) is None:
        return images[rows.to(images.device)]
    file, first = source
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
        raise IndexError(f"rows are to be chosen from {len(images):,}")
    return torch.from_numpy(file.read((rows + first).tolist())).expand(-1, *images.shape[1:]).contiguous()


def loaded(images: Tensor, device: torch.device) -> Tensor:
    """Images on a device; those that are memory-mapped are read from their file, checked, piece by piece.

    Args:
        images: uint8 (N, C, H, W), or masks (N, H, W).
        device: where they are wanted.

    Raises:
        UserError: as in `read_rows`.
    """
    if (source := _file_of(images)) is None:
        return images.to(device)
    file, first = source
    result = torch.empty((len(images), *file.shape), dtype=images.dtype, device=device)
    for rows in chunks(len(images), AT_ONCE):
        result[rows] = torch.from_numpy(file.read(range(first + rows.start, first + rows.stop)))
    seen = result.expand(-1, *images.shape[1:])  # gray images may be seen as three channels
    return seen if device.type == "cpu" else seen.contiguous()


def read_slice(images: Tensor, rows: slice) -> Tensor:
    """`images[rows]`, read from the file of images that are memory-mapped; a slice has a start and a stop.

    Raises:
        UserError: as in `read_rows`.
    """
    if not is_mapped(images):
        return images[rows]
    return read_rows(images, torch.arange(rows.start, min(rows.stop, len(images))))


def require_whole(images: Tensor) -> None:
    """Refuse images whose file is shorter than when it was mapped, before they are read from the map.

    Raises:
        UserError: it is.
    """
    if source := _file_of(images):
        source[0].require_whole()


def verify(images: Tensor) -> None:
    """Compare images with their checksums, if they are memory-mapped.

    Raises:
        UserError: as in `read_rows`.
    """
    if (source := _file_of(images)) is None:
        return
    file, first = source
    for rows in chunks(len(images), AT_ONCE):
        file.read(range(first + rows.start, first + rows.stop))
