"""SVHN and CIFAR-10 in their official files, fetched and check-summed by torchvision."""

import contextlib
import errno
import http.client
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genssl.data.cache import Progress
from genssl.data.split import Split
from genssl.errors import FAILED_RUN, UserError
from genssl.files import tensor_digest

Part = Literal["train", "test"]
Raw = tuple[Any, Any, tuple[str, ...]]  # images (N, 3, 32, 32), labels (N,), classes

TIMEOUT_SECONDS = 30.0
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def read(name: str, part: Part, folder: Path, progress: Progress | None = None) -> Split:
    """Read the official files of "svhn" or "cifar10" from `folder`, downloading what is not there.

    Every file is compared with its official MD5 at each reading, also one that was put there by hand:
    CIFAR-10 is pickled, and unpickling runs code.

    Raises:
        UserError: a file is missing or damaged and cannot be downloaded, or the folder cannot be written.
    """
    file = folder / file_of(name, part)
    found = file.exists()
    if progress:
        progress(f"{'checking' if found else 'downloading'} {file.name}", 0, None)
    _make(folder)
    try:
        with _network_timeout():
            images, labels, classes = READERS[name](folder, part)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise _unwritable(folder, error) from error
        if not found:
            file.unlink(missing_ok=True)  # the beginning of a download
        raise UserError(_advice(file, found, error), FAILED_RUN) from error
    return _split(name, part, images, labels, classes)


def file_of(name: str, part: Part) -> str:
    """The name of the official file."""
    return f"{part}_32x32.mat" if name == "svhn" else "cifar-10-python.tar.gz"


def _read_svhn(folder: Path, part: Part) -> Raw:
    from torchvision.datasets import SVHN

    found = SVHN(folder, split=part, download=True)  # its label 10 has become 0
    return found.data, found.labels, tuple("0123456789")


def _read_cifar10(folder: Path, part: Part) -> Raw:
    from torchvision.datasets import CIFAR10

    found = CIFAR10(folder, train=part == "train", download=True)
    return found.data.transpose(0, 3, 1, 2), found.targets, tuple(found.classes)


READERS: dict[str, Callable[[Path, Part], Raw]] = {"svhn": _read_svhn, "cifar10": _read_cifar10}


def _split(name: str, part: Part, images: Any, labels: Any, classes: tuple[str, ...]) -> Split:
    tensors = {
        "images": torch.from_numpy(np.ascontiguousarray(images, np.uint8)),
        "labels": torch.from_numpy(np.asarray(labels, np.int64)),
    }
    digest = tensor_digest(tensors)
    return Split(tensors["images"], tensors["labels"], classes, name, part, digest)


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
