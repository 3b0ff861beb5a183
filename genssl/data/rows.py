"""Rows of one split or of several: in memory, or in a file of the cache where they are many."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genssl.data import cache
from genssl.data.cache import Progress
from genssl.data.split import Split
from genssl.data.stream import Lazy, telling
from genssl.runtime import generator

LARGE = 2**30  # bytes of images from which on the processes of a computer share one copy


def select_rows(
    sources: Sequence[Split],
    rows: Tensor,
    *,
    digest: str,
    name: str,
    part: str,
    progress: Progress | None = None,
) -> Split:
    """The rows of the sources, laid end to end.

    Up to LARGE bytes of images are copied in memory. More are written once, piece by piece, to a file of
    the cache that is named after the digest, and memory-mapped from then on; where the cache cannot be
    written, they are copied in memory, too, with a warning.

    Args:
        sources: one or more, with images of one size and the same classes.
        rows: int64 (M,), of the concatenation of the sources.
        digest: of the result; no other content may have it.
        name: of the result.
        part: of the result.
        progress: told of the writing, as (what, how many done, of how many).

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
    like = replace(sources[0], digest=digest, name=name, part=part)
    tensors = _choose(sources, rows)
    if tensors["images"].bytes <= LARGE or sources[0].images.is_cuda:
        return _copied(tensors, like)
    build = partial(_build, tensors, like, progress)
    found = cache.recall(_key(digest), [part], build, progress=progress)
    assert found is not None
    return replace(found, name=name)


def limited(split: Split, limit: int | None, seed: int, progress: Progress | None = None) -> Split:
    """What `split.take(limit, seed)` gives, without a copy in memory where it is large."""
    if limit is None:
        return split
    order = torch.randperm(len(split), generator=generator(seed, "limit"))
    digest = hashlib.sha256(f"{split.digest}|{limit}|{seed}".encode()).hexdigest()
    return select_rows(
        [split], order[:limit], digest=digest, name=split.name, part=split.part, progress=progress
    )


def _choose(sources: Sequence[Split], rows: Tensor) -> dict[str, Lazy]:
    """The chosen images, labels and masks, as far as all sources have them; nothing is copied yet."""
    chosen = {}
    for kind in ("images", "labels", "masks"):
        tensors = [tensor for source in sources if (tensor := getattr(source, kind)) is not None]
        if len(tensors) == len(sources):
            shape = (len(rows), *tensors[0].shape[1:])
            chosen[kind] = Lazy(shape, tensors[0].dtype, partial(_piece, tensors, rows))
    return chosen


def _piece(tensors: Sequence[Tensor], rows: Tensor, piece: slice) -> Tensor:
    """The rows rows[piece] of the concatenation of the tensors."""
    rows = rows[piece].to(tensors[0].device)
    if len(tensors) == 1:
        return tensors[0][rows]
    chosen = tensors[0].new_empty((len(rows), *tensors[0].shape[1:]))
    start = 0
    for tensor in tensors:
        here = (rows >= start) & (rows < start + len(tensor))
        chosen[here] = tensor[rows[here] - start]
        start += len(tensor)
    return chosen


def _build(tensors: Mapping[str, Lazy], like: Split, progress: Progress | None) -> dict[str, Split]:
    path = cache.split_path(_key(like.digest), like.part)
    told, n = dict(tensors), tensors["images"].shape[0]
    if progress:
        told["images"] = telling(
            told["images"], lambda done: progress(f"writing {like.name} to the cache", done, n)
        )
    with contextlib.suppress(OSError):  # `recall` will say so, when it cannot write either
        cache.remove_orphans(path)
        cache.write_rows(path, told, like.classes, like.name, like.part, like.digest)
    return {like.part: cache.read_split(path) or _copied(tensors, like)}


def _key(digest: str) -> str:
    return f"rows-{digest[:16]}"


def _copied(tensors: Mapping[str, Lazy], like: Split) -> Split:
    """In memory, beside what `like` says."""
    whole = {kind: tensor.rows(slice(0, tensor.shape[0])) for kind, tensor in tensors.items()}
    return replace(like, images=whole["images"], labels=whole.get("labels"), masks=whole.get("masks"))
