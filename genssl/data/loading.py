"""`load`: from what --data says to a split in memory."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data import cache
from genssl.data.cache import Arrays, LazyArray, Progress
from genssl.data.registry import (
    NATIVE_SIZE,
    SOURCES,
    Part,
    Shape,
    base_name,
    hub_key,
    is_hub,
    is_remix,
    key_of,
    official_sources,
    path_of,
)
from genssl.data.rows import read_rows
from genssl.data.split import Split
from genssl.data.subset import limit_split, remix, train_validation_split, with_channels
from genssl.errors import UserError, printable
from genssl.files import tensor_digest
from genssl.pixels import is_gray
from genssl.settings import Config


def load(
    data: str,
    part: Part = "train",
    *,
    image_size: int = NATIVE_SIZE,
    seed: int = 0,
    skip_bad: bool = False,
    channels: int | None = None,
    zip_encoding: str | None = None,
    fit: Shape = "crop",
    progress: Progress | None = None,
) -> Split:
    """Load a part of a data set; what is slow about it is done once and cached.

    Args:
        data: a name in SOURCES, hf:OWNER/NAME, the path of a folder, .tar, .tar.gz, .zip, .npz, .npy,
            .parquet or official file, or one of these with -remix after it: both parts pooled and split
            again. A name goes before a path, and a path before a remix.
        part: "train" or "test".
        image_size: pixels on a side.
        seed: of the 90/10 split of data without parts, a path or of the hub; not used elsewhere.
        skip_bad: leave out files of a path that are no usable images, with a warning.
        channels: 1 (gray) or 3 of the images; as they are in the cache when None.
        zip_encoding: of names in a .zip that are not marked as UTF-8.
        fit: crop, pad or stretch: how images of a path or of the hub that are not square become so.
        progress: called with (what, how many done, of how many or None).

    Returns:
        The split on the CPU, images uint8 (N, channels, image_size, image_size).

    Raises:
        UserError: nothing of that name, no network, damaged files, a wrong checksum, no image for the part,
            no labels for a remix.

    Examples:
        >>> train = load("digits", "train", image_size=16)  # digits: a folder of images
        >>> len(train), train.images.shape, train.classes[:3]
        (120, torch.Size([120, 3, 16, 16]), ('0', '1', '2'))
    """
    if image_size < 1:
        raise UserError(f"the image size must be positive, not {image_size}")
    split = _load(data, part, image_size, seed, skip_bad, zip_encoding, fit, progress)
    return split if channels is None else with_channels(split, channels, progress)


def _load(
    data: str,
    part: Part,
    image_size: int,
    seed: int,
    skip_bad: bool,
    zip_encoding: str | None,
    fit: Shape,
    progress: Progress | None,
) -> Split:
    if data in SOURCES:
        return _load_known(data, part, image_size, progress)
    if is_remix(data):
        source = partial(
            load, base_name(data), image_size=image_size, seed=seed, skip_bad=skip_bad, fit=fit,
            zip_encoding=zip_encoding, progress=progress,
        )  # fmt: skip
        train, test = source("train"), source("test")
        return replace(remix(train, test, part, progress), notes=train.notes, seed=train.seed)
    if is_hub(data):
        split = _load_hub(data, part, image_size, skip_bad, fit, progress)
    else:
        path = path_of(data)
        if sources := official_sources(path):
            return _load_copies(sources, path, part, image_size, progress)
        split = _load_path(path, part, image_size, skip_bad, fit, zip_encoding, progress)
    if split is not None and split.part == "all":
        from genssl.data.image_folder import hold_out

        split = hold_out(split, part, seed, progress)
    if not split:
        raise UserError(f"{data} has no images for the {part} part; add some")
    return split


def load_undivided(
    data: str,
    *,
    image_size: int = NATIVE_SIZE,
    skip_bad: bool = False,
    zip_encoding: str | None = None,
    fit: Shape = "crop",
    progress: Progress | None = None,
) -> Split | None:
    """All images of a path that has no parts of its own, as the part "all"; None of any other data.

    Raises:
        UserError: as in `load`.
    """
    if data in SOURCES or is_remix(data) or is_hub(data) or official_sources(path_of(data)):
        return None
    split = _load_path(path_of(data), "test", image_size, skip_bad, fit, zip_encoding, progress)
    return split if split is not None and split.part == "all" else None


RunPart = Literal["train", "validation", "test"]


def load_for_run(config: Config, part: RunPart, progress: Progress | None = None) -> Split:
    """The images that a run of these settings trains on, is validated on, or is tested on.

    The limit applies to the train split, and the holdout to what the limit leaves.

    Raises:
        UserError: as in `load`; no holdout to validate on, or a class with a single image.

    Examples:
        >>> from genssl.config import make
        >>> config = make("vae", {"data": "digits", "limit": 100, "holdout": 0.1})
        >>> len(load_for_run(config, "train")), len(load_for_run(config, "validation"))
        (90, 10)
    """
    if part == "validation" and config.holdout == 0:
        raise UserError(
            "the run has no validation split, since nothing was held out of its training; "
            "use the test split, or train with --holdout 0.1"
        )
    split = load(
        config.data,
        "test" if part == "test" else "train",
        image_size=config.image_size,
        seed=config.seed,
        skip_bad=config.skip_bad,
        channels=config.channels,
        zip_encoding=config.zip_encoding,
        fit=config.fit,
        progress=progress,
    )
    if part == "test":
        return split
    split = limit_split(split, config.limit, config.seed, progress)
    if config.holdout == 0:
        return split
    train, validation = train_validation_split(split, config.holdout, config.seed, progress)
    return train if part == "train" else validation


def channels_of(config: Config, progress: Progress | None = None) -> int:
    """How many channels the images have that a run of these settings trains on: 1 where all of them are gray.

    Raises:
        UserError: as in `load`.
    """
    if source := SOURCES.get(base_name(config.data)):
        return source.channels
    split = load(
        config.data, "train", image_size=config.image_size, seed=config.seed, skip_bad=config.skip_bad,
        zip_encoding=config.zip_encoding, fit=config.fit, progress=progress,
    )  # fmt: skip
    return 1 if is_gray(split.images) else 3


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
    source, key = SOURCES[name], key_of(name, image_size)

    def build() -> dict[str, Split]:
        if source.native_size in {None, image_size}:
            arrays, classes = source.read(part, image_size, copies, progress)
            return {part: cache.store(key, part, arrays, classes, name)}
        native = _load_known(name, part, source.native_size or image_size, progress, copies)
        return {part: _store_resized(key, native, image_size)}

    split = cache.load_or_build(key, [part], build, progress=progress)
    assert split is not None
    return split


def _store_resized(key: str, split: Split, size: int) -> Split:
    assert split.labels is not None
    images = LazyArray(
        (len(split), split.images.shape[1], size, size),
        "uint8",
        lambda rows: _resize(read_rows(split.images, torch.arange(rows.start, rows.stop)), size).numpy(),
    )
    digest = hashlib.sha256(f"{split.digest}|{size}".encode()).hexdigest()
    arrays: Arrays = {"images": images, "labels": split.labels.numpy()}
    return cache.store(key, split.part, arrays, split.classes, split.name, digest)


def _resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic, uint8 (B, C, H, W) to (B, C, size, size)."""
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def _load_path(
    path: Path,
    part: Part,
    image_size: int,
    skip_bad: bool,
    fit: Shape,
    zip_encoding: str | None,
    progress: Progress | None,
) -> Split | None:
    """The part, or everything where the path has no parts."""
    from genssl.data import image_folder

    read, files = _reader(path, zip_encoding)
    prefix, key = image_folder.cache_keys(path, image_size, skip_bad, fit, files, zip_encoding)
    return cache.load_or_build(
        key,
        [part, "all"],
        lambda: read(path, image_size, skip_bad, progress, key, fit),
        source=printable(str(path.resolve())),
        prefix=prefix,
        progress=progress,
    )


def _load_hub(
    data: str, part: Part, image_size: int, skip_bad: bool, fit: Shape, progress: Progress | None
) -> Split | None:
    from genssl.data import decode, huggingface

    options = ["skip-bad"] * skip_bad + [fit] * (fit != "crop")
    if (limit := decode.max_pixels()) != decode.MAX_PIXELS:  # which images are too large to be read
        options.append(str(limit))
    key = hub_key(data, image_size, *options)
    return cache.load_or_build(
        key,
        [part, "all"],
        lambda: huggingface.read_hub(data, image_size, skip_bad, progress, key, fit),
        source=data,
        progress=progress,
    )


def _reader(
    path: Path, zip_encoding: str | None = None
) -> tuple[Callable[..., dict[str, Split]], list[Path]]:
    """The function that reads what is at a path, and the files that it reads, if not images."""
    from genssl.data import arrays, huggingface, image_folder

    if arrays.is_array_file(path):
        return arrays.read, [path]
    files = huggingface.parquet_files(path)
    if files:
        return huggingface.read, files
    return partial(image_folder.read, zip_encoding=zip_encoding), files


def read_unlabeled(
    path: Path, image_size: int, skip_bad: bool = False, progress: Progress | None = None
) -> Split:
    """Every image of a path, without parts and labels; not cached.

    Raises:
        UserError: there is no image, or a file is bad and `skip_bad` is not set.
    """
    read, _ = _reader(path)
    parts = list(read(path, image_size, skip_bad, progress).values())
    images = torch.cat([split.images for split in parts])
    digest = tensor_digest({"images": images})
    return replace(parts[0], images=images, labels=None, classes=(), part="all", digest=digest)


def overlap_note(name: str, trained: Config, data: str | None, split: Split) -> str | None:
    """Why images of a split may be among those that a run was trained on; None: nothing suggests it.

    Args:
        name: of the run.
        trained: its settings.
        data: what the split was loaded from; None: the run's own data.
        split: images to test on, or those to train on, which may overlap.
    """
    known = trained.data
    if split.part == "train" or (data and base_name(data) != base_name(known)):
        return None
    if data not in {None, known}:
        reason = f"{data} and {known}, on which {name} was trained, are split differently"
    elif split.seed not in {None, trained.seed}:
        reason = f"{known} has no parts, and the random seed of {name} chose other images for testing"
    else:
        return None
    return f"{reason}: images of the {split.part} split may be among its training images"
