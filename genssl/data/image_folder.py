"""Splits from a folder or an archive of images: from files to the cache."""

import contextlib
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from genssl.data import cache
from genssl.data.archive import (
    NO_SUFFIX,
    UNREADABLE_FOLDER,
    BadFile,
    Member,
    Skipped,
    members,
    names,
    suffix_of,
)
from genssl.data.cache import FORMAT, LazyArray, Progress, cache_folder
from genssl.data.decode import MAX_PIXELS, BadImage, Bytes, Observed, decode, identify, max_pixels, suffixes
from genssl.data.fit import Fit
from genssl.data.layout import Layout, lay_out
from genssl.data.registry import ARCHIVES, Shape
from genssl.data.split import Split
from genssl.data.subset import select_rows
from genssl.errors import UserError, first_few, printable
from genssl.runtime import generator

PERIOD = 250  # files between two reports of progress
DARK = 64  # of 255, below which no pixel of any image is taken for what was meant


class DataWarning(UserWarning):
    """What is odd about a user's images; it is also among the notes of the split."""


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
        zip_encoding: of names in a .zip that are not marked as UTF-8.
    """

    path: Path
    name: str
    key: str
    fit: Fit
    skip_bad: bool
    progress: Progress | None
    zip_encoding: str | None = None


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
        UserError: no image is there; a file is bad and is not to be skipped; the archive is damaged; it
            is not clear what is a class; there is no room for the images.
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
        decoded = _decode_all(task, scratch / "pixels", Observed())
        if (bits := decoded.observed.needed_bits()) < 16:
            task = replace(task, fit=Fit(task.fit.size, task.fit.shape))  # it counts what it crops
            decoded = _decode_all(task, scratch / "pixels", Observed(bits))
        parts, classes, notes = _arrange(task, decoded)
        shape = (decoded.n, 3, task.fit.size, task.fit.size)
        pixels = np.memmap(scratch / "pixels", np.uint8, "r", shape=shape)
        return _write(task, pixels, folder, parts, classes, notes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class _Decoded:
    """What the first pass gives.

    Attributes:
        rows: of each usable image in the file of pixels, by name.
        bad: why each other one cannot be used, by name.
        n: rows of the file.
        uniform: names of images of one color.
        brightest: value of all pixels.
        observed: what was noticed while they were decoded.
        skipped: what was passed over.
    """

    observed: Observed
    rows: dict[str, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    n: int = 0
    uniform: set[str] = field(default_factory=set)
    brightest: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    def add(self, name: str, pixels: Bytes) -> None:
        """Note an image whose pixels are the next row."""
        self.rows[name] = self.n
        self.n += 1
        self.brightest = max(self.brightest, int(pixels.max()))
        if (pixels == pixels[0, 0]).all():
            self.uniform.add(name)

    def forget(self, name: str) -> None:
        """Drop an earlier file of this name."""
        self.rows.pop(name, None)
        self.bad.pop(name, None)
        self.uniform.discard(name)

    def resolve(self, links: Mapping[str, str]) -> None:
        """Give links within an archive the rows of what they lead to."""
        ends = dict(links)
        for name in links:
            chain, target = {name}, ends[name]
            while target in ends and target not in chain:  # links to links
                chain.add(target)
                target = ends[target]
            ends |= dict.fromkeys(chain, target)  # so that a long chain is walked once
            if target in self.rows:
                self.rows[name] = self.rows[target]
            elif suffix_of(name):
                self.bad[name] = f"a link to {target}, which is no usable image of the archive"


def _decode_all(task: Conversion, path: Path, observed: Observed) -> _Decoded:
    """The first pass: the pixels of all usable images, one after the other, to a file.

    The file is written and not memory-mapped: on a full disk a write raises, a mapped page ends the process,
    and how many images a .tar holds is not known before its end.
    """
    decoded, links, total = _Decoded(observed), dict[str, str](), _count(task)
    with _appending(path) as append:
        for i, member in enumerate(members(task.path, task.zip_encoding, decoded.skipped)):
            if task.progress and i % PERIOD == 0:
                task.progress(f"reading {task.path.name}", i, total)
            # An archive may hold a name twice, when it was appended to: the last one counts
            decoded.forget(member.name)
            links.pop(member.name, None)
            if member.target is not None:
                links[member.name] = member.target
                continue
            try:
                pixels = _read_image(member, task.fit, decoded)
            except (BadFile, BadImage) as error:
                decoded.bad[member.name] = str(error)
                continue
            if pixels is not None:
                append(pixels.transpose(2, 0, 1).tobytes())
                decoded.add(member.name, pixels)
    decoded.resolve(links)
    return decoded


def _count(task: Conversion) -> int | None:
    """How many files there are, where that can be known; the layout is tried, so that questions come first.

    Raises:
        UserError: it is not clear what is a class.
    """
    listed = names(task.path, task.zip_encoding)
    if listed is None:
        return None
    _lay_out(task.path, [name for name in listed if suffix_of(name)] or listed)
    return len(listed)


def _read_image(member: Member, fit: Fit, decoded: _Decoded) -> Bytes | None:
    """The pixels of a member; None of a file without a suffix that is no image by its first bytes."""
    if member.has_suffix:
        return decode(member.read(), fit, decoded.observed)
    try:
        content = member.read()
    except BadFile:
        content = b""
        if member.stamp == UNREADABLE_FOLDER:
            raise
    suffix = identify(content)
    if suffix in suffixes():
        return decode(content, fit, decoded.observed)
    decoded.skipped.counts[suffix or NO_SUFFIX] += 1
    return None


def _lay_out(path: Path, listed: Iterable[str]) -> Layout:
    try:
        return lay_out(listed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
    task: Conversion, decoded: _Decoded
) -> tuple[dict[str, _Part], tuple[str, ...], tuple[str, ...]]:
    """Parts, classes and notes, by the names alone."""
    rows, total = decoded.rows, len(decoded.rows) + len(decoded.bad)
    if task.progress:
        task.progress(f"reading {task.path.name}", total, total)
    _refuse(task, decoded, total)
    layout = _lay_out(task.path, rows)
    cropped = [] if (notice := task.fit.notice()) is None else [notice]
    loud = [
        *cropped,
        *_left_out(decoded.bad, layout, total),
        *layout.notes,
        *_odd(decoded),
        *decoded.skipped.loud(),
    ]
    for note in loud:
        warnings.warn(f"{task.path}: {note}", DataWarning, stacklevel=4)
    parts = {}
    for part, images in layout.parts.items():
        labels = [label for _, label in images if label is not None]
        if images:
            parts[part] = _Part(
                np.fromiter((rows[name] for name, _ in images), np.int64, len(images)),
                np.array(labels, np.int64) if len(labels) == len(images) else None,
            )
    return parts, layout.classes, (*loud, *decoded.skipped.quiet())


def _odd(decoded: _Decoded) -> Iterator[str]:
    """What the pixels look like that nobody may have meant."""
    n = len(decoded.rows)
    yield from decoded.observed.notices(n)
    if decoded.uniform:
        yield (
            f"{len(decoded.uniform):,} of {n:,} images are of one color, as drawings on a transparent ground "
            f"may be that are laid over white: {first_few(sorted(decoded.uniform))}"
        )
    if decoded.brightest < DARK:
        yield (
            f"no pixel of the {n:,} images is brighter than {decoded.brightest} of 255; if they are colors "
            "of fewer than 16 bits in files of 16, or numbers of classes, convert them to 8 bits"
        )


def _write(
    task: Conversion,
    pixels: npt.NDArray[np.uint8],
    folder: Path,
    parts: Mapping[str, _Part],
    classes: tuple[str, ...],
    notes: tuple[str, ...],
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
            cache.write_arrays(entry, arrays, classes, task.name, name, source=source, notes=lambda: notes)
        split = cache.read_split(entry)
        if split is None:
            raise Unwritable(f"{entry} cannot be read back")
        splits[name] = split
        done += len(part.rows)
    return splits


def _refuse(task: Conversion, decoded: _Decoded, total: int) -> None:
    bad = decoded.bad
    if bad and not task.skip_bad:
        raise UserError(f"{_bad(task.path, bad, total)}; repair or remove them, or omit them with --skip-bad")
    if total == len(bad):
        problem = _bad(task.path, bad, total) if bad else f"no images in {task.path}"
        if skipped := [*decoded.skipped.loud(), *decoded.skipped.quiet()]:
            problem += f" ({'; '.join(skipped)})"
        raise UserError(f"{problem}; give train/<class>/* and test/<class>/*, <class>/*, or images alone")


def _bad(path: Path, bad: Mapping[str, str], total: int) -> str:
    return f"{len(bad):,} of {total:,} images in {path} cannot be used: {_some(bad)}"


def _some(reasons: Mapping[str, str]) -> str:
    return first_few([f"{name} ({reason})" for name, reason in sorted(reasons.items())])


def _left_out(bad: Mapping[str, str], layout: Layout, total: int) -> Iterator[str]:
    reasons = dict.fromkeys(layout.outside, "in no part or class") | dict(bad)
    if reasons:
        yield f"{len(reasons):,} of {total:,} images are left out: {_some(reasons)}"


ARRAYS = (".npz", ".npy", ".parquet")
HELD_OUT = 0.1


def data_name(path: Path) -> str:
    """What to call the data of a path: a folder's name, or an archive's without its suffix."""
    name = printable(path.resolve().name)
    for suffix in (*ARCHIVES, *ARRAYS):
        if name.lower().endswith(suffix) and not path.is_dir():
            return name[: -len(suffix)]
    return name


READING = "3"  # to be raised when files are read or laid out in another way


def cache_keys(
    path: Path,
    image_size: int,
    skip_bad: bool,
    fit: Shape = "crop",
    files: Sequence[Path] = (),
    zip_encoding: str | None = None,
) -> tuple[str, str]:
    """(prefix, key): one for the path and the options, one that also changes whenever a file there does.

    `files`: what is read of the path, if not its image files.
    """
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in data_name(path))
    options = [str(path.resolve()), str(image_size), str(skip_bad)]
    options += [option for option in (zip_encoding, None if fit == "crop" else fit) if option is not None]
    if (limit := max_pixels()) != MAX_PIXELS:
        options.append(str(limit))
    prefix = f"path-{name[:60]}-{_hash(options)}"
    state = (f"{file}|{word}" for file in files for word in _state(file)) if files else _state(path)
    return prefix, f"{prefix}-{_hash(chain((FORMAT, READING), state))}"


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
    zip_encoding: str | None = None,
) -> dict[str, Split]:
    """Read every image in one pass: "train" and "test", or "all" where the path knows no parts.

    Under a key, the parts are written to the cache; without one, to a temporary folder.

    Raises:
        UserError: no image is there; a file is bad and `skip_bad` is not set; the archive is damaged.
    """
    fitted = Fit(image_size, fit)
    task = Conversion(path, data_name(path), key or "all", fitted, skip_bad, progress, zip_encoding)
    return convert(task, cache_folder() if key else None)


def hold_out(everything: Split, part: str, seed: int, progress: Progress | None = None) -> Split:
    """The 90 % (train) or 10 % (test) of `everything` that the seed says, in the order of the whole.

    With labels it is a tenth of each class, rounded up or down, so that the sum is a tenth of all; of every
    class an image is left to train on.
    """
    n = len(everything)
    rows = torch.randperm(n, generator=generator(seed, "hold out"))
    digest = f"{everything.digest}|{seed}|{part}"
    if everything.labels is not None:
        digest += "|by class"
        labels = everything.labels.cpu()
        single = labels.bincount()[labels[rows]] < 2
        single &= 2 * int(single.sum()) <= n  # where classes are single images, there is no such choice
        rows, alone = rows[~single], rows[single]
        rows = rows[labels[rows].sort(stable=True).indices]
        # Every tenth row of the classes laid end to end
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        test = _test_images(len(rows))
        chosen[((torch.arange(test) + 0.5) * len(rows) / max(test, 1)).long()] = True
        rows = torch.cat([rows[chosen], rows[~chosen], alone])
    else:
        test = _test_images(n)
    rows, name = (rows[:test] if part == "test" else rows[test:]).sort().values, everything.name
    digest = hashlib.sha256(digest.encode()).hexdigest()
    split = select_rows([everything], rows, digest=digest, name=name, part=part, progress=progress)
    return replace(split, notes=everything.notes, seed=seed)


def _test_images(n: int) -> int:
    return round(n * HELD_OUT) if n > 1 / HELD_OUT else max(0, min(1, n - 1))
