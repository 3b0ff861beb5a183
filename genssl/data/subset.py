"""Rows of one split or of several: limits, validation splits, and remixes (both parts split again).

SVHN's train and test split are not drawn from one distribution, which no generative model is to blame for; a
remix makes them so (Xiao, Zenn and Bamler, arXiv 2312.02168). The recipe is theirs, the rows are not: they
published a list of indices, and here a fixed seed decides.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from genssl.data import cache
from genssl.data.cache import LazyArray, Progress
from genssl.data.registry import REMIX_SUFFIX
from genssl.data.rows import read_rows
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.pixels import to_channels
from genssl.runtime import generator

AT_ONCE = 1024  # images whose channels are converted at a time
LARGE = 2**30  # bytes of images from which on the processes of a computer share one copy
DTYPES = {torch.uint8: "uint8", torch.int64: "int64"}


def select_rows(
    sources: Sequence[Split],
    rows: Tensor,
    *,
    digest: str,
    name: str,
    part: str,
    channels: int | None = None,
    progress: Progress | None = None,
) -> Split:
    """The rows of the sources, laid end to end.

    Up to LARGE bytes of images are copied in memory. More are written once, piece by piece, to an entry
    of the cache that is named after the digest, and memory-mapped from then on; where the cache cannot be
    written, they are copied in memory, too, with a warning.

    Args:
        sources: one or more, with images of one size and the same classes.
        rows: int64 (M,), of the concatenation of the sources.
        digest: of the result; no other content may have it.
        name: of the result.
        part: of the result.
        channels: of the result's images, 1 or 3; those of the sources when None.
        progress: called while a large result is written, with (what, how many done, of how many).

    Returns:
        M images in the order of `rows`; with labels, and with masks, where all sources have them.

    Raises:
        ValueError: there are no sources, or their classes differ.
        IndexError: a row is not there.
    """
    total = sum(map(len, sources))
    if not sources or any(source.classes != sources[0].classes for source in sources):
        raise ValueError("rows can be selected from splits of the same classes only")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total:
        raise IndexError(f"rows are to be chosen from {total:,}")
    pools, classes = _pools(sources), sources[0].classes

    def gather(kind: str, wanted: Tensor) -> Tensor:
        if kind != "images" or channels is None:
            return _gather(pools[kind], wanted)
        parts = wanted.split(AT_ONCE)
        return torch.cat([to_channels(_gather(pools[kind], part), channels) for part in parts])

    if len(rows) * sources[0].images.shape[1:].numel() <= LARGE or sources[0].images.is_cuda:
        chosen = {kind: gather(kind, rows) for kind in pools}
        labels, masks = chosen.get("labels"), chosen.get("masks")
        return Split(chosen["images"], labels, classes, name, part, digest, masks)

    def read(kind: str, piece: slice) -> npt.NDArray[Any]:
        if progress and kind == "images":
            progress(f"writing {name} to the cache", piece.stop, len(rows))
        return gather(kind, rows[piece]).numpy()

    arrays = {
        kind: LazyArray(
            (len(rows), *gather(kind, rows[:1]).shape[1:]), DTYPES[pool[0].dtype], partial(read, kind)
        )
        for kind, pool in pools.items()
    }
    key = f"rows-{digest[:16]}"
    split = cache.load_or_build(
        key,
        [part],
        lambda: {part: cache.store(key, part, arrays, classes, name, digest)},
        progress=progress,
    )
    assert split is not None
    return replace(split, name=name)


def with_channels(split: Split, channels: int, progress: Progress | None = None) -> Split:
    """The split with images of 1 channel or 3, by `to_channels`; large ones are written to the cache once.

    Examples:
        >>> split = Split(torch.zeros(6, 1, 2, 2).byte(), None, (), "gray", "train", "0")
        >>> with_channels(split, 3).images.shape
        torch.Size([6, 3, 2, 2])
    """
    if split.images.shape[1] == channels:
        return split
    digest = hashlib.sha256(f"{split.digest}|channels|{channels}".encode()).hexdigest()
    if channels == 3:  # takes no memory: one plane is seen three times
        return replace(split, images=to_channels(split.images, 3), digest=digest)
    rows = torch.arange(len(split))
    changed = select_rows(
        [split], rows, digest=digest, name=split.name, part=split.part, channels=channels, progress=progress
    )
    return replace(changed, notes=split.notes, seed=split.seed)


def limit_split(split: Split, limit: int | None, seed: int, progress: Progress | None = None) -> Split:
    """What `split.take(limit, seed)` gives, without a copy in memory where it is large.

    Examples:
        >>> images, labels, names = torch.zeros(6, 1, 2, 2).byte(), torch.arange(6) % 2, ("cat", "dog")
        >>> split = Split(images, labels, names, name="pets", part="train", digest="0")
        >>> len(limit_split(split, 4, seed=0))
        4
    """
    if limit is None:
        return split
    order = torch.randperm(len(split), generator=generator(seed, "limit"))
    digest = hashlib.sha256(f"{split.digest}|{limit}|{seed}".encode()).hexdigest()
    return select_rows(
        [split], order[:limit], digest=digest, name=split.name, part=split.part, progress=progress
    )


def train_validation_split(
    split: Split, share: float, seed: int, progress: Progress | None = None
) -> tuple[Split, Split]:
    """Hold out a share of a split, of each class alike where there are labels.

    The rows of each class are permuted by the stream (seed, "holdout", label), and the first of them, the
    share rounded to whole images, become the validation split; without labels all rows are one class. Both
    parts have at least one image of each class, and rows keep the order of the split.

    Args:
        split: on the host.
        share: of the images, above 0 and below 1.
        seed: of the permutations.
        progress: called while a large part is written to the cache.

    Returns:
        What is left, with the part's name "train", and the images held out, with "validation"; each has a
        digest of its own.

    Raises:
        UserError: a class has a single image.

    Examples:
        >>> images, labels, names = torch.zeros(8, 1, 2, 2).byte(), torch.arange(8) % 2, ("cat", "dog")
        >>> split = Split(images, labels, names, name="pets", part="train", digest="0")
        >>> train, validation = train_validation_split(split, 0.25, seed=0)
        >>> len(train), validation.labels.sort().values  # as many of each class
        (6, tensor([0, 1]))
    """
    held_out = torch.zeros(len(split), dtype=torch.bool)
    labels = torch.zeros(len(split), dtype=torch.int64) if split.labels is None else split.labels.cpu()
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if len(rows) < 2:
            name = split.name if split.labels is None else f"class {split.classes[label]} of {split.name}"
            raise UserError(
                f"{name} has 1 image to train on, and a holdout needs 2; raise --limit, or use no --holdout"
            )
        shuffled = rows[torch.randperm(len(rows), generator=generator(seed, "holdout", label))]
        held_out[shuffled[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True

    def part(name: str, chosen: Tensor) -> Split:
        digest = hashlib.sha256(f"{split.digest}|holdout|{share}|{seed}|{name}".encode()).hexdigest()
        rows = chosen.nonzero().flatten()
        return select_rows([split], rows, digest=digest, name=split.name, part=name, progress=progress)

    return part("train", ~held_out), part("validation", held_out)


def _pools(sources: Sequence[Split]) -> dict[str, list[Tensor]]:
    """Images, labels and masks of the sources, as far as all of them have them."""
    pools = {
        kind: [tensor for source in sources if (tensor := getattr(source, kind)) is not None]
        for kind in ("images", "labels", "masks")
    }
    return {kind: pool for kind, pool in pools.items() if len(pool) == len(sources)}


def _gather(pool: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The rows of the concatenation of the tensors, which is not made."""
    rows = rows.to(pool[0].device)
    if len(pool) == 1:
        return read_rows(pool[0], rows)
    chosen = pool[0].new_empty((len(rows), *pool[0].shape[1:]))
    start = 0
    for tensor in pool:
        here = (rows >= start) & (rows < start + len(tensor))
        chosen[here] = read_rows(tensor, rows[here] - start)
        start += len(tensor)
    return chosen


def pool(train: Split, test: Split) -> Split:
    """All images of both parts, train first, as the part "all".

    Raises:
        UserError: the parts have different classes.

    Examples:
        >>> images, labels, names = torch.zeros(8, 1, 2, 2).byte(), torch.arange(8) % 2, ("cat", "dog")
        >>> train = Split(images[:6], labels[:6], names, name="pets", part="train", digest="0")
        >>> test = Split(images[6:], labels[6:], names, name="pets", part="test", digest="1")
        >>> both = pool(train, test)
        >>> len(both), both.part
        (8, 'all')
    """
    if train.classes != test.classes:
        raise UserError(f"the train and test part of {train.name} have different classes; name one of them")
    digest = hashlib.sha256(f"{train.digest}|{test.digest}|all".encode()).hexdigest()
    rows = torch.arange(len(train) + len(test))
    return select_rows([train, test], rows, digest=digest, name=train.name, part="all")


REMIX_SEED = 0  # one remix for everybody, whatever the seed of a run


def remix(train: Split, test: Split, part: str, progress: Progress | None = None) -> Split:
    """One part of the pool of both parts, split again; as large as the part was, with as many of each class.

    The pool is train, then test. The pooled rows of each class are permuted by the stream (REMIX_SEED,
    "remix", label), and the first of them, as many as train had, become train. Within a part, rows keep the
    order of the pool.

    Args:
        train: labeled.
        test: labeled, with images of the same size and the same classes.
        part: "train" or "test".
        progress: called while a large part is written.

    Raises:
        UserError: there are no labels.

    Examples:
        >>> images, labels, names = torch.zeros(8, 1, 2, 2).byte(), torch.arange(8) % 2, ("cat", "dog")
        >>> train = Split(images[:6], labels[:6], names, name="pets", part="train", digest="0")
        >>> test = Split(images[6:], labels[6:], names, name="pets", part="test", digest="1")
        >>> [len(remix(train, test, part)) for part in ("train", "test")]
        [6, 2]
    """
    if train.labels is None or test.labels is None:
        raise UserError(
            f"{train.name} has no labels in both parts, and a remix keeps how many there are of each class; "
            f"sort its images into one folder per class, or omit {REMIX_SUFFIX}"
        )
    chosen = _rows(train.labels.cpu(), test.labels.cpu(), part)
    text = f"{train.digest}|{test.digest}|remix|{REMIX_SEED}|{part}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return select_rows(
        [train, test], chosen, digest=digest, name=train.name + REMIX_SUFFIX, part=part, progress=progress
    )


def _rows(train: Tensor, test: Tensor, part: str) -> Tensor:
    """Rows of the pool, int64 in rising order, from the labels of both parts."""
    pool = torch.cat([train, test])
    chosen = []
    for label in pool.unique().tolist():
        rows = (pool == label).nonzero().flatten()
        shuffled = rows[torch.randperm(len(rows), generator=generator(REMIX_SEED, "remix", label))]
        n_train = int((train == label).sum())
        chosen.append(shuffled[:n_train] if part == "train" else shuffled[n_train:])
    return torch.cat(chosen).sort().values
