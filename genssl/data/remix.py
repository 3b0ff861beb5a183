"""A data set whose parts are pooled, shuffled and split anew: `NAME-remix`.

SVHN's own parts are not drawn from one distribution, which no generative model is to blame for; a remix
makes them so (Xiao, Zenn and Bamler, arXiv 2312.02168). The recipe is theirs, the rows are not: they
published a list of indices, and here a fixed seed decides.
"""

import hashlib

import torch
from torch import Tensor

from genssl.data.cache import Progress
from genssl.data.known import SUFFIX
from genssl.data.rows import select_rows
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.runtime import generator

SEED = 0  # one remix for everybody, whatever the seed of a run


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
            f"sort its images into a folder a class, or leave {SUFFIX} away"
        )
    chosen = _rows(train.labels.cpu(), test.labels.cpu(), part)
    text = f"{train.digest}|{test.digest}|remix|{SEED}|{part}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return select_rows(
        [train, test], chosen, digest=digest, name=train.name + SUFFIX, part=part, progress=progress
    )


def _rows(train: Tensor, test: Tensor, part: str) -> Tensor:
    """Rows of the pool, int64 in rising order, from the labels of both parts."""
    pool = torch.cat([train, test])
    chosen = []
    for label in pool.unique().tolist():
        rows = (pool == label).nonzero().flatten()
        shuffled = rows[torch.randperm(len(rows), generator=generator(SEED, "remix", label))]
        kept = int((train == label).sum())
        chosen.append(shuffled[:kept] if part == "train" else shuffled[kept:])
    return torch.cat(chosen).sort().values
