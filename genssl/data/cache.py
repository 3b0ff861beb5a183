"""Converted splits on disk: written once, under a lock, and memory-mapped from then on.

An entry is a folder `<key>-<part>/` with images.npy, labels.npy and masks.npy (the latter two where there are
any), sums.npy (the CRC-32 of each image, by which `rows` checks what it reads; earlier versions had none) and
split.json, which says the rest. It is written beside its final name and renamed when it is complete.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genssl.files import expand_home, flush, write_json

if TYPE_CHECKING:
    import numpy.typing as npt

    from genssl.data.split import Split

Progress = Callable[[str, int, int | None], None]  # what, how many done, of how many if known
FORMAT = "2"
HEADER = "split.json"
TEMPORARY = ".tmp"  # suffix of a folder that is still being written
SUMS = "sums"
ENTRY = {"images.npy", "labels.npy", "masks.npy", f"{SUMS}.npy", HEADER}
# The beginnings of what this version and earlier ones have written, and the ends of what they have left
_OWN = re.compile(r"\.?(path|hf|rows|features|svhn|svhn-extra|cifar10|synthetic)-")
LEFT = (TEMPORARY, ".lock", ".journal", ".part")
PIECE = 4 * 2**20  # bytes that are computed and written at a time


@dataclass(frozen=True)
class LazyArray:
    """An array whose rows are computed when they are read.

    Attributes:
        shape: the first axis counts the rows.
        dtype: "uint8" or "int64".
        read: computes the rows of a slice.
    """

    shape: tuple[int, ...]
    dtype: str
    read: "Callable[[slice], npt.NDArray[Any]]"

    def __getitem__(self, rows: slice) -> "npt.NDArray[Any]":
        return self.read(rows)


Arrays = Mapping[str, "LazyArray | npt.NDArray[Any]"]  # images, and labels and masks where there are any


def cache_folder() -> Path:
    """GENSSL_CACHE, else the platform's folder for caches."""
    if named := os.environ.get("GENSSL_CACHE"):
        return expand_home(named).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("genssl", appauthor=False)


def split_path(key: str, part: str) -> Path:
    """The folder of an entry."""
    return cache_folder() / f"{key}-{part}"


def load_or_build(
    key: str,
    parts: Sequence[str],
    build: "Callable[[], Mapping[str, Split]]",
    *,
    source: str = "",
    prefix: str = "",
    progress: Progress | None = None,
) -> "Split | None":
    """The first of `parts` that is cached under `key`; else build, write all that was built, and read again.

    A hit takes no lock. Of two processes that miss at once the second waits and then reads. A damaged
    entry counts as missing. Where the folder cannot be written, the built splits are returned as they are,
    with a warning.

    Args:
        key: a function of everything that decides the content, fit for a file name.
        parts: in order of preference.
        build: returns every part that exists, maybe none of `parts`. A part that it has written to its
            entry itself is not written again.
        source: where the data came from, recorded as a note.
        prefix: what all keys of this source begin with; entries of its other keys are outdated, and removed.
        progress: called when another process is waited for.

    Returns:
        The split, memory-mapped where possible; None when the build returned none of `parts`.
    """
    if split := _first(key, parts):
        return split
    with _lock(cache_folder() / f"{prefix or key}.lock", progress) as locked:
        if split := _first(key, parts):
            return split
        if locked:  # so nobody else is writing: what a killed process has left may be what fills the disk
            _remove(cache_folder().glob(f".{prefix or key}-*{TEMPORARY}"))
        built = build()
        _write_missing(key, built, source)
        if prefix:
            entries = cache_folder().glob(f"{prefix}-*")
            _remove(entry for entry in entries if not entry.name.startswith(key))
        return _first(key, parts) or next((built[part] for part in parts if part in built), None)


def read_split(path: Path) -> "Split | None":
    """Read an entry, memory-mapped; None when it is missing, damaged or of another format.

    Labels are compared with their checksum here, and images when they are read, by `rows`: to hash them all
    would take longer than the rest of the start.
    """
    from genssl.data.rows import crc32, mapped, read_checksums, read_labels
    from genssl.data.split import Split

    header = _header(path)
    if header is None:
        return None
    try:
        is_checked = SUMS in header["bytes"]
        sums = read_checksums(path / f"{SUMS}.npy", header["shape"][0]) if is_checked else None
        tensors = {
            name: mapped(path / f"{name}.npy", sums if name == "images" else None)
            for name in header["bytes"]
            if name in {"images", "masks"}
        }
        labels = read_labels(path / "labels.npy") if "labels" in header["bytes"] else None
        split = Split(
            images=tensors["images"],
            labels=labels,
            classes=tuple(header["classes"]),
            name=header["name"],
            part=header["part"],
            digest=header["digest"],
            masks=tensors.get("masks"),
            notes=tuple(header.get("notes", ())),
        )
        if is_checked and labels is not None and crc32([labels.numpy()]) != header["labels_crc32"]:
            return None
        usable = _consistent(split)
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return split if usable else None


def describe(path: Path) -> tuple[tuple[int, int, int, int], str] | None:
    """What the header of an entry says: the shape (N, C, H, W) of its images, and where they came from.

    None when the entry is missing, damaged or of another format. Needs neither torch nor numpy.
    """
    header = _header(path)
    if header is None:
        return None
    try:
        n, channels, height, width = header["shape"]
    except (KeyError, TypeError, ValueError):
        return None
    return (n, channels, height, width), str(header.get("source", ""))


def entry_bytes(path: Path) -> int:
    """What an entry takes on the disk."""
    return sum(file.stat().st_size for file in path.glob("*"))


@dataclass(frozen=True)
class Item:
    """Something in the cache folder.

    Attributes:
        kind: "data", "features", "download", or "leftover": locks, and what killed processes have left.
        path: a folder or a file.
        bytes: on the disk.
        source: where data came from.
    """

    kind: str
    path: Path
    bytes: int
    source: str = ""


def items() -> list[Item]:
    """What this program has written to the cache folder; other files there are nobody's to list."""
    root = cache_folder()
    present = sorted(root.iterdir()) if root.is_dir() else []
    listed = [item for path in present if (item := _item(path))]
    downloads = root / "downloads"
    files = sorted(downloads.iterdir()) if downloads.is_dir() else []
    return listed + [Item("download", path, _size(path)) for path in files]


def _item(path: Path) -> Item | None:
    name = path.name
    if path.is_symlink():
        return None
    if path.is_dir():
        whole = describe(path)
        if whole is not None and {file.name for file in path.iterdir()} <= ENTRY:
            return Item("data", path, _size(path), whole[1])
        is_left = _OWN.match(name) and (
            name.endswith(TEMPORARY) or {file.name for file in path.iterdir()} <= ENTRY
        )
        return Item("leftover", path, _size(path)) if is_left else None
    if re.fullmatch(r"features-[0-9a-f]{32}\.safetensors", name) and path.stat().st_size:
        return Item("features", path, _size(path))
    is_left = _OWN.match(name) and (name.endswith(LEFT) or path.stat().st_size == 0)
    return Item("leftover", path, _size(path)) if is_left else None


def _size(path: Path) -> int:
    inside = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in inside)


def clear(kinds: Collection[str]) -> list[Item]:
    """Remove what is of these kinds, but for what another process is just writing; returns what was removed.

    Data that a process has mapped stay readable for it.
    """
    chosen = [item for item in items() if item.kind in kinds]
    busy = tuple(item.path.name.removesuffix(".lock") for item in chosen if _is_locked(item.path))
    free = [item for item in chosen if not (busy and item.path.name.lstrip(".").startswith(busy))]
    _remove([item.path for item in free if item.path.suffix != ".lock"])
    for item in free:
        if item.path.suffix == ".lock":
            _remove_lock(item.path)
    return [item for item in free if not item.path.exists()]


def _is_locked(path: Path) -> bool:
    from filelock import FileLock, Timeout

    if path.suffix != ".lock":
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _remove_lock(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_split(path: Path, split: "Split", source: str = "") -> None:
    """Write a split as an entry.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    optional = {"labels": split.labels, "masks": split.masks}
    tensors = {"images": split.images} | {name: t for name, t in optional.items() if t is not None}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    write_arrays(
        path, arrays, split.classes, split.name, split.part, split.digest, source, lambda: split.notes
    )


def write_arrays(
    path: Path,
    arrays: Arrays,
    classes: Sequence[str],
    name: str,
    part: str,
    digest: str | None = None,
    source: str = "",
    notes: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Write an entry with about PIECE bytes in memory; the digest is that of the content if None.

    `notes` is asked when all images have been read.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        ValueError: rows have another shape or type than announced.
    """
    from genssl.data.rows import crc32, write_checksums

    temporary = temporary_folder(path)
    try:
        content = hashlib.sha256()
        sums = {
            kind: _write_npy(temporary / f"{kind}.npy", kind, arrays[kind], content.update)
            for kind in sorted(arrays)
        }
        write_checksums(temporary / f"{SUMS}.npy", sums["images"])
        header: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "part": part,
            "classes": list(classes),
            "source": source,
            "notes": list(notes()),
            "digest": digest or content.hexdigest(),
            "shape": list(arrays["images"].shape),
            "bytes": {kind: (temporary / f"{kind}.npy").stat().st_size for kind in (*sorted(arrays), SUMS)},
        }
        if "labels" in arrays:
            header["labels_crc32"] = crc32(_pieces(arrays["labels"]))
        write_json(temporary / HEADER, header)
        _publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_folder(path: Path) -> Path:
    """Make a hidden folder beside `path` to write to; the next build of its key removes a leftover."""
    folder = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}{TEMPORARY}")
    folder.mkdir(parents=True)
    return folder


def store(
    key: str,
    part: str,
    arrays: Arrays,
    classes: Sequence[str],
    name: str,
    digest: str | None = None,
    source: str = "",
    notes: Callable[[], Sequence[str]] = tuple,
) -> "Split":
    """Write an entry and return it, memory-mapped; in memory without a key, or where it cannot be."""
    import numpy as np
    import torch

    from genssl.data.split import Split
    from genssl.files import tensor_digest

    if key:
        path = split_path(key, part)
        with contextlib.suppress(OSError):  # load_or_build warns, when it cannot write either
            write_arrays(path, arrays, classes, name, part, digest, source, notes)
        if split := read_split(path):
            return split
    whole = {kind: torch.from_numpy(np.concatenate([*_pieces(array)])) for kind, array in arrays.items()}
    digest = digest or tensor_digest(whole)
    return Split(
        whole["images"], whole.get("labels"), tuple(classes), name, part, digest, whole.get("masks"),
        tuple(notes()),
    )  # fmt: skip


def _write_npy(
    path: Path, kind: str, array: "LazyArray | npt.NDArray[Any]", update: Callable[[bytes], None]
) -> list[int]:
    """Write an array piece by piece, hash it as `files.tensor_digest` does, and return the sums of images.

    The file is written and not memory-mapped: on a full disk a write raises, a mapped page ends the process.
    """
    import numpy as np

    from genssl.data.rows import checksums

    sums: list[int] = []
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    update(f"{kind}|torch.{dtype}|{shape}|".encode())
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in _pieces(array):
            data = piece.tobytes()
            update(data)
            file.write(data)
            sums += checksums(piece) if kind == "images" else []
        file.flush()
        flush(file.fileno())
    return sums


def _pieces(array: "LazyArray | npt.NDArray[Any]") -> "Iterator[npt.NDArray[Any]]":
    """The array in pieces of PIECE bytes, each checked against the announced shape and type."""
    import numpy as np

    n, *rest = array.shape
    dtype = np.dtype(array.dtype)
    rows = max(1, PIECE // max(1, dtype.itemsize * int(np.prod(rest))))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        piece = np.ascontiguousarray(array[start:stop])
        if piece.dtype != dtype or piece.shape != (stop - start, *rest):
            raise ValueError(f"rows of shape {piece.shape} and type {piece.dtype} do not fit")
        yield piece


def _publish(temporary: Path, path: Path) -> None:
    """Rename a complete folder to its final name, where another process may have been quicker."""
    _remove([path])
    try:
        temporary.rename(path)
    except OSError:
        if read_split(path) is None:
            raise


def _first(key: str, parts: Sequence[str]) -> "Split | None":
    return next((split for part in parts if (split := read_split(split_path(key, part)))), None)


def _header(path: Path) -> dict[str, Any] | None:
    """The content of split.json; None unless its files are there, in full length."""
    try:
        header: dict[str, Any] = json.loads((path / HEADER).read_bytes())
        complete = all((path / f"{kind}.npy").stat().st_size == n for kind, n in header["bytes"].items())
        usable = complete and header["format"] == FORMAT and "images" in header["bytes"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return header if usable else None


def _consistent(split: "Split") -> bool:
    """Whether types, shapes and the range of labels are those of a split."""
    import torch

    images, labels, masks = split.images, split.labels, split.masks
    n, *_, height, width = images.shape
    shapes = {(n, channels, height, width) for channels in (1, 3)}
    if images.dtype != torch.uint8 or images.shape not in shapes or n == 0:
        return False
    if masks is not None and (masks.dtype != torch.uint8 or masks.shape != (n, height, width)):
        return False
    if labels is None:
        return True
    if labels.dtype != torch.int64 or labels.shape != (n,):
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < len(split.classes)


def _write_missing(key: str, built: "Mapping[str, Split]", source: str) -> None:
    try:
        for part, split in built.items():
            if read_split(split_path(key, part)) is None:
                write_split(split_path(key, part), split, source)
    except OSError as error:
        warnings.warn(
            f"cannot write to the cache {cache_folder()} ({error.strerror or error}), so the data are "
            "prepared again at every start; set GENSSL_CACHE to a folder with space",
            stacklevel=3,
        )


def _remove(paths: Iterator[Path] | Sequence[Path]) -> None:
    """Remove entries and files, as far as that is possible; locks stay, which others may wait for."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".lock":
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path, progress: Progress | None) -> Iterator[bool]:
    """Hold a lock between processes; yields whether the folder has locks and can be written.

    Without one nothing breaks: entries appear whole in any case.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:  # of filelock: a file system without locks
            pass
        except Timeout:
            if progress:
                progress("waiting for another process that prepares the same data", 0, None)
            lock.acquire()
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            # Before it is released: filelock locks no removed file, so those that wait make a new one
            _remove_lock(path)
        lock.release()
