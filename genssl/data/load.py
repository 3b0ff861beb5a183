"""`load`: from what --data says to a split in memory."""

import contextlib
import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data import cache
from genssl.data.batches import chunks
from genssl.data.cache import Progress
from genssl.data.known import KNOWN, SUFFIX, is_remix, official_sources, source_of
from genssl.data.remix import remix
from genssl.data.split import Split
from genssl.data.stream import Lazy, lazy
from genssl.errors import UserError
from genssl.files import tensor_digest

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")

NATIVE_SIZE = 32
CHUNK = 4096  # images
SYNTHETIC_VERSION = 1  # to be raised when the renderer draws other pixels
SYNTHETIC_SEED = 0  # one data set for everybody, whatever the seed of a run


@dataclass(frozen=True)
class Entry:
    """A data set in the list of those that are known or prepared.

    Attributes:
        name: what --data takes, or the path that was read.
        what: one line on it.
        cached: whether all of it lies prepared in the cache.
        images: how many, train and test together.
        size: bytes in the cache.
    """

    name: str
    what: str
    cached: bool
    images: int
    size: int


def load(
    data: str,
    part: Part,
    *,
    image_size: int = NATIVE_SIZE,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Load a part of a data set; what is slow about it is done once and kept in the cache.

    Args:
        data: a name in KNOWN, the path of a folder, .tar, .tar.gz, .zip or official file, or one of these
            with -remix after it: both parts pooled and split anew. A name goes before a path, and a path
            before a remix.
        part: "train" or "test".
        image_size: pixels on a side.
        seed: of the 90/10 split of a path that has no parts; of no influence elsewhere.
        skip_bad: leave out files of a path that are no usable images, with a warning.
        progress: called with (what, how many done, of how many or None).

    Returns:
        The split on the CPU, images uint8 (N, 3, image_size, image_size).

    Raises:
        UserError: nothing of that name, no network, damaged files, a wrong checksum, no image for the part,
            no labels for a remix.
    """
    if image_size < 1:
        raise UserError(f"the image size must be positive, not {image_size}")
    if data in KNOWN:
        return _load_known(data, part, image_size, progress)
    if is_remix(data):
        source = partial(
            load, source_of(data), image_size=image_size, seed=seed, skip_bad=skip_bad, progress=progress
        )
        return remix(source("train"), source("test"), part, progress)
    path = _path(data)
    if sources := official_sources(path):
        return _load_copies(sources, path, part, image_size, progress)
    return _load_path(path, part, image_size, seed=seed, skip_bad=skip_bad, progress=progress)


def catalogue() -> list[Entry]:
    """Every known data set, then every path that has been prepared."""
    return [_known_entry(name) for name in KNOWN] + _path_entries()


def _load_copies(
    sources: list[str], path: Path, part: Part, image_size: int, progress: Progress | None
) -> Split:
    """Official files that a user names are their data set, once their checksums are verified."""
    from genssl.data.official_files import check_copies

    if len(sources) > 1:
        raise UserError(f"{path} contains official files of {' and '.join(sources)}; name one of the files")
    folder = check_copies(sources[0], path, progress)
    return _load_known(sources[0], part, image_size, progress, folder)


def _load_known(
    name: str, part: Part, image_size: int, progress: Progress | None, copies: Path | None = None
) -> Split:
    def build() -> dict[str, Split]:
        return {part: _build_known(name, part, image_size, progress, copies)}

    found = cache.recall(key_of(name, image_size), [part], build, progress=progress)
    assert found is not None
    return found


def key_of(name: str, image_size: int = NATIVE_SIZE) -> str:
    """The cache key of a known data set."""
    version = f"-v{SYNTHETIC_VERSION}" if name == "synthetic" else ""
    return f"{name}{version}-{image_size}"


def _build_known(
    name: str, part: Part, image_size: int, progress: Progress | None, copies: Path | None
) -> Split:
    if name == "synthetic":
        from genssl.data.synthetic import make

        return make(part, SYNTHETIC_SEED, image_size, progress=_counted("rendering digits", progress))
    if image_size != NATIVE_SIZE:
        return _resized(_load_known(name, part, NATIVE_SIZE, progress, copies), image_size)
    from genssl.data import official

    folder = copies or cache.cache_folder() / "downloads"
    tensors, classes = official.read(name, part, folder, progress, download=copies is None)
    return _converted(name, part, image_size, tensors, classes)


def _converted(
    name: str,
    part: str,
    image_size: int,
    tensors: Mapping[str, Lazy],
    classes: tuple[str, ...],
    digest: str | None = None,
) -> Split:
    """Written piece by piece to where `recall` looks; where that cannot be written, in memory."""
    path = cache.split_path(key_of(name, image_size), part)
    with contextlib.suppress(OSError):  # recall says so, when it cannot write either
        cache.remove_orphans(path)
        cache.write_rows(path, tensors, classes, name, part, digest)
    if found := cache.read_split(path):
        return found
    whole = {
        kind: torch.cat([tensor.rows(rows) for rows in chunks(tensor.shape[0], CHUNK)])
        for kind, tensor in tensors.items()
    }
    return Split(whole["images"], whole["labels"], classes, name, part, digest or tensor_digest(whole))


def _counted(what: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _resized(split: Split, size: int) -> Split:
    assert split.labels is not None
    shape = (len(split), 3, size, size)
    images = Lazy(shape, torch.uint8, lambda rows: _resize(split.images[rows], size))
    digest = hashlib.sha256(f"{split.digest}|{size}".encode()).hexdigest()
    tensors = {"images": images, "labels": lazy(split.labels)}
    return _converted(split.name, split.part, size, tensors, split.classes, digest)


def _resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic, uint8 (B, 3, H, W) to (B, 3, size, size)."""
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def _load_path(
    path: Path, part: Part, image_size: int, *, seed: int, skip_bad: bool, progress: Progress | None
) -> Split:
    from genssl.data import paths
    from genssl.data.members import printable

    place, key = paths.keys(path, image_size, skip_bad)
    found = cache.recall(
        key,
        [part, "all"],
        lambda: paths.read(path, image_size, skip_bad, progress, key),
        source=printable(str(path.resolve())),
        place=place,
        progress=progress,
    )
    if found is not None and found.part == "all":
        found = paths.hold_out(found, part, seed, progress)
    if not found:
        raise UserError(f"{path} has no images for the {part} part; add some")
    return found


def _path(data: str) -> Path:
    if not data.strip():
        raise UserError(f"an empty name is no data set; {_choices()}")
    path = Path(data).expanduser()
    if path.exists():
        return path
    if os.sep in data or path.suffix:
        raise UserError(f"no such file or folder: {data}; {_choices()}")
    raise UserError(_unknown(data, "is no known data set and no path"))


def _unknown(name: str, problem: str) -> str:
    close = difflib.get_close_matches(name.lower(), [*KNOWN, *(known + SUFFIX for known in KNOWN)], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name!r} {problem}; {hint}{_choices()}"


def _choices() -> str:
    return f"use {', '.join(KNOWN)}, or a path, each with or without {SUFFIX}"


def _known_entry(name: str) -> Entry:
    what, images = KNOWN[name]
    files = [cache.split_path(key_of(name), part) for part in PARTS]
    splits = [split for file in files if (split := cache.read_split(file))]
    cached = len(splits) == len(PARTS)
    total = sum(map(len, splits)) if cached else images
    return Entry(name, what, cached, total, sum(file.stat().st_size for file in files if file.exists()))


def _path_entries() -> list[Entry]:
    files = sorted(cache.cache_folder().glob(f"path-*{cache.SUFFIX}"))
    found: dict[str, Entry] = {}
    for file in files:
        split = cache.read_split(file)
        if split is None:
            continue
        source = cache.source_of(file)
        what = f"images of {split.images.shape[-1]} x {split.images.shape[-1]} pixels from a path"
        before = found.get(file.name.rpartition("-")[0], Entry(source, what, True, 0, 0))
        found[file.name.rpartition("-")[0]] = replace(
            before, images=before.images + len(split), size=before.size + file.stat().st_size
        )
    return list(found.values())
