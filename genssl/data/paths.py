"""Splits from a folder or an archive of images."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from genssl.data.cache import FORMAT, Progress
from genssl.data.decode import BadImage, Bytes, decode
from genssl.data.layout import Layout, lay_out
from genssl.data.members import BadFile, Member, count, members, printable
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.files import tensor_digest
from genssl.runtime import generator

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
HELD_OUT = 0.1
NAMED = 3  # bad files that a message names
PERIOD = 250  # files between two reports of progress


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
    place = f"path-{name[:60]}-{_hash(str(path.resolve()), str(image_size), str(skip_bad))}"
    return place, f"{place}-{_hash(FORMAT, *_state(path))}"


def _hash(*words: str) -> str:
    text = "\n".join(words).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def _state(path: Path) -> list[str]:
    if path.is_dir():
        return [f"{member.name}|{member.stamp}" for member in members(path)]
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    status = path.stat()
    return [str(status.st_size), str(status.st_mtime_ns)]


def read(path: Path, image_size: int, skip_bad: bool, progress: Progress | None = None) -> dict[str, Split]:
    """Read every image in one pass: "train" and "test", or "all" where the path knows no parts.

    Raises:
        UserError: no image is there; a file is bad and `skip_bad` is not set; the archive is damaged.
    """
    good, bad = _decode_all(path, image_size, progress)
    if bad and not skip_bad:
        raise UserError(f"{_bad(path, good, bad)}; repair or remove them, or leave them out with --skip-bad")
    if not good:
        problem = _bad(path, good, bad) if bad else f"no images in {path}"
        raise UserError(f"{problem}; give train/<class>/* and test/<class>/*, <class>/*, or images alone")
    layout = lay_out(good)
    _tell_left_out(path, good, bad, layout)
    name = stem(path)
    parts = {part: _split(places, good, layout.classes) for part, places in layout.parts.items() if places}
    return {part: replace(split, name=name, part=part) for part, split in parts.items()}


def hold_out(everything: Split, part: str, seed: int) -> Split:
    """The 90 % (train) or 10 % (test) of `everything` that the seed says, in the order of the whole."""
    n = len(everything)
    shuffled = torch.randperm(n, generator=generator(seed, "hold out"))
    test = round(n * HELD_OUT) if n > 1 / HELD_OUT else min(1, n - 1)
    rows = shuffled[:test] if part == "test" else shuffled[test:]
    digest = hashlib.sha256(f"{everything.digest}|{seed}|{part}".encode()).hexdigest()
    return replace(everything.select(rows.sort().values), part=part, digest=digest)


def _decode_all(
    path: Path, image_size: int, progress: Progress | None
) -> tuple[dict[str, Bytes], dict[str, str]]:
    """(images by name, reasons by name of the bad)."""
    good: dict[str, Bytes] = {}
    bad: dict[str, str] = {}
    total = count(path) if progress else None
    for done, member in enumerate(members(path)):
        if progress and done % PERIOD == 0:
            progress(f"reading {path.name}", done, total)
        _decode_one(member, image_size, good, bad)
    if progress:
        progress(f"reading {path.name}", len(good) + len(bad), len(good) + len(bad))
    return good, bad


def _decode_one(member: Member, image_size: int, good: dict[str, Bytes], bad: dict[str, str]) -> None:
    # An archive may hold a name twice, when it was appended to: the last one counts.
    good.pop(member.name, None)
    bad.pop(member.name, None)
    try:
        good[member.name] = decode(member.read(), image_size)
    except (BadFile, BadImage) as error:
        bad[member.name] = str(error)


def _split(places: list[tuple[str, int | None]], images: dict[str, Bytes], classes: tuple[str, ...]) -> Split:
    """Images (N, 3, H, W) from arrays (H, W, 3), which are let go one by one."""
    height, width, channels = images[places[0][0]].shape
    whole = np.empty((len(places), channels, height, width), np.uint8)
    for row, (name, _) in enumerate(places):
        whole[row] = images.pop(name).transpose(2, 0, 1)
    tensors = {"images": torch.from_numpy(whole)}
    labels = [label for _, label in places if label is not None]
    if labels:
        tensors["labels"] = torch.tensor(labels)
    return Split(
        images=tensors["images"],
        labels=tensors.get("labels"),
        classes=classes,
        name="",
        part="",
        digest=tensor_digest(tensors),
    )


def _bad(path: Path, good: Mapping[str, Bytes], bad: Mapping[str, str]) -> str:
    return f"{len(bad):,} of {len(good) + len(bad):,} images in {path} cannot be used: {_some(bad)}"


def _some(reasons: Mapping[str, str]) -> str:
    named = [f"{name} ({reason})" for name, reason in sorted(reasons.items())[:NAMED]]
    more = len(reasons) - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _tell_left_out(path: Path, good: Mapping[str, Bytes], bad: Mapping[str, str], layout: Layout) -> None:
    reasons = dict.fromkeys(layout.outside, "in no part or class") | dict(bad)
    if reasons:
        total = len(good) + len(bad)
        text = f"{len(reasons):,} of {total:,} images in {path} are left out: {_some(reasons)}"
        warnings.warn(text, stacklevel=4)
