"""Splits from a folder or an archive of images: from file names to classes, and from files to the cache."""

import functools
import hashlib
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from genssl.data import cache
from genssl.data.archive import BadFile, Member, count, members, printable
from genssl.data.cache import FORMAT, Progress, cache_folder
from genssl.data.decode import BadImage, Bytes, decode
from genssl.data.split import Split
from genssl.data.subset import select_rows
from genssl.data.writer import (
    PIECE,
    Damaged,
    Journal,
    LazyTensor,
    Unwritable,
    as_lazy,
    with_progress,
    writing,
)
from genssl.errors import UserError
from genssl.files import tensor_digest
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
    labelled = {part: _classes_of(group, outside) for part, group in groups.items()}
    _drop_foreign_classes(labelled)
    found = {label for group in labelled.values() for label in group.values() if label is not None}
    classes = natural(found)
    rank = {name: i for i, name in enumerate(classes)}
    parts = {part: _sorted(group, rank) for part, group in labelled.items()}
    return Layout(parts, classes, sorted(outside))


@functools.lru_cache(maxsize=65536)
def _components(folder: str, slash: str) -> Components:
    """The folders above a file, and a place for its name: one object for all the files of a folder."""
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


def _drop_foreign_classes(labelled: dict[str, dict[str, str | None]]) -> None:
    """A test folder that shares no class with the training folder has no labels (test/images/*)."""
    known = {label for label in labelled.get("train", {}).values() if label is not None}
    test = labelled.get("test", {})
    if known and known.isdisjoint(test.values()):
        labelled["test"] = dict.fromkeys(test)


def _sorted(group: dict[str, str | None], rank: dict[str, int]) -> list[tuple[str, int | None]]:
    places = [(name, None if label is None else rank[label]) for name, label in group.items()]
    return sorted(places, key=lambda place: (place[1] or 0, place[0]))


NAMED = 3  # bad files that a message names
PERIOD = 250  # files between two reports of progress


@dataclass(frozen=True)
class Conversion:
    """What is to be converted, and how.

    Attributes:
        path: a folder or an archive.
        name: of the splits.
        key: of the files.
        image_size: pixels on a side.
        skip_bad: leave out files that are no usable images.
        progress: called with (what, how many done, of how many or None).
    """

    path: Path
    name: str
    key: str
    image_size: int
    skip_bad: bool
    progress: Progress | None


@dataclass(frozen=True)
class Rows:
    """One part: which rows of the journal, int64 (N,), and their labels, int64 (N,), or None."""

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None


def convert(task: Conversion, folder: Path | None) -> dict[str, Split]:
    """Convert to files in `folder`, named after the key; to a temporary one where there is no writing.

    The first pass decodes every image to a journal, the second writes the splits from it, in their order,
    and removes it; for a while the disk holds both. An interruption leaves the journal, and the next
    conversion of the same key goes on from there. Pixels are in memory piece by piece; of an image only
    its name and its label are held, and what it takes to sort them: some hundred bytes.

    Returns:
        The splits by part, memory-mapped.

    Raises:
        UserError: no image is there; a file is bad and is not to be skipped; the archive is damaged.
            Nothing is left of the journal then.
    """
    for place in [folder, folder] if folder else []:
        try:
            return _convert(task, place)
        except Damaged:
            pass  # to be started over, once
        except Unwritable:
            break
    try:
        with tempfile.TemporaryDirectory(prefix="genssl-", ignore_cleanup_errors=True) as temporary:
            return _convert(task, Path(temporary))
    except Unwritable as error:
        raise UserError(
            f"no room for the images of {task.path} ({error}); set GENSSL_CACHE to a folder with space"
        ) from error


def _convert(task: Conversion, folder: Path) -> dict[str, Split]:
    with Journal(folder, task.key, task.image_size) as journal:
        try:
            _read(task, journal)
            parts, classes = _arrange(task, journal)
            splits = _write(task, journal, folder, parts, classes)
        except (UserError, Damaged, Unwritable):
            journal.remove()
            raise
        journal.remove()
    return splits


def _read(task: Conversion, journal: Journal) -> None:
    """The first pass: bring the journal to its end."""
    start, done = len(journal), 0
    total = count(task.path) if task.progress else None
    for done, member in enumerate(members(task.path), 1):
        if task.progress and (done == 1 or (done > start + 1 and done % PERIOD == 1)):
            task.progress(f"reading {task.path.name}", max(done - 1, start), total)
        if done > start:
            journal.append(member.name, _decoded(member, task.image_size))
        elif journal.names[done - 1] != member.name:
            raise Damaged
    if done < start:
        raise Damaged
    journal.commit()


def _decoded(member: Member, image_size: int) -> Bytes | str:
    try:
        return decode(member.read(), image_size)
    except (BadFile, BadImage) as error:
        return str(error)


def _arrange(task: Conversion, journal: Journal) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Parts and classes, by the names alone."""
    # An archive may hold a name twice, when it was appended to: the last one counts.
    good = {name: row for row, name in enumerate(journal.names)}
    total = len(good)
    if task.progress:
        task.progress(f"reading {task.path.name}", total, total)
    reasons = [(journal.names[row], row, reason) for row, reason in journal.reasons.items()]
    bad = {name: reason for name, row, reason in reasons if good[name] == row}
    for name in bad:
        del good[name]
    _refuse(task, bad, total)
    layout = lay_out(good)
    _tell_left_out(task.path, bad, layout, total)
    parts = {part: _rows(places, good) for part, places in layout.parts.items() if places}
    return parts, layout.classes


def _rows(places: list[tuple[str, int | None]], row_of: Mapping[str, int]) -> Rows:
    rows = np.fromiter((row_of[name] for name, _ in places), np.int64, len(places))
    if any(label is None for _, label in places):
        return Rows(rows, None)
    return Rows(rows, np.fromiter((label for _, label in places), np.int64, len(places)))


def _write(
    task: Conversion, journal: Journal, folder: Path, parts: Mapping[str, Rows], classes: tuple[str, ...]
) -> dict[str, Split]:
    """The second pass: every part to its file, in its order."""
    splits, done = {}, 0
    total = sum(len(part.rows) for part in parts.values())
    for part, chosen in parts.items():
        path = folder / f"{task.key}-{part}{cache.SUFFIX}"
        images = _images(task, journal, chosen.rows, done, total)
        tensors = {"images": images}
        if chosen.labels is not None:
            tensors["labels"] = as_lazy(torch.from_numpy(chosen.labels))
        with writing():
            if cache.read_split(path) is None:
                cache.remove_orphans(path)
                source = printable(str(task.path.resolve()))
                cache.write_rows(path, tensors, classes, task.name, part, source=source)
        split = cache.read_split(path)
        if split is None:
            raise Unwritable(f"{path} cannot be read back")
        splits[part] = split
        done += len(chosen.rows)
    return splits


def _images(
    task: Conversion, journal: Journal, rows: npt.NDArray[np.int64], before: int, total: int
) -> LazyTensor:
    """The images of a part, read from the journal when they are asked for."""
    size, progress = task.image_size, task.progress
    shape = (len(rows), 3, size, size)
    images = LazyTensor(shape, torch.uint8, lambda piece: torch.from_numpy(journal.pixels(rows[piece])))
    if progress is None or total * images.row_bytes <= PIECE:  # done at once
        return images
    return with_progress(
        images, lambda done: progress(f"writing {task.path.name} to the cache", before + done, total)
    )


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


def _tell_left_out(path: Path, bad: Mapping[str, str], layout: Layout, total: int) -> None:
    reasons = dict.fromkeys(layout.outside, "in no part or class") | dict(bad)
    if reasons:
        text = f"{len(reasons):,} of {total:,} images in {path} are left out: {_some(reasons)}"
        warnings.warn(text, stacklevel=4)


ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
HELD_OUT = 0.1


def data_name(path: Path) -> str:
    """What to call the data of a path: a folder's name, or an archive's without its suffix."""
    name = printable(path.resolve().name)
    for suffix in ARCHIVES:
        if name.lower().endswith(suffix) and not path.is_dir():
            return name[: -len(suffix)]
    return name


def cache_keys(path: Path, image_size: int, skip_bad: bool) -> tuple[str, str]:
    """File names: one for the path and the options, one that also changes whenever a file there does."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in data_name(path))
    place = f"path-{name[:60]}-{_hash((str(path.resolve()), str(image_size), str(skip_bad)))}"
    return place, f"{place}-{_hash(chain((FORMAT,), _state(path)))}"


def _hash(words: Iterable[str]) -> str:
    """Of the words, one a line."""
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
    path: Path, image_size: int, skip_bad: bool, progress: Progress | None = None, key: str = ""
) -> dict[str, Split]:
    """Read every image in one pass: "train" and "test", or "all" where the path knows no parts.

    Under a key, what is read goes to the cache while it is read, and an interrupted reading goes on where
    it ended. Without one it goes to a temporary place.

    Raises:
        UserError: no image is there; a file is bad and `skip_bad` is not set; the archive is damaged.
    """
    task = Conversion(path, data_name(path), key or "all", image_size, skip_bad, progress)
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


def read_unlabeled(
    path: Path, image_size: int, skip_bad: bool = False, progress: Progress | None = None
) -> Split:
    """Every image of a folder or an archive, without parts and labels; not kept in the cache.

    Raises:
        UserError: there is no image, or a file is bad and `skip_bad` is not set.
    """
    parts = list(read(path, image_size, skip_bad, progress).values())
    images = torch.cat([split.images for split in parts])
    digest = tensor_digest({"images": images})
    return replace(parts[0], images=images, labels=None, classes=(), part="all", digest=digest)
