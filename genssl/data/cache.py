"""Converted splits on disk: written once, under a lock, and memory-mapped from then on."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genssl.errors import UserError
from genssl.files import read_header, read_tensors

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor

    from genssl.data.split import Split
    from genssl.data.writer import LazyTensor


Progress = Callable[[str, int, int | None], None]  # what, how many done, of how many if known
FORMAT = "1"
SUFFIX = ".safetensors"


def cache_folder() -> Path:
    """GENSSL_CACHE, else the platform's folder for caches."""
    if named := os.environ.get("GENSSL_CACHE"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("genssl", appauthor=False)


def split_path(key: str, part: str) -> Path:
    """Where a part is kept under a key."""
    return cache_folder() / f"{key}-{part}{SUFFIX}"


def load_or_build(
    key: str,
    parts: Sequence[str],
    build: "Callable[[], Mapping[str, Split]]",
    *,
    source: str = "",
    place: str = "",
    progress: Progress | None = None,
) -> "Split | None":
    """The first of `parts` that is kept under `key`; else build, keep all that was built, and look again.

    A hit takes no lock. Of two processes that miss at once the second waits and then reads. A damaged
    file counts as absent. Where the folder cannot be written, what was built stays in memory, with a
    warning.

    Args:
        key: of everything that decides the content, fit for a file name.
        parts: in order of preference.
        build: gives every part that there is; may give none of `parts`. What it has written to its place
            itself is not written again.
        source: where it came from, kept as a note.
        place: what all keys of this source begin with; files and journals of its other keys are out of date,
            and go.
        progress: told when another process is waited for.

    Returns:
        The split, memory-mapped where possible; None when the build gave none of `parts`.
    """
    if found := _first(key, parts):
        return found
    from genssl.data import writer

    with _lock(cache_folder() / f"{place or key}.lock", progress):
        if found := _first(key, parts):
            return found
        if place:
            _remove_stale(place, key, writer.JOURNAL)  # they may be what fills the disk
        built = build()
        _keep(key, built, source)
        if place:
            _remove_stale(place, key, (SUFFIX,))
        return _first(key, parts) or next((built[part] for part in parts if part in built), None)


def read_split(path: Path) -> "Split | None":
    """Read a kept split, memory-mapped; None when the file is missing, damaged or of another format.

    The content is not hashed: that would take longer than the rest of the start.
    """
    try:
        tensors, metadata = read_tensors(path, verify=False)
        split = _from_file(tensors, metadata)
        usable = metadata["format"] == FORMAT and _consistent(split)
    except (UserError, KeyError, TypeError, ValueError, OSError):
        return None
    return split if usable else None


def describe(path: Path) -> tuple[tuple[int, int, int, int], str] | None:
    """What the header of a kept split says: the shape (N, 3, H, W) of its images, and where it came from.

    None when the file is missing, damaged or of another format; what labels say is not looked at.
    """
    try:
        entries, metadata = read_header(path)
        n, channels, height, width = entries["images"]["shape"]
        usable = metadata["format"] == FORMAT and entries["images"]["dtype"] == "U8" and n > 0
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return ((n, channels, height, width), metadata.get("source", "")) if usable else None


def write_split(path: Path, split: "Split", source: str = "") -> None:
    """Write a split atomically as one safetensors file: images, labels, masks; the rest as metadata."""
    from genssl.data.writer import as_lazy

    optional = {"labels": split.labels, "masks": split.masks}
    tensors = {"images": split.images} | {k: v for k, v in optional.items() if v is not None}
    lazies = {name: as_lazy(tensor) for name, tensor in tensors.items()}
    write_rows(path, lazies, split.classes, split.name, split.part, split.digest, source)


def write_rows(
    path: Path,
    tensors: "Mapping[str, LazyTensor]",
    classes: Sequence[str],
    name: str,
    part: str,
    digest: str | None = None,
    source: str = "",
) -> None:
    """Write a split whose rows are made while they are written; without a digest, it is of the content."""
    from genssl.data.writer import write_lazy

    metadata = {
        "format": FORMAT,
        "name": name,
        "part": part,
        "classes": json.dumps(classes),
        "source": source,
    }
    write_lazy(path, tensors, lambda sha256: metadata | {"digest": digest or sha256, "sha256": sha256})


def _first(key: str, parts: Sequence[str]) -> "Split | None":
    return next((found for part in parts if (found := read_split(split_path(key, part)))), None)


def _from_file(tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> "Split":
    from genssl.data.split import Split

    return Split(
        images=tensors["images"],
        labels=tensors.get("labels"),
        classes=tuple(json.loads(metadata["classes"])),
        name=metadata["name"],
        part=metadata["part"],
        digest=metadata["digest"],
        masks=tensors.get("masks"),
    )


def _consistent(split: "Split") -> bool:
    """Whether types, shapes and the range of labels are those of a split."""
    import torch

    images, labels, masks = split.images, split.labels, split.masks
    n, *_, height, width = images.shape
    if images.dtype != torch.uint8 or images.shape != (n, 3, height, width) or n == 0:
        return False
    if masks is not None and (masks.dtype != torch.uint8 or masks.shape != (n, height, width)):
        return False
    if labels is None:
        return True
    if labels.dtype != torch.int64 or labels.shape != (n,):
        return False
    return int(labels.min()) >= 0 and int(labels.max()) < len(split.classes)


def _keep(key: str, built: "Mapping[str, Split]", source: str) -> None:
    try:
        for part, split in built.items():
            remove_orphans(split_path(key, part))
            if read_split(split_path(key, part)) is None:
                write_split(split_path(key, part), split, source)
    except OSError as error:
        _warn(error)


def remove_orphans(path: Path) -> None:
    """What a killed writer left behind: under the lock nobody else is writing this file."""
    for orphan in path.parent.glob(f".{path.name}.*.tmp"):
        orphan.unlink(missing_ok=True)


def _remove_stale(place: str, key: str, suffixes: Sequence[str]) -> None:
    for file in cache_folder().glob(f"{place}-*"):
        if not file.name.startswith(key) and file.suffix in suffixes:
            with contextlib.suppress(OSError):
                file.unlink()


def _warn(error: OSError) -> None:
    warnings.warn(
        f"cannot write to the cache {cache_folder()} ({error.strerror or error}), so the data are prepared "
        "anew at every start; set GENSSL_CACHE to a folder with space",
        stacklevel=3,
    )


@contextlib.contextmanager
def _lock(path: Path, progress: Progress | None) -> Iterator[None]:
    """Hold a lock between processes, as far as the place has one; files are replaced whole in any case."""
    from filelock import FileLock

    lock = FileLock(path, thread_local=False)
    # A folder that is not to be written, which _keep will say, or one without locks
    with contextlib.suppress(OSError):
        _acquire(lock, progress)
    try:
        yield
    finally:
        lock.release()  # the file stays, for a name removed is a lock that two may hold


def _acquire(lock: "BaseFileLock", progress: Progress | None) -> None:
    from filelock import Timeout

    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            progress("waiting for another process that prepares the same data", 0, None)
        lock.acquire()
