"""Features of many images, a batch at a time, each process its shard."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from genssl import distributed
from genssl.pixels import to_model
from genssl.runtime import Tick

FeatureFunction = Callable[[Tensor], Tensor]  # images (B, C, H, W) in the model's range -> vectors (B, D)


def extract(
    function: FeatureFunction,
    images: Tensor,
    batch_size: int = 256,
    tick: Tick | None = None,
    *,
    sharded: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    read: Callable[[Tensor, slice], Tensor] = operator.getitem,
) -> Tensor:
    """Features of each image. Memory beyond the result is that of one batch.

    Args:
        function: images (B, C, H, W), float in the model's range and channels_last, to (B, D); in eval
            mode and without gradients, if it is a network's.
        images: uint8 (N, C, H, W), at least one.
        batch_size: images at a time.
        tick: called with (images done, number of images of this process).
        sharded: each process extracts its shard of the images, which are the same in all, and all get the
            whole result.
        device: where the function runs, and the result is; that of the images when None.
        dtype: of the result.
        read: a batch of the images by its rows, which raises where they cannot be read.

    Returns:
        (N, D).

    Raises:
        ValueError: there are no images, or the function's result is not (B, D).

    Examples:
        >>> images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
        >>> extract(lambda x: x.mean((2, 3)), images, batch_size=2).shape
        torch.Size([5, 3])
    """
    n = len(images)
    if images.ndim != 4 or n == 0:
        raise ValueError(f"images must be (N, C, H, W) and not empty, not {list(images.shape)}")
    # Fewer images than processes: each process extracts them all
    sharded = sharded and n >= distributed.world_size()
    local = images[distributed.shard(n)] if sharded else images
    device = device or images.device
    result = torch.empty(0)
    for start in range(0, len(local), batch_size):
        batch = to_model(read(local, slice(start, start + batch_size)).to(device))
        vectors = function(batch.contiguous(memory_format=torch.channels_last))
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise ValueError(f"features of {len(batch)} images must be (B, D), not {list(vectors.shape)}")
        if start == 0:
            result = torch.empty(len(local), vectors.shape[1], dtype=dtype, device=device)
        result[start : start + len(batch)] = vectors
        if tick is not None:
            tick(start + len(batch), len(local))
    return distributed.all_gather(result, n) if sharded else result
