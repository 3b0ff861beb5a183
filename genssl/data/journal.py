"""What was read of a path so far, on disk: pixels and names, so that reading can go on after any end."""

import contextlib
import json
import os
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from genssl.data.cache import JOURNAL

Bytes = npt.NDArray[np.uint8]

HEADER = b'["images read so far", 1]\n'
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows would translate ends of lines
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
