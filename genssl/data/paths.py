"""Splits from a folder or an archive of images."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch

from genssl.data.cache import FORMAT, Progress, cache_folder
from genssl.data.convert import Conversion, convert
from genssl.data.members import members, printable
from genssl.data.rows import select_rows
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.runtime import generator

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
HELD_OUT = 0.1


def stem(path: Path) -> str:
    """What to call the data of a path: a folder's name, or an archive's without its suffix."""
    name = printable(path.resolve().name)
    for suffix in ARCHIVES:
        if name.lower().endswith(suffix) and not path.is_dir():
            return name[: -len(suffix)]
    return name


def keys(path: Path, image_size: int, skip_bad: bool) -> tuple[str, str]:
    """File names: one for the path and the options, one that also changes whenever a file there does."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in stem(path))
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
    task = Conversion(path, stem(path), key or "all", image_size, skip_bad, progress)
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
