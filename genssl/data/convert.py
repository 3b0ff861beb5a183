"""From a folder or an archive of images to splits on disk, in two passes that can be interrupted."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from genssl.data import cache
from genssl.data.cache import Progress
from genssl.data.decode import BadImage, Bytes, decode
from genssl.data.journal import Damaged, Journal, Unwritable, writing
from genssl.data.layout import Layout, lay_out
from genssl.data.members import BadFile, Member, count, members, printable
from genssl.data.split import Split
from genssl.data.stream import PIECE, Lazy, lazy, telling
from genssl.errors import UserError

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
            tensors["labels"] = lazy(torch.from_numpy(chosen.labels))
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


def _images(task: Conversion, journal: Journal, rows: npt.NDArray[np.int64], before: int, total: int) -> Lazy:
    """The images of a part, read from the journal when they are asked for."""
    size, progress = task.image_size, task.progress
    shape = (len(rows), 3, size, size)
    images = Lazy(shape, torch.uint8, lambda piece: torch.from_numpy(journal.pixels(rows[piece])))
    if progress is None or total * images.row_bytes <= PIECE:  # done at once
        return images
    return telling(
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
