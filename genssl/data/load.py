"""`load`: from what --data says to a split in memory."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data import cache
from genssl.data.cache import Progress
from genssl.data.registry import NATIVE_SIZE, SOURCES, base_name, is_remix, key_of, official_sources, path_of
from genssl.data.split import Split
from genssl.data.subset import remix
from genssl.data.writer import LazyTensor, as_lazy
from genssl.errors import UserError
from genssl.files import tensor_digest
from genssl.runtime import chunks

Part = Literal["train", "test"]

CHUNK = 4096  # images
SYNTHETIC_SEED = 0  # one data set for everybody, whatever the seed of a run


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
    if data in SOURCES:
        return _load_known(data, part, image_size, progress)
    if is_remix(data):
        source = partial(
            load, base_name(data), image_size=image_size, seed=seed, skip_bad=skip_bad, progress=progress
        )
        return remix(source("train"), source("test"), part, progress)
    path = path_of(data)
    if sources := official_sources(path):
        return _load_copies(sources, path, part, image_size, progress)
    return _load_path(path, part, image_size, seed=seed, skip_bad=skip_bad, progress=progress)


def _load_copies(
    sources: list[str], path: Path, part: Part, image_size: int, progress: Progress | None
) -> Split:
    """Official files that a user names are their data set, once their checksums are verified."""
    from genssl.data.torchvision_sets import check_copies

    if len(sources) > 1:
        raise UserError(f"{path} contains official files of {' and '.join(sources)}; name one of the files")
    folder = check_copies(sources[0], path, progress)
    return _load_known(sources[0], part, image_size, progress, folder)


def _load_known(
    name: str, part: Part, image_size: int, progress: Progress | None, copies: Path | None = None
) -> Split:
    def build() -> dict[str, Split]:
        return {part: _build_known(name, part, image_size, progress, copies)}

    found = cache.load_or_build(key_of(name, image_size), [part], build, progress=progress)
    assert found is not None
    return found


def _build_known(
    name: str, part: Part, image_size: int, progress: Progress | None, copies: Path | None
) -> Split:
    if name == "synthetic":
        from genssl.data.synthetic.render import make

        return make(part, SYNTHETIC_SEED, image_size, progress=_counted("rendering digits", progress))
    if image_size != NATIVE_SIZE:
        return _resized(_load_known(name, part, NATIVE_SIZE, progress, copies), image_size)
    from genssl.data import torchvision_sets

    folder = copies or cache.cache_folder() / "downloads"
    tensors, classes = torchvision_sets.read_official(name, part, folder, progress, download=copies is None)
    return _converted(name, part, image_size, tensors, classes)


def _converted(
    name: str,
    part: str,
    image_size: int,
    tensors: Mapping[str, LazyTensor],
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
    images = LazyTensor(shape, torch.uint8, lambda rows: _resize(split.images[rows], size))
    digest = hashlib.sha256(f"{split.digest}|{size}".encode()).hexdigest()
    tensors = {"images": images, "labels": as_lazy(split.labels)}
    return _converted(split.name, split.part, size, tensors, split.classes, digest)


def _resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic, uint8 (B, 3, H, W) to (B, 3, size, size)."""
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def _load_path(
    path: Path, part: Part, image_size: int, *, seed: int, skip_bad: bool, progress: Progress | None
) -> Split:
    from genssl.data import image_folder
    from genssl.data.archive import printable

    place, key = image_folder.cache_keys(path, image_size, skip_bad)
    found = cache.load_or_build(
        key,
        [part, "all"],
        lambda: image_folder.read(path, image_size, skip_bad, progress, key),
        source=printable(str(path.resolve())),
        place=place,
        progress=progress,
    )
    if found is not None and found.part == "all":
        found = image_folder.hold_out(found, part, seed, progress)
    if not found:
        raise UserError(f"{path} has no images for the {part} part; add some")
    return found
