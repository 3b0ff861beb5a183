"""Splits from a folder or an archive of images: from file names to classes, and from files to the cache."""

import contextlib
import functools
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from genssl.data import cache
from genssl.data.archive import BadFile, count, members, printable
from genssl.data.cache import FORMAT, LazyArray, Progress, cache_folder
from genssl.data.decode import BadImage, Bytes, decode
from genssl.data.fit import Fit
from genssl.data.registry import Shape
from genssl.data.split import Split
from genssl.data.subset import select_rows
from genssl.errors import UserError
from genssl.runtime import generator

PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
Components = tuple[str, ...]
Names = dict[str, Components]


@dataclass
class Layout:
    """What belongs where.

    Attributes:
        parts: "train" and "test", or "all" where the names know no parts; each a list of (name, label),
            sorted by label, then by name. Label is None for a part without classes.
        classes: the name of each label, numeric order where all are numbers.
        outside: names that belong to no part or to no class, and are left out.
    """

    parts: dict[str, list[tuple[str, int | None]]]
    classes: tuple[str, ...]
    outside: list[str] = field(default_factory=list)


def lay_out(names: Iterable[str]) -> Layout:
    """Work out the layout of relative names with forward slashes.

    Understood, all under one top folder or not: train/<class>/* and test/<class>/* (val or valid where
    there is no test), train/* and test/*, <class>/*, or images alone.
    """
    inside, outside = _descend({name: _components(*name.rpartition("/")[:2]) for name in names})
    groups = _parts(inside)
    outside += [name for name in inside if not any(name in group for group in groups.values())]
    labeled = {part: _classes_of(group, outside) for part, group in groups.items()}
    _drop_foreign_classes(labeled)
    classes = natural({name for group in labeled.values() for name in group.values() if name is not None})
    rank = {name: i for i, name in enumerate(classes)}
    parts = {part: _sorted(group, rank) for part, group in labeled.items()}
    return Layout(parts, classes, sorted(outside))


@functools.lru_cache(maxsize=65536)
def _components(folder: str, slash: str) -> Components:
    """The folders above a file, and an empty one for its name: one object for all the files of a folder."""
    return (*folder.split("/"), "") if slash else ("",)


def natural(classes: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by value where all are numbers, else by letter."""
    names = sorted(classes)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def _descend(paths: Names) -> tuple[Names, list[str]]:
    """Strip top folders that hold most of the files alone: (what is inside, what lay beside them)."""
    outside: list[str] = []
    while len(_folders(paths)) == 1:
        inside = {name: path[1:] for name, path in paths.items() if len(path) > 1}
        if 2 * len(inside) <= len(paths):
            break
        outside += [name for name in paths if name not in inside]
        paths = inside
    return paths, outside


def _folders(paths: Names) -> set[str]:
    return {path[0] for path in paths.values() if len(path) > 1}


def _parts(paths: Names) -> dict[str, Names]:
    kinds = {PARTS.get(folder.lower()) for folder in _folders(paths)}
    held_out = "test" if "test" in kinds else "validation"
    if not {"train", held_out} <= kinds:
        return {"all": paths}
    return {"train": _within(paths, "train"), "test": _within(paths, held_out)}


def _within(paths: Names, kind: str) -> Names:
    return {
        name: path[1:] for name, path in paths.items() if len(path) > 1 and PARTS.get(path[0].lower()) == kind
    }


def _classes_of(group: Names, outside: list[str]) -> dict[str, str | None]:
    """The class of each name; where most names have none, none counts."""
    loose = [name for name, path in group.items() if len(path) == 1]
    if 2 * len(loose) > len(group):
        return dict.fromkeys(group)
    outside += loose
    return {name: path[0] for name, path in group.items() if len(path) > 1}


def _drop_foreign_classes(labeled: dict[str, dict[str, str | None]]) -> None:
    """A test folder that shares no class with the training folder has no labels (test/images/*)."""
    known = {label for label in labeled.get("train", {}).values() if label is not None}
    test = labeled.get("test", {})
    if known and known.isdisjoint(test.values()):
        labeled["test"] = dict.fromkeys(test)


def _sorted(group: dict[str, str | None], rank: dict[str, int]) -> list[tuple[str, int | None]]:
    images = [(name, None if label is None else rank[label]) for name, label in group.items()]
    return sorted(images, key=lambda image: (image[1] or 0, image[0]))


NAMED = 3  # bad files that a message names
PERIOD = 250  # files between two reports of progress


@dataclass(frozen=True)
class Conversion:
    """What is to be converted, and how.

    Attributes:
        path: a folder or an archive.
        name: of the splits.
        key: of the entries.
        fit: makes the squares.
        skip_bad: leave out files that are no usable images.
        progress: called with (what, how many done, of how many or None).
    """

    path: Path
    name: str
    key: str
    fit: Fit
    skip_bad: bool
    progress: Progress | None


class Unwritable(Exception):
    """The disk is full, or the folder cannot be written."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Tell an error of writing from those of reading."""
    try:
        yield
    except OSError as error:
        raise Unwritable(str(error)) from error


def convert(task: Conversion, folder: Path | None) -> dict[str, Split]:
    """Convert to entries in `folder`; in a temporary one where that cannot be written, or where it is None.

    The first pass decodes every image to a scratch file, in the order of reading; the second writes the
    splits from it, in their order. For a while the disk holds both. Pixels are in memory piece by piece; of
    an image only its name, its row and its label are held, and what it takes to sort them: some hundred
    bytes. A killed conversion leaves a hidden folder, which the next build of its key removes.

    Returns:
        The splits by part, memory-mapped.

    Raises:
        UserError: no image is there; a file is bad and is not to be skipped; the archive is damaged; there
            is no room for the images.
    """
    if folder is not None:
        with contextlib.suppress(Unwritable):
            return _convert(task, folder)
    try:
        with tempfile.TemporaryDirectory(prefix="genssl-", ignore_cleanup_errors=True) as temporary:
            return _convert(task, Path(temporary))
    except Unwritable as error:
        raise UserError(
            f"no room for the images of {task.path} ({error}); set GENSSL_CACHE to a folder with space"
        ) from error


def _convert(task: Conversion, folder: Path) -> dict[str, Split]:
    with _writing():
        scratch = cache.temporary_folder(folder / task.key)
    try:
        rows, bad, n = _decode_all(task, scratch / "pixels")
        parts, classes = _arrange(task, rows, bad)
        shape = (n, 3, task.fit.size, task.fit.size)
        return _write(task, np.memmap(scratch / "pixels", np.uint8, "r", shape=shape), folder, parts, classes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _decode_all(task: Conversion, path: Path) -> tuple[dict[str, int], dict[str, str], int]:
    """The first pass: the pixels of all usable images, one after the other, to a file.

    The file is written and not memory-mapped: on a full disk a write raises, a mapped page ends the process,
    and how many images a .tar holds is not known before its end.

    Returns:
        By name, the row of each usable image in the file; by name, why each other one is bad; and how many
        rows there are.
    """
    rows: dict[str, int] = {}
    bad: dict[str, str] = {}
    total = count(task.path) if task.progress else None
    row = 0
    with _appending(path) as append:
        for i, member in enumerate(members(task.path)):
            if task.progress and i % PERIOD == 0:
                task.progress(f"reading {task.path.name}", i, total)
            # An archive may hold a name twice, when it was appended to: the last one counts
            rows.pop(member.name, None)
            bad.pop(member.name, None)
            try:
                pixels = decode(member.read(), task.fit)
            except (BadFile, BadImage) as error:
                bad[member.name] = str(error)
                continue
            append(pixels.transpose(2, 0, 1).tobytes())
            rows[member.name] = row
            row += 1
    return rows, bad, row


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[Callable[[bytes], object]]:
    """A function that appends to a new file."""
    with _writing():
        file = path.open("wb")

    def append(data: bytes) -> None:
        with _writing():
            file.write(data)

    try:
        yield append
        with _writing():
            file.flush()
    finally:
        with contextlib.suppress(OSError):  # what could not be written before cannot be written now
            file.close()


@dataclass(frozen=True)
class _Part:
    """One part: its rows of the scratch file, int64 (N,), and their labels, int64 (N,), or None."""

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None


def _arrange(
    task: Conversion, rows: Mapping[str, int], bad: Mapping[str, str]
) -> tuple[dict[str, _Part], tuple[str, ...]]:
    """Parts and classes, by the names alone."""
    total = len(rows) + len(bad)
    if task.progress:
        task.progress(f"reading {task.path.name}", total, total)
    _refuse(task, bad, total)
    layout = lay_out(rows)
    _warn_left_out(task.path, bad, layout, total)
    if notice := task.fit.notice(str(task.path)):
        warnings.warn(notice, stacklevel=3)
    parts = {}
    for part, images in layout.parts.items():
        labels = [label for _, label in images if label is not None]
        if images:
            parts[part] = _Part(
                np.fromiter((rows[name] for name, _ in images), np.int64, len(images)),
                np.array(labels, np.int64) if len(labels) == len(images) else None,
            )
    return parts, layout.classes


def _write(
    task: Conversion,
    pixels: npt.NDArray[np.uint8],
    folder: Path,
    parts: Mapping[str, _Part],
    classes: tuple[str, ...],
) -> dict[str, Split]:
    """The second pass: each part to its entry, in its order."""
    total = sum(len(part.rows) for part in parts.values())
    # A small data set is done at once
    progress = task.progress if total * pixels[0].size > cache.PIECE else None
    splits, done = {}, 0
    for name, part in parts.items():

        def read(piece: slice, rows: npt.NDArray[np.int64] = part.rows, done: int = done) -> Bytes:
            if progress:
                progress(f"writing {task.path.name} to the cache", done + piece.stop, total)
            return np.asarray(pixels[rows[piece]])

        arrays: dict[str, LazyArray | npt.NDArray[np.int64]] = {
            "images": LazyArray((len(part.rows), *pixels.shape[1:]), "uint8", read)
        }
        if part.labels is not None:
            arrays["labels"] = part.labels
        entry = folder / f"{task.key}-{name}"
        with _writing():
            source = printable(str(task.path.resolve()))
            cache.write_arrays(entry, arrays, classes, task.name, name, source=source)
        split = cache.read_split(entry)
        if split is None:
            raise Unwritable(f"{entry} cannot be read back")
        splits[name] = split
        done += len(part.rows)
    return splits


def _refuse(task: Conversion, bad: Mapping[str, str], total: int) -> None:
    if bad and not task.skip_bad:
        raise UserError(
            f"{_bad(task.path, bad, total)}; repair or remove them, or leave them out with --skip-bad"
        )
    if total == len(bad):
        problem = _bad(task.path, bad, total) if bad else f"no images in {task.path}"
        raise UserError(f"{problem}; give train/<class>/* and test/<class>/*, <class>/*, or images alone")


def _bad(path: Path, bad: Mapping[str, str], total: int) -> str:
    return f"{len(bad):,} of {total:,} images in {path} cannot be used: {_some(bad)}"


def _some(reasons: Mapping[str, str]) -> str:
    named = [f"{name} ({reason})" for name, reason in sorted(reasons.items())[:NAMED]]
    more = len(reasons) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _warn_left_out(path: Path, bad: Mapping[str, str], layout: Layout, total: int) -> None:
    reasons = dict.fromkeys(layout.outside, "in no part or class") | dict(bad)
    if reasons:
        text = f"{len(reasons):,} of {total:,} images in {path} are left out: {_some(reasons)}"
        warnings.warn(text, stacklevel=4)


ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".npz", ".npy", ".parquet")
HELD_OUT = 0.1


def data_name(path: Path) -> str:
    """What to call the data of a path: a folder's name, or an archive's without its suffix."""
    name = printable(path.resolve().name)
    for suffix in ARCHIVES:
        if name.lower().endswith(suffix) and not path.is_dir():
            return name[: -len(suffix)]
    return name


def cache_keys(
    path: Path, image_size: int, skip_bad: bool, fit: Shape = "crop", files: Sequence[Path] = ()
) -> tuple[str, str]:
    """(prefix, key): one for the path and the options, one that also changes whenever a file there does.

    `files`: what is read of the path, if not its image files.
    """
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in data_name(path))
    options = (str(image_size), str(skip_bad), *(() if fit == "crop" else (fit,)))
    prefix = f"path-{name[:60]}-{_hash((str(path.resolve()), *options))}"
    state = (f"{file}|{word}" for file in files for word in _state(file)) if files else _state(path)
    return prefix, f"{prefix}-{_hash(chain((FORMAT,), state))}"


def _hash(words: Iterable[str]) -> str:
    """A hash of the words, one per line."""
    digest, line_end = hashlib.sha256(), ""
    for word in words:
        digest.update((line_end + word).encode("utf-8", "surrogateescape"))
        line_end = "\n"
    return digest.hexdigest()[:16]


def _state(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from (f"{member.name}|{member.stamp}" for member in members(path))
        return
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    status = path.stat()
    yield from (str(status.st_size), str(status.st_mtime_ns))


def read(
    path: Path,
    image_size: int,
    skip_bad: bool,
    progress: Progress | None = None,
    key: str = "",
    fit: Shape = "crop",
) -> dict[str, Split]:
    """Read every image in one pass: "train" and "test", or "all" where the path knows no parts.

    Under a key, the parts are written to the cache; without one, to a temporary folder.

    Raises:
        UserError: no image is there; a file is bad and `skip_bad` is not set; the archive is damaged.
    """
    task = Conversion(path, data_name(path), key or "all", Fit(image_size, fit), skip_bad, progress)
    return convert(task, cache_folder() if key else None)


def hold_out(everything: Split, part: str, seed: int, progress: Progress | None = None) -> Split:
    """The 90 % (train) or 10 % (test) of `everything` that the seed says, in the order of the whole."""
    n = len(everything)
    shuffled = torch.randperm(n, generator=generator(seed, "hold out"))
    test = round(n * HELD_OUT) if n > 1 / HELD_OUT else min(1, n - 1)
    rows = shuffled[:test] if part == "test" else shuffled[test:]
    digest = hashlib.sha256(f"{everything.digest}|{seed}|{part}".encode()).hexdigest()
    rows, name = rows.sort().values, everything.name
    return select_rows([everything], rows, digest=digest, name=name, part=part, progress=progress)
