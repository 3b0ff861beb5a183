"""SVHN and CIFAR-10: the official files, their checksums, and how they are read."""

import contextlib
import errno
import http.client
import queue
import socket
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genssl.data.cache import Arrays, LazyArray, Progress
from genssl.errors import FAILED_RUN, UserError

EXTRA = "svhn-extra"
ALTERNATIVES = "--data synthetic, or --data ARCHIVE with images of your own"


@dataclass(frozen=True)
class OfficialFile:
    """A file as torchvision fetches and checks it."""

    name: str
    url: str
    md5: str


def official_files(source: str) -> tuple[OfficialFile, ...]:
    """The files of both parts of "svhn", "svhn-extra" or "cifar10"."""
    from torchvision.datasets import CIFAR10, SVHN

    if source == "cifar10":
        return (OfficialFile(CIFAR10.filename, CIFAR10.url, CIFAR10.tgz_md5),)
    pieces = ("train", "extra", "test") if source == EXTRA else ("train", "test")
    return tuple(OfficialFile(name, url, md5) for url, name, md5 in map(SVHN.split_list.__getitem__, pieces))


def listing(source: str, folder: Path, damaged: str = "") -> list[str]:
    """One line per official file: its URL, its MD5, and whether `folder` has it, apart from a damaged one."""
    lines = []
    for file in official_files(source):
        there = file.name != damaged and (folder / file.name).exists()
        lines.append(f"  {file.url}  MD5 {file.md5}" + ("  (already there)" if there else ""))
    return lines


def check_copies(source: str, path: Path, progress: Progress | None = None) -> Path:
    """Compare the official files that a user has with their checksums; returns their folder.

    Args:
        source: as for `official_files`.
        path: one of the files, the others beside it, or the folder that contains them.
        progress: called with the file that is checked.

    Raises:
        UserError: a file is missing, or its MD5 is not the official one.
    """
    folder = path if path.is_dir() else path.parent
    files = official_files(source)
    missing = [file.name for file in files if not (folder / file.name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}; put all files of {source} in one folder, or use "
            f"{ALTERNATIVES}:",
            files=listing(source, folder),
        )
    for file in files:
        copy = folder / file.name
        if progress:
            progress(f"checking {file.name}", 0, None)
        status = copy.stat()
        md5 = _md5(copy.resolve(), status.st_size, status.st_mtime_ns)
        if md5 != file.md5:
            raise wrong_checksum(copy, md5, file)
    return folder


def wrong_checksum(copy: Path, md5: str, file: OfficialFile) -> UserError:
    """What to say of a copy whose MD5 is another one."""
    return UserError(
        f"{copy} is not the official file, or it is damaged: its MD5 is {md5} instead of {file.md5}; "
        f"download it again from {file.url}"
    )


@lru_cache(maxsize=16)
def _md5(path: Path, size: int, modified: int) -> str:
    """The MD5 of a file, computed once per process for a size and a time of change (ns)."""
    from torchvision.datasets.utils import calculate_md5

    return str(calculate_md5(path))


Piece = Literal["train", "test", "extra"]  # what a file holds
ANSWER_SECONDS = 10.0  # for the first answer of a server, looking up its name included
TIMEOUT_SECONDS = 30.0  # for each further piece of a download
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


def read_official(
    name: str,
    part: Literal["train", "test"],
    folder: Path,
    progress: Progress | None = None,
    *,
    download: bool = True,
) -> tuple[Arrays, tuple[str, ...]]:
    """Read the official files of a part from `folder`, downloading what is missing.

    Every file is compared with its official MD5 at each reading, also one that was put there by hand:
    CIFAR-10 is pickled, and unpickling runs code.

    Args:
        name: "svhn", "svhn-extra" (whose train part is SVHN's with the extra digits after it) or "cifar10".
        part: "train" or "test".
        folder: where the official files are, or shall be.
        progress: called with the file that is read, then with the rows that are converted.
        download: False: `folder` belongs to the user; nothing is downloaded or written there.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), laid out again as their rows are asked for, so that there is
        no second copy of what torchvision holds; and the classes.

    Raises:
        UserError: a file is missing or damaged and cannot be downloaded, or the folder cannot be written.
    """
    family = "svhn" if name == EXTRA else name
    pieces: list[Piece] = ["train", "extra"] if (name, part) == (EXTRA, "train") else [part]
    if download:
        raws = [_read(name, family, piece, folder, progress) for piece in pieces]
    else:
        raws = [_read_copy(family, piece, folder, progress) for piece in pieces]
    images = [raw.images for raw in raws]
    labels = np.concatenate([np.asarray(raw.labels, np.int64) for raw in raws])
    shape = (len(labels), *images[0].shape[1:])
    read = partial(_rows, images, f"converting {name}", progress)
    return {"images": LazyArray(shape, "uint8", read), "labels": labels}, raws[0].classes


def _read(name: str, family: str, piece: Piece, folder: Path, progress: Progress | None) -> Raw:
    file = folder / file_of(family, piece)
    exists = file.exists()
    if progress:
        progress(f"{'checking' if exists else 'downloading'} and reading {file.name}", 0, None)
    _make(folder)
    try:
        try:
            return READERS[family](folder, piece, False)
        except RuntimeError:  # of torchvision: no file, or one with another MD5
            require_answer(next(source.url for source in official_files(name) if source.name == file.name))
            with _network_timeout():
                return READERS[family](folder, piece, True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise _unwritable(folder, error) from error
        if not exists:
            file.unlink(missing_ok=True)  # the beginning of a download
        raise UserError(
            _advice(file, exists, error), FAILED_RUN, listing(name, file.parent, damaged=file.name)
        ) from error


def _read_copy(family: str, piece: Piece, folder: Path, progress: Progress | None) -> Raw:
    """Read a file that belongs to the user; CIFAR-10 is unpacked elsewhere."""
    if progress:
        progress(f"reading {file_of(family, piece)}", 0, None)
    file = folder / file_of(family, piece)
    try:
        if family == "svhn":
            return _read_svhn(folder, piece, False)
        with tempfile.TemporaryDirectory(prefix="genssl-") as temporary:
            _unpack_cifar10(folder, Path(temporary))
            return _read_cifar10(Path(temporary), piece, False)
    except RuntimeError as error:  # of torchvision: another MD5
        raise UserError(f"{file} changed while it was read; start again", FAILED_RUN) from error
    except OSError as error:
        if family == "svhn" or error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"cannot unpack {file} to {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a folder with space",
            FAILED_RUN,
        ) from error


def _unpack_cifar10(folder: Path, destination: Path) -> None:
    """Unpack an archive whose MD5 is the official one; of its pickles nothing is read here."""
    from torchvision.datasets.utils import calculate_md5, extract_archive

    (file,) = official_files("cifar10")
    md5 = calculate_md5(folder / file.name)
    if md5 != file.md5:
        raise wrong_checksum(folder / file.name, md5, file)
    extract_archive(folder / file.name, destination)


def _rows(
    images: Sequence[npt.NDArray[np.uint8]], what: str, progress: Progress | None, rows: slice
) -> npt.NDArray[np.uint8]:
    """Rows of several arrays laid end to end."""
    pieces, start = [], 0
    for array in images:
        pieces.append(array[max(0, rows.start - start) : max(0, rows.stop - start)])
        start += len(array)
    if progress:
        progress(what, rows.stop, start)
    return np.ascontiguousarray(np.concatenate(pieces))


def file_of(name: str, piece: Piece) -> str:
    """The name of the official file."""
    return f"{piece}_32x32.mat" if name == "svhn" else "cifar-10-python.tar.gz"


def _read_svhn(folder: Path, piece: Piece, download: bool) -> Raw:
    from torchvision.datasets import SVHN

    data = SVHN(folder, split=piece, download=download)  # its label 10 has become 0
    return Raw(data.data, data.labels, tuple("0123456789"))


def _read_cifar10(folder: Path, piece: Piece, download: bool) -> Raw:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    # A download of an archive that is there, with the right MD5, only unpacks it
    download = download or check_integrity(folder / CIFAR10.filename, CIFAR10.tgz_md5)
    data = CIFAR10(folder, train=piece == "train", download=download)
    return Raw(data.data.transpose(0, 3, 1, 2), data.targets, tuple(data.classes))


READERS: dict[str, Callable[[Path, Piece, bool], Raw]] = {"svhn": _read_svhn, "cifar10": _read_cifar10}


def require_answer(url: str) -> None:
    """Return once a server answers a request for `url`, whatever its answer.

    Looking up a name has no timeout of its own, and takes long on a computer without a network: so it runs
    in a thread that is left behind.

    Raises:
        OSError: there was no answer within ANSWER_SECONDS.
    """
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
                answers.put(None)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
    if error is not None and not isinstance(error, urllib.error.HTTPError):
        raise error


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


def reason_of(error: Exception) -> str:
    """Why a download failed, in a few words."""
    cause = getattr(error, "reason", error)
    text = " ".join(str(getattr(cause, "strerror", None) or cause).split())
    return text[:120] or type(error).__name__


def _advice(file: Path, exists: bool, error: Exception) -> str:
    """What is wrong, and what to do with the files that are listed below it."""
    reason = reason_of(error)
    if exists:
        problem = (
            f"{file} is damaged (its MD5 is not the official one) and cannot be downloaded again ({reason})"
        )
    else:
        problem = f"cannot download {file.name} ({reason})"
    return f"{problem}; put these files in {file.parent}, or use --data FILE (one of them), {ALTERNATIVES}:"
