"""Rows of one split or of several: limits, hold-outs, and remixes (both parts pooled and split again).

SVHN's train and test split are not drawn from one distribution, which no generative model is to blame for; a
remix makes them so (Xiao, Zenn and Bamler, arXiv 2312.02168). The recipe is theirs, the rows are not: they
published a list of indices, and here a fixed seed decides.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genssl.data import cache
from genssl.data.cache import Progress
from genssl.data.registry import REMIX_SUFFIX
from genssl.data.split import Split
from genssl.data.writer import LazyTensor, with_progress
from genssl.errors import UserError
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
    found = cache.load_or_build(_key(digest), [part], build, progress=progress)
    assert found is not None
    return replace(found, name=name)


def limit_split(split: Split, limit: int | None, seed: int, progress: Progress | None = None) -> Split:
    """What `split.take(limit, seed)` gives, without a copy in memory where it is large."""
    if limit is None:
        return split
    order = torch.randperm(len(split), generator=generator(seed, "limit"))
    digest = hashlib.sha256(f"{split.digest}|{limit}|{seed}".encode()).hexdigest()
    return select_rows(
        [split], order[:limit], digest=digest, name=split.name, part=split.part, progress=progress
    )


def _choose(sources: Sequence[Split], rows: Tensor) -> dict[str, LazyTensor]:
    """The chosen images, labels and masks, as far as all sources have them; nothing is copied yet."""
    chosen = {}
    for kind in ("images", "labels", "masks"):
        tensors = [tensor for source in sources if (tensor := getattr(source, kind)) is not None]
        if len(tensors) == len(sources):
            shape = (len(rows), *tensors[0].shape[1:])
            chosen[kind] = LazyTensor(shape, tensors[0].dtype, partial(_piece, tensors, rows))
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


def _build(tensors: Mapping[str, LazyTensor], like: Split, progress: Progress | None) -> dict[str, Split]:
    path = cache.split_path(_key(like.digest), like.part)
    told, n = dict(tensors), tensors["images"].shape[0]
    if progress:
        told["images"] = with_progress(
            told["images"], lambda done: progress(f"writing {like.name} to the cache", done, n)
        )
    with contextlib.suppress(OSError):  # `recall` will say so, when it cannot write either
        cache.remove_orphans(path)
        cache.write_rows(path, told, like.classes, like.name, like.part, like.digest)
    return {like.part: cache.read_split(path) or _copied(tensors, like)}


def _key(digest: str) -> str:
    return f"rows-{digest[:16]}"


def _copied(tensors: Mapping[str, LazyTensor], like: Split) -> Split:
    """In memory, beside what `like` says."""
    whole = {kind: tensor.rows(slice(0, tensor.shape[0])) for kind, tensor in tensors.items()}
    return replace(like, images=whole["images"], labels=whole.get("labels"), masks=whole.get("masks"))


REMIX_SEED = 0  # one remix for everybody, whatever the seed of a run


def remix(train: Split, test: Split, part: str, progress: Progress | None = None) -> Split:
    """One part of the pool of both parts, split anew; as large as the part was, with as many of each class.

    The pool is train, then test. The pooled rows of each class are permuted by the stream (SEED, "remix",
    label) and the first so many of them, as train had, become train. Within a part, rows keep the order
    of the pool.

    Args:
        train: labelled.
        test: labelled, with images of the same size and the same classes.
        part: "train" or "test".
        progress: told of the writing, where the part is large.

    Raises:
        UserError: there are no labels.
    """
    if train.labels is None or test.labels is None:
        raise UserError(
            f"{train.name} has no labels in both parts, and a remix keeps how many there are of each class; "
            f"sort its images into a folder a class, or leave {REMIX_SUFFIX} away"
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
        kept = int((train == label).sum())
        chosen.append(shuffled[:kept] if part == "train" else shuffled[kept:])
    return torch.cat(chosen).sort().values
