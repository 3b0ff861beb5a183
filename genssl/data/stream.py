"""Safetensors files written piece by piece, for tensors that are not to be in memory as a whole."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from genssl.data.batches import chunks
from genssl.files import atomic

PIECE = 4 * 2**20  # bytes that are made at a time
TYPES = {torch.uint8: "U8", torch.int64: "I64"}  # all that a split is made of
UNKNOWN = "0" * 64  # holds the place of the digest, which is as long


@dataclass(frozen=True)
class Lazy:
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


def lazy(tensor: Tensor) -> Lazy:
    """A tensor that there is, as one that is asked for its rows."""
    return Lazy(tuple(tensor.shape), tensor.dtype, tensor.__getitem__)


def telling(tensor: Lazy, tell: Callable[[int], None]) -> Lazy:
    """The same tensor, which tells how many rows were made so far."""

    def rows(piece: slice) -> Tensor:
        made = tensor.rows(piece)
        tell(piece.stop)
        return made

    return replace(tensor, rows=rows)


def write_lazy(path: Path, tensors: Mapping[str, Lazy], metadata: Callable[[str], Mapping[str, str]]) -> str:
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
            _write(file, name, tensors[name], digest.update)
        file.seek(0)
        file.write(_head(tensors, metadata(digest.hexdigest())))
    return digest.hexdigest()


def _write(file: IO[bytes], name: str, tensor: Lazy, update: Callable[[bytes | memoryview], None]) -> None:
    update(f"{name}|{tensor.dtype}|{tensor.shape}|".encode())
    for piece in _pieces(tensor):
        data = piece.cpu().reshape(-1).view(torch.uint8).numpy().data
        update(data)
        file.write(data)


def _pieces(tensor: Lazy) -> Iterator[Tensor]:
    n, *rest = tensor.shape
    for rows in chunks(n, max(1, PIECE // max(1, tensor.row_bytes))):
        piece = tensor.rows(rows).detach()
        if piece.dtype != tensor.dtype or list(piece.shape) != [rows.stop - rows.start, *rest]:
            raise ValueError(f"rows of shape {tuple(piece.shape)} and type {piece.dtype} do not fit")
        if piece.numel():
            yield piece


def _offsets(tensors: Mapping[str, Lazy]) -> dict[str, tuple[int, int]]:
    """First and last byte after the header: wide types go first, as safetensors wants them aligned."""
    offsets, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        offsets[name] = (end, end + tensors[name].bytes)
        end += tensors[name].bytes
    return offsets


def _head(tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> bytes:
    """The header and its length: eight bytes, then JSON filled up with spaces to a multiple of eight."""
    entries = {
        name: {"dtype": TYPES[tensors[name].dtype], "shape": tensors[name].shape, "data_offsets": span}
        for name, span in _offsets(tensors).items()
    }
    text = json.dumps({"__metadata__": dict(metadata)} | entries, separators=(",", ":"), ensure_ascii=False)
    data = text.encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data
