"""Which data sets there are, and which are ready: read from the headers of what is kept. No torch."""

from dataclasses import dataclass, replace

from genssl.data import cache
from genssl.data.registry import SOURCES, key_of

PARTS = ("train", "test")


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


def catalogue() -> list[Entry]:
    """Every known data set, then every path that has been prepared."""
    return [_known_entry(name) for name in SOURCES] + _path_entries()


def _known_entry(name: str) -> Entry:
    what, images = SOURCES[name]
    files = [cache.split_path(key_of(name), part) for part in PARTS]
    splits = [split for file in files if (split := cache.describe(file))]
    cached = len(splits) == len(PARTS)
    total = sum(shape[0] for shape, _ in splits) if cached else images
    return Entry(name, what, cached, total, sum(file.stat().st_size for file in files if file.exists()))


def _path_entries() -> list[Entry]:
    files = sorted(cache.cache_folder().glob(f"path-*{cache.SUFFIX}"))
    entries: dict[str, Entry] = {}
    for file in files:
        split = cache.describe(file)
        if split is None:
            continue
        (n, _, _, width), source = split
        key = file.name.rpartition("-")[0]
        what = f"images of {width} x {width} pixels from a path"
        before = entries.get(key, Entry(source, what, True, 0, 0))
        entries[key] = replace(before, images=before.images + n, size=before.size + file.stat().st_size)
    return list(entries.values())
