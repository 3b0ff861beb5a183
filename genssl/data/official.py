"""SVHN and CIFAR-10 in their official files, fetched and check-summed by torchvision."""

import contextlib
import errno
import http.client
import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genssl.data.cache import Progress
from genssl.data.stream import Lazy, lazy
from genssl.errors import FAILED_RUN, UserError

Piece = Literal["train", "test", "extra"]  # what a file holds

EXTRA = "svhn-extra"

TIMEOUT_SECONDS = 30.0
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Raw:
    """A file as torchvision holds it.

    Attributes:
        images: uint8 (N, 3, 32, 32), in whatever order they lie in memory.
        labels: (N,).
        classes: the name of each label.
    """

    images: Any
    labels: Any
    classes: tuple[str, ...]


def read(
    name: str, part: Literal["train", "test"], folder: Path, progress: Progress | None = None
) -> tuple[dict[str, Lazy], tuple[str, ...]]:
    """Read the official files of a part from `folder`, downloading what is not there.

    Every file is compared with its official MD5 at each reading, also one that was put there by hand:
    CIFAR-10 is pickled, and unpickling runs code.

    Args:
        name: "svhn", "svhn-extra" (whose train part is SVHN's with the extra digits after it) or "cifar10".
        part: "train" or "test".
        folder: where the official files are, or shall be.
        progress: told which file is read, then which rows are asked for.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), laid out anew as their rows are asked for, so that there is
        no second copy of what torchvision holds; and the classes.

    Raises:
        UserError: a file is missing or damaged and cannot be downloaded, or the folder cannot be written.
    """
    family = "svhn" if name == EXTRA else name
    pieces: list[Piece] = ["train", "extra"] if (name, part) == (EXTRA, "train") else [part]
    raws = [_read(family, piece, folder, progress) for piece in pieces]
    images = [raw.images for raw in raws]
    labels = torch.from_numpy(np.concatenate([np.asarray(raw.labels, np.int64) for raw in raws]))
    shape = (len(labels), *images[0].shape[1:])
    rows = partial(_rows, images, f"converting {name}", progress)
    return {"images": Lazy(shape, torch.uint8, rows), "labels": lazy(labels)}, raws[0].classes


def _read(name: str, piece: Piece, folder: Path, progress: Progress | None) -> Raw:
    file = folder / file_of(name, piece)
    found = file.exists()
    if progress:
        progress(f"{'checking' if found else 'downloading'} and reading {file.name}", 0, None)
    _make(folder)
    try:
        with _network_timeout():
            return READERS[name](folder, piece)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise _unwritable(folder, error) from error
        if not found:
            file.unlink(missing_ok=True)  # the beginning of a download
        raise UserError(_advice(file, found, error), FAILED_RUN) from error


def _rows(images: Sequence[Any], what: str, progress: Progress | None, rows: slice) -> Tensor:
    """Rows of several arrays laid end to end."""
    found, start = [], 0
    for array in images:
        found.append(array[max(0, rows.start - start) : max(0, rows.stop - start)])
        start += len(array)
    if progress:
        progress(what, rows.stop, start)
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(found)))


def file_of(name: str, piece: Piece) -> str:
    """The name of the official file."""
    return f"{piece}_32x32.mat" if name == "svhn" else "cifar-10-python.tar.gz"


def _read_svhn(folder: Path, piece: Piece) -> Raw:
    from torchvision.datasets import SVHN

    found = SVHN(folder, split=piece, download=True)  # its label 10 has become 0
    return Raw(found.data, found.labels, tuple("0123456789"))


def _read_cifar10(folder: Path, piece: Piece) -> Raw:
    from torchvision.datasets import CIFAR10

    found = CIFAR10(folder, train=piece == "train", download=True)
    return Raw(found.data.transpose(0, 3, 1, 2), found.targets, tuple(found.classes))


READERS: dict[str, Callable[[Path, Piece], Raw]] = {"svhn": _read_svhn, "cifar10": _read_cifar10}


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """torchvision sets none, and would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder} ({error.strerror}); set GENSSL_CACHE to a folder with space")


def _advice(file: Path, found: bool, error: Exception) -> str:
    reason = " ".join(str(getattr(error, "reason", error)).split())[:120] or type(error).__name__
    if found:
        return (
            f"{file} is damaged (its MD5 is not the official one) and cannot be downloaded again ({reason}); "
            "replace it, or use --data synthetic"
        )
    return f"cannot download {file.name} ({reason}); put it in {file.parent}, or use --data synthetic"
