"""The image files of a folder or an archive, one after the other; nothing is unpacked to disk."""

import contextlib
import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from genssl.errors import UserError

PICTURES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"}
SUFFIXES = PICTURES | {".ppm", ".pgm", ".pbm", ".pnm"}
MAX_FILE_BYTES = 256 * 2**20


class BadFile(Exception):
    """A file that cannot be read; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Member:
    """One image file.

    Attributes:
        name: relative, with forward slashes, without dots, printable.
        stamp: its size and, in a folder, the time of its last change.
        read: gives the content, or raises BadFile; to be called before the next member is asked for.
    """

    name: str
    stamp: tuple[int, ...]
    read: Callable[[], bytes]


def members(path: Path) -> Iterator[Member]:
    """The image files of a folder, .tar, .tar.gz or .zip in stored order, in one pass over an archive.

    Hidden files, __MACOSX and files that are not images by their suffix are skipped. Names that are
    absolute or climb out with .. are cut down to what is left of them: they are labels here, not paths.

    Raises:
        UserError: nothing is there, it is neither folder nor archive, or the archive is damaged.
    """
    with _damage(path):
        yield from _kind(path)(path)


def count(path: Path) -> int | None:
    """How many image files there are; None where only reading the whole archive would tell."""
    return None if _kind(path) is _from_tar else sum(1 for _ in members(path))


def clean(name: str) -> str | None:
    """The name as a relative, printable label; None for a file that is no visible image."""
    components = [part for part in name.split("/") if part not in {"", ".", ".."}]
    if not components or any(part.startswith(".") or part == "__MACOSX" for part in components):
        return None
    if os.path.splitext(components[-1])[1].lower() not in SUFFIXES:
        return None
    return printable("/".join(components))


def printable(name: str) -> str:
    """The name with what no terminal and no file of text would take spelled out."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)


def _kind(path: Path) -> Callable[[Path], Iterator[Member]]:
    if path.is_dir():
        return _from_folder
    if not path.is_file():
        raise UserError(f"no such file or folder: {path}; give a folder, a .tar, a .tar.gz or a .zip")
    with path.open("rb") as file:
        return _from_zip if file.read(2) == b"PK" else _from_tar


def _from_folder(path: Path) -> Iterator[Member]:
    for file in _walk(os.fspath(path), ()):
        name = clean(os.path.relpath(file, path).replace(os.sep, "/"))
        if name is None:
            continue
        try:
            status = os.stat(file)
        except OSError as error:  # such as a link to nowhere
            yield Member(name, (-1,), _refuse(error.strerror or "unreadable"))
            continue
        if stat.S_ISREG(status.st_mode):
            stamp = (status.st_size, status.st_mtime_ns)
            yield Member(name, stamp, _limited(status.st_size, partial(_read_file, file)))


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Every path below; links are followed, unless they lead back to a folder we are in."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if not entry.is_dir():
            yield entry.path
        elif not entry.name.startswith("."):
            yield from _walk(entry.path, (*above, here))


def _from_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = clean(info.filename.replace("\\", "/"))
            if name is not None and not info.is_dir():
                reader = _limited(info.file_size, partial(_read_zipped, archive, info))
                yield Member(name, (info.file_size,), reader)


class _Header(tarfile.TarInfo):
    """A strict one: tarfile takes a cut or a broken header for the end, but only a block of zeros is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends too early") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


def _from_tar(path: Path) -> Iterator[Member]:
    with _plain(path) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers all of them
            name = clean(info.name)
            if name is not None and not info.isdir():
                yield Member(name, (info.size,), _tar_reader(path, archive, info))
        while file.read(2**20):  # on to the checksum of gzip
            pass


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            with gzip.open(file) as unzipped:
                yield cast(IO[bytes], unzipped)
        else:
            yield file


def _tar_reader(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], bytes]:
    if not info.isreg():
        return _refuse("a link or special file in an archive")

    def read() -> bytes:
        with _damage(path):
            file = archive.extractfile(info)
            return file.read() if file else b""

    return _limited(info.size, read)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is no folder, .tar, .tar.gz or .zip, or it is damaged ({error}); restore it"
        ) from error


def _limited(size: int, read: Callable[[], bytes]) -> Callable[[], bytes]:
    return read if size <= MAX_FILE_BYTES else _refuse(f"too large, {size / 2**20:,.0f} MiB")


def _refuse(reason: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise BadFile(reason)

    return read


def _read_file(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadFile(error.strerror or "unreadable") from error


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BadFile("damaged, encrypted or of an unknown compression") from error
