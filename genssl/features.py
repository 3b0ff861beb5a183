"""Features of many images, a batch at a time, each process its shard."""

from collections.abc import Callable

import torch
from torch import Tensor

from genssl import distributed
from genssl.pixels import to_model
from genssl.runtime import Tick

FeatureFunction = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in the model's range -> vectors (B, D)


def extract(
    function: FeatureFunction,
    images: Tensor,
    batch_size: int = 256,
    tick: Tick | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Features of each image. Memory beyond the result is that of one batch.

    Args:
        function: images (B, 3, H, W), float in the model's range and channels_last, to (B, D); in eval
            mode and without gradients, if it is a network's.
        images: uint8 (N, 3, H, W), at least one.
        batch_size: images at a time.
        tick: called with (images done, N).
        device: where the result goes; that of the images when None.
        dtype: of the result.

    Returns:
        (N, D).

    Raises:
        ValueError: there are no images, or the function's result is not (B, D).
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be (N, 3, H, W) and not empty, not {list(images.shape)}")
    result = torch.empty(0)
    for start in range(0, len(images), batch_size):
        batch = to_model(images[start : start + batch_size]).contiguous(memory_format=torch.channels_last)
        vectors = function(batch)
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise ValueError(f"features of {len(batch)} images must be (B, D), not {list(vectors.shape)}")
        if start == 0:
            result = torch.empty(len(images), vectors.shape[1], dtype=dtype, device=device or images.device)
        result[start : start + len(batch)] = vectors
        if tick is not None:
            tick(start + len(batch), len(images))
    return result


def extract_sharded(
    function: FeatureFunction,
    images: Tensor,
    batch_size: int = 256,
    tick: Tick | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As `extract`, each process its shard of the images; all get the whole result.

    Args:
        function: as there.
        images: as there, the same in every process.
        batch_size: as there.
        tick: called with the progress of this process's shard.
        device: where the images are taken to, and the result; where they are when None.
        dtype: of the result.
    """
    n = len(images)
    # Fewer images than processes: each process extracts them all
    is_whole = n < distributed.world_size()
    local = images if is_whole else images[distributed.shard(n)]
    features = extract(function, local.to(device or images.device), batch_size, tick, dtype=dtype)
    return features if is_whole else distributed.all_gather(features, n)
