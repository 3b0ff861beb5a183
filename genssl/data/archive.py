"""The image files of a folder or an archive, one after the other; nothing is unpacked to disk."""

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, cast

from genssl.data.decode import CONVERT, HEIF, INSTALL_HEIF, describe, identify, suffixes
from genssl.errors import UserError, printable

COMPRESSIONS: tuple[tuple[bytes, Callable[[IO[bytes]], object]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)
MAX_FILE_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 2**20  # of a name, or of what a .tar says further of a file
LONG_HEADERS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE}
MOST_EMPTY = 100  # reads after the end of a file
MOST_VISITS = 100  # of a folder, by links that lead to it
# Folders and files of operating systems, disk stations and cameras, in small letters
SYSTEM = {
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharesnap", "@__thumb", "#recycle",
    "#snapshot", "~snapshot", "$recycle.bin", "recycler", "recycled", "system volume information",
    "lost+found", "network trash folder", "temporary items", "__pycache__", "thumbs.db", "desktop.ini",
}  # fmt: skip
SYSTEM_PATTERN = re.compile(r"\.|\$recycle|found\.\d{3}$|@ea")
# Files that lie beside images and are none, which nobody misses
SIDE_TEXT = (
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .html .htm .css .js .py .ipynb .m .sh .bat .log "
    ".ini .cfg .toml .db .names .lst .license .url .lnk .doc .docx .xls .xlsx .bib .tex .mat .pkl .pickle "
    ".h5 .hdf5 .npy .npz .parquet .arrow .pt .pth .ckpt .safetensors .gz .bz2 .xz .zip .tar .rar .7z .md5 "
    ".sha256 .info .dat .xmp .aae .thm .sqlite .tfrecord .zst"
)
SIDE_FILES = frozenset(SIDE_TEXT.split())
SUFFIX = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,12}")
UNREADABLE_FOLDER = (-2,)  # the stamp of a member that is one
HIDDEN, NO_SUFFIX = "hidden or of the system", "without a suffix"


class BadFile(Exception):
    """A file that cannot be read; the message is the reason, in a few words."""


@dataclass
class Skipped:
    """What is passed over while the members of a path are listed.

    Attributes:
        counts: files by suffix, or by HIDDEN or NO_SUFFIX.
        notes: what is odd about the path.
    """

    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def loud(self) -> list[str]:
        """A note on the files that may be missed, with what to do, and what else is odd."""
        kinds = {kind: n for kind, n in self.counts.items() if kind[0] == "." and kind not in SIDE_FILES}
        if not kinds:
            return self.notes
        listed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))
        what = INSTALL_HEIF if kinds.keys() <= HEIF else f"{CONVERT}, if they are images"
        if kinds.keys() & HEIF and not kinds.keys() <= HEIF:
            what += "; for HEIC pip install 'genssl[heif]'"
        return [f"files that cannot be read are left out: {listed}; {what}", *self.notes]

    def quiet(self) -> list[str]:
        """A note on all the others."""
        others = {kind: n for kind, n in self.counts.items() if kind[0] != "." or kind in SIDE_FILES}
        listed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(others.items()))
        return [f"not images: {listed}"] if others else []


@dataclass(frozen=True)
class Member:
    """One image file, or one without a suffix, which may be an image.

    Attributes:
        name: relative, with forward slashes, without dots, printable.
        stamp: its size and, in a folder, the time of its last change.
        read: gives the content, or raises BadFile; to be called before the next member is asked for.
        target: the name of the member of a .tar that this one is a link to, if it is one.
    """

    name: str
    stamp: tuple[int, ...]
    read: Callable[[], bytes]
    target: str | None = None

    @property
    def has_suffix(self) -> bool:
        """Whether it is an image by its suffix."""
        return suffix_of(self.name) != ""


def members(path: Path, zip_encoding: str | None = None, skipped: Skipped | None = None) -> Iterator[Member]:
    """The image files of a folder, .tar (compressed or not) or .zip in stored order, in one pass.

    Hidden files, folders of operating systems and files that are not images by their suffix are skipped.
    Names that are absolute or climb out with .. are cut down to what is left of them: they are labels here,
    not paths.

    Args:
        path: of the folder or the archive.
        zip_encoding: of names in a .zip that are not marked as UTF-8; None: UTF-8 where that fits all.
        skipped: records what was passed over.

    Raises:
        UserError: nothing is there, it is neither folder nor archive, or the archive is damaged.
    """
    skipped = Skipped() if skipped is None else skipped
    with _damage(path):
        kind = _kind(path)
        yield from _from_zip(path, skipped, zip_encoding) if kind is _from_zip else kind(path, skipped)


def names(path: Path, zip_encoding: str | None = None) -> list[str] | None:
    """The names of the members; None where only reading the whole archive would tell."""
    if _kind(path) is _from_tar:
        return None
    return [member.name for member in members(path, zip_encoding)]


def suffix_of(name: str) -> str:
    """The suffix of a file in small letters; "" where what follows the last dot is none (scan.001)."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if SUFFIX.fullmatch(suffix) else ""


def is_system(component: str) -> bool:
    """Whether a file or folder is hidden, or belongs to an operating system or a disk station."""
    name = component.strip().lower()
    return name in SYSTEM or SYSTEM_PATTERN.match(name) is not None


def clean(name: str, skipped: Skipped | None = None) -> str | None:
    """The name as a relative, printable label; None for what is skipped."""
    components = [part for part in name.split("/") if part not in {"", ".", ".."}]
    if not components:
        return None
    suffix = suffix_of(components[-1])
    kind = HIDDEN if any(map(is_system, components)) else suffix
    if kind == HIDDEN or (suffix and suffix not in suffixes()):
        if skipped is not None:
            skipped.counts[kind] += 1
        return None
    return printable("/".join(components))


def _kind(path: Path) -> Callable[[Path, Skipped], Iterator[Member]]:
    """The reader of a path.

    Raises:
        UserError: nothing is there, or it is plainly something else.
    """
    if path.is_dir():
        return _from_folder
    if not path.is_file():
        raise UserError(f"no such file or folder: {path}; give a folder, a .tar, a .tar.gz or a .zip")
    with path.open("rb") as file:
        head = file.read(512)
    if head[:2] == b"PK":
        return _from_zip
    if head[257:262] != b"ustar":
        if what := describe(head):
            raise UserError(f"{path} is {what}")
        if identify(head):
            raise UserError(f"{path} is a single image; give the folder that holds the images")
    return _from_tar


def _from_folder(path: Path, skipped: Skipped) -> Iterator[Member]:
    for file, problem in _walk(os.fspath(path), (), skipped, Counter()):
        relative = os.path.relpath(file, path).replace(os.sep, "/")
        if problem:
            reader = _refuse(f"a folder that cannot be read: {problem}")
            yield Member(printable(relative), UNREADABLE_FOLDER, reader)
            continue
        name = clean(relative, skipped)
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


def _walk(
    folder: str, above: tuple[tuple[int, int], ...], skipped: Skipped, visits: Counter[tuple[int, int]]
) -> Iterator[tuple[str, str | None]]:
    """Every path below; links are followed, unless they lead back to a folder we are in.

    Beside a path of a folder that cannot be read there is the reason; else None.

    Raises:
        UserError: links lead to one folder very often, as where each of many folders links twice to the next.
    """
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        visits[here] += 1
        if visits[here] > MOST_VISITS:
            raise UserError(f"links lead to {folder} in more than {MOST_VISITS} ways; remove some of them")
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, error.strerror or type(error).__name__
        return
    for entry in listed:
        if not _is_folder(entry):
            yield entry.path, None
        elif is_system(entry.name):
            skipped.counts[HIDDEN] += 1
        else:
            yield from _walk(entry.path, (*above, here), skipped, visits)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _from_zip(path: Path, skipped: Skipped, encoding: str | None = None) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(path, metadata_encoding=encoding)
    except (LookupError, UnicodeError) as error:
        what = f"names that are not {encoding or 'UTF-8'}, or no encoding has that name"
        raise UserError(f"{path} has {what}; choose another --zip-encoding") from error
    with archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        bases = {posixpath.basename(info.filename) for info in infos}
        if "data.pkl" in bases and not any(suffix_of(base) in suffixes() for base in bases):
            raise UserError(f"{path} is a file of PyTorch (.pt), not of images; write them as PNG files")
        for info, raw in zip(infos, _names(path, infos, encoding, skipped), strict=True):
            name = clean(raw, skipped)
            if name is not None:
                reader = _limited(info.file_size, partial(_read_zipped, archive, info))
                yield Member(name, (info.file_size,), reader)


UTF_8 = 0x800  # the flag of a name in a .zip that is UTF-8


def _names(path: Path, infos: list[zipfile.ZipInfo], encoding: str | None, skipped: Skipped) -> list[str]:
    """The names in a .zip, with forward slashes.

    A name without the flag of UTF-8 may be in any encoding, and some of those use the byte of a backslash
    within a letter. So that separates folders only where no name has a slash.
    """
    listed = [info.orig_filename.partition("\0")[0] for info in infos]
    unmarked = [i for i, info in enumerate(infos) if not info.flag_bits & UTF_8 and not listed[i].isascii()]
    unknown: list[str] = []
    if encoding is None and unmarked:
        try:
            for i in unmarked:
                listed[i] = listed[i].encode("cp437").decode("utf-8")
        except UnicodeError:
            listed = [info.orig_filename.partition("\0")[0] for info in infos]
            unknown = [listed[i] for i in unmarked]
    has_slash = any("/" in name for name in listed)
    how = "--zip-encoding cp932 (Japanese), gbk, big5, euc_kr or another reads them"
    if unknown and not has_slash and any("\\" in name for name in unknown):
        raise UserError(f"the names in {path} are not UTF-8, and may have folders or not; {how}")
    if unknown:
        skipped.notes.append(f"{len(unknown):,} names are not UTF-8, and their letters are wrong; {how}")
    return listed if has_slash else [name.replace("\\", "/") for name in listed]


class _Header(tarfile.TarInfo):
    """A strict one: tarfile takes a cut or a broken header for the end, but only a block of zeros is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends too early") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
        if header.type in LONG_HEADERS and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _UntilItsEnd:
    """A file of which `tarfile` may not read on and on after its end, to where a header says it goes on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._empty = file, 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._empty = 0 if content else self._empty + 1
        if self._empty > MOST_EMPTY:
            raise tarfile.ReadError("it ends too early")
        return content


def _from_tar(path: Path, skipped: Skipped) -> Iterator[Member]:
    with (
        _plain(path) as file,
        tarfile.open(fileobj=cast(IO[bytes], _UntilItsEnd(file)), mode="r|", tarinfo=_Header) as archive,
    ):
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers all of them
            name = None if info.isdir() else clean(info.name, skipped)
            if name is not None:
                yield Member(name, (info.size,), _tar_reader(path, archive, info), _target(info))
        while file.read(2**20):  # on to the checksum of gzip
            pass


def _target(info: tarfile.TarInfo) -> str | None:
    """What a link in an archive leads to, as the name of another member."""
    if info.islnk():
        return clean(info.linkname)
    if not info.issym():
        return None
    return clean(posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname)))


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        for start, unzip in COMPRESSIONS:
            if head.startswith(start):
                with contextlib.closing(cast(IO[bytes], unzip(file))) as unzipped:
                    yield unzipped
                return
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
    except (UserError, BadFile, MemoryError):
        raise
    except Exception as error:  # on damaged archives the readers raise nearly every type there is
        # Of the errors of the operating system a decompressor has no number, and a seek to nowhere this one
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
            raise
        raise UserError(
            f"{path} is no folder, .tar, .tar.gz or .zip, or it is damaged ({error!s:.200}); restore it"
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
    except Exception as error:  # each decompressor raises types of its own on damaged data
        raise BadFile("damaged, encrypted or of an unknown compression") from error
