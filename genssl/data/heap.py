"""A folder of images as one heap, whatever its subfolders are called."""

from dataclasses import replace
from pathlib import Path

import torch

from genssl.data import paths
from genssl.data.cache import Progress
from genssl.data.split import Split
from genssl.files import tensor_digest


def read_heap(path: Path, image_size: int, skip_bad: bool = False, progress: Progress | None = None) -> Split:
    """Every image of a folder or an archive, without parts and labels; not kept in the cache.

    Raises:
        UserError: there is no image, or a file is bad and `skip_bad` is not set.
    """
    parts = list(paths.read(path, image_size, skip_bad, progress).values())
    images = torch.cat([split.images for split in parts])
    digest = tensor_digest({"images": images})
    return replace(parts[0], images=images, labels=None, classes=(), part="all", digest=digest)
