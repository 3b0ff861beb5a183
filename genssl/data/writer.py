"""Files of many rows, written piece by piece: safetensors, and the journal of a conversion at work."""

import contextlib
import hashlib
import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genssl.files import atomic
from genssl.runtime import chunks

PIECE = 4 * 2**20  # bytes that are made at a time
TYPES = {torch.uint8: "U8", torch.int64: "I64"}  # all that a split is made of
UNKNOWN = "0" * 64  # holds the place of the digest, which is as long


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose rows are made when they are asked for.

    Attributes:
        shape: of the whole; the first axis are the rows.
        dtype: torch.uint8 or torch.int64.
        rows: gives the rows of a slice, which has no step.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[slice], Tensor]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes


def as_lazy(tensor: Tensor) -> LazyTensor:
    """A tensor that there is, as one that is asked for its rows."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.__getitem__)


def with_progress(tensor: LazyTensor, tell: Callable[[int], None]) -> LazyTensor:
    """The same tensor, which tells how many rows were made so far."""

    def rows(piece: slice) -> Tensor:
        made = tensor.rows(piece)
        tell(piece.stop)
        return made

    return replace(tensor, rows=rows)


def write_lazy(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Callable[[str], Mapping[str, str]]
) -> str:
    """Write a safetensors file atomically, with about PIECE bytes in memory; returns the digest.

    Tensors, their order and the digest are those of `files.write_tensors`. The digest stands before the
    tensors in the file but is known only after them, so that the header is written twice.

    Args:
        path: of the file.
        tensors: by name; of each, pieces are asked for once and in order.
        metadata: what the file shall say, from the SHA-256 of its tensors; as long for any digest.

    Raises:
        ValueError: rows have another shape or type than announced.
    """
    head = _head(tensors, metadata(UNKNOWN))
    place = len(head)
    starts = {name: place + start for name, (start, _) in _offsets(tensors).items()}
    digest = hashlib.sha256()
    with atomic(path) as temporary, temporary.open("r+b") as file:
        file.write(head)
        for name in sorted(tensors):  # the order of the digest, which is not that of the file
            file.seek(starts[name])
            _write_tensor(file, name, tensors[name], digest.update)
        file.seek(0)
        file.write(_head(tensors, metadata(digest.hexdigest())))
    return digest.hexdigest()


def _write_tensor(
    file: IO[bytes], name: str, tensor: LazyTensor, update: Callable[[bytes | memoryview], None]
) -> None:
    update(f"{name}|{tensor.dtype}|{tensor.shape}|".encode())
    for piece in _pieces(tensor):
        data = piece.cpu().reshape(-1).view(torch.uint8).numpy().data
        update(data)
        file.write(data)


def _pieces(tensor: LazyTensor) -> Iterator[Tensor]:
    n, *rest = tensor.shape
    for rows in chunks(n, max(1, PIECE // max(1, tensor.row_bytes))):
        piece = tensor.rows(rows).detach()
        if piece.dtype != tensor.dtype or list(piece.shape) != [rows.stop - rows.start, *rest]:
            raise ValueError(f"rows of shape {tuple(piece.shape)} and type {piece.dtype} do not fit")
        if piece.numel():
            yield piece


def _offsets(tensors: Mapping[str, LazyTensor]) -> dict[str, tuple[int, int]]:
    """First and last byte after the header: wide types go first, as safetensors wants them aligned."""
    offsets, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        offsets[name] = (end, end + tensors[name].bytes)
        end += tensors[name].bytes
    return offsets


def _head(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    """The header and its length: eight bytes, then JSON filled up with spaces to a multiple of eight."""
    entries = {
        name: {"dtype": TYPES[tensors[name].dtype], "shape": tensors[name].shape, "data_offsets": span}
        for name, span in _offsets(tensors).items()
    }
    text = json.dumps({"__metadata__": dict(metadata)} | entries, separators=(",", ":"), ensure_ascii=False)
    data = text.encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


Bytes = npt.NDArray[np.uint8]
JOURNAL = (".pixels", ".names")  # the suffixes of a conversion at work
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows would translate ends of lines
HEADER = b'["images read so far", 1]\n'
BATCH = 4096  # images that an interruption may cost
BATCH_BYTES = 16 * 2**20  # and the bytes of them that are held in memory


class Damaged(Exception):
    """The journal does not agree with itself or with what is read."""


class Unwritable(Exception):
    """There is no place for a journal or for what is made of it."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Tell an error of writing from those of reading."""
    try:
        yield
    except OSError as error:
        raise Unwritable(str(error)) from error


class Journal:
    """The images of a path in the order of reading, in two files that only grow.

    Pixels are on disk before their names are written: what has a name has its pixels, whatever ends the
    process, the power of the machine included. A journal that was left is opened as far as both files
    agree, and cut off there. In memory are the names, a checksum an image, and the last batch.

    Entry i is row i of the pixels; that of a file that was bad has a reason, and zeros for pixels.

    Attributes:
        names: of the entries.
        reasons: by entry, why a file is bad.
    """

    def __init__(self, folder: Path, key: str, image_size: int) -> None:
        self.names: list[str] = []
        self.reasons: dict[int, str] = {}
        self._sums = array("I")
        self._shape = (3, image_size, image_size)
        self._row = 3 * image_size**2
        self._batch = max(1, min(BATCH, BATCH_BYTES // self._row))
        self._pending: list[tuple[bytes, bytes]] = []
        self._removed = False
        self._paths = [folder / f"{key}{suffix}" for suffix in JOURNAL]
        with writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._handles = [os.open(path, FLAGS, 0o666) for path in self._paths]
            self._ends = self._recover()
            for handle, end in zip(self._handles, self._ends, strict=True):
                os.ftruncate(handle, end)

    def __len__(self) -> int:
        return len(self.names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Unwritable):
            self.commit()
        for handle in self._handles:
            os.close(handle)
        if self._removed:
            self._unlink()

    def append(self, name: str, content: Bytes | str) -> None:
        """Add an image, uint8 (H, W, 3), or why there is none.

        Raises:
            Unwritable: the disk is full, or failed.
        """
        if isinstance(content, str):
            self._record(name, bytes(self._row), content)
        else:
            pixels = content.transpose(2, 0, 1).tobytes()
            self._record(name, pixels, zlib.crc32(pixels))

    def commit(self) -> None:
        """Bring to disk what was added: first the pixels, then the names.

        Raises:
            Unwritable: the disk is full, or failed.
        """
        if not self._pending:
            return
        ends = []
        batch = [b"".join(parts) for parts in zip(*self._pending, strict=True)]
        with writing():
            for handle, data, end in zip(self._handles, batch, self._ends, strict=True):
                ends.append(_put(handle, data, end))
                os.fsync(handle)
        self._ends = ends
        self._pending.clear()

    def pixels(self, rows: npt.NDArray[np.int64]) -> Bytes:
        """The images of some entries that are on disk, (M, 3, H, W).

        Raises:
            Damaged: they are not what was written.
        """
        found = np.empty((len(rows), self._row), np.uint8)
        for place, row in zip(found, rows.tolist(), strict=True):
            # Not memory-mapped: a file that somebody cuts off would end this process
            os.lseek(self._handles[0], row * self._row, os.SEEK_SET)
            data = os.read(self._handles[0], self._row)
            if len(data) != self._row or zlib.crc32(data) != self._sums[row]:
                raise Damaged
            place[:] = np.frombuffer(data, np.uint8)
        return found.reshape(-1, *self._shape)

    def remove(self) -> None:
        """Take the files away; the journal can be read until it is closed."""
        self._pending.clear()
        self._removed = True
        self._unlink()

    def _unlink(self) -> None:
        for path in self._paths:  # Windows removes no file that is open: it goes when the journal is closed
            with contextlib.suppress(OSError):
                path.unlink()

    def _record(self, name: str, pixels: bytes, value: int | str) -> None:
        self._pending.append((pixels, json.dumps([name, value]).encode() + b"\n"))
        self._add(name, value)
        if len(self._pending) >= self._batch:
            self.commit()

    def _add(self, name: str, value: int | str) -> None:
        if isinstance(value, str):
            self.reasons[len(self.names)] = value
        self._sums.append(0 if isinstance(value, str) else value)
        self.names.append(name)

    def _recover(self) -> list[int]:
        """Take over what both files agree on; gives how long they may stay."""
        rows = os.fstat(self._handles[0]).st_size // self._row
        with open(self._handles[1], "rb", closefd=False) as lines:
            if lines.readline() != HEADER:
                return [0, _put(self._handles[1], HEADER, 0)]
            end = len(HEADER)
            for line in lines:
                entry = _parsed(line)
                if len(self.names) == rows or entry is None:
                    break
                self._add(*entry)
                end += len(line)
        return [len(self.names) * self._row, end]


def _parsed(line: bytes) -> tuple[str, int | str] | None:
    """A name and the checksum or the reason; None for what is no whole line."""
    try:
        name, value = json.loads(line)
    except (ValueError, TypeError):
        return None
    whole = line.endswith(b"\n") and isinstance(name, str)
    usable = isinstance(value, str) or (isinstance(value, int) and 0 <= value < 2**32)
    return (name, value) if whole and usable else None


def _put(handle: int, data: bytes, start: int) -> int:
    """Write at a place; gives where it ends."""
    os.lseek(handle, start, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    return start + len(data)
