"""Draw images from a generative method."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genssl import figures
from genssl.data.batches import chunks
from genssl.errors import UserError
from genssl.eval.outcome import Outcome
from genssl.models.method import Method
from genssl.pixels import to_bytes
from genssl.runtime import generators

Tick = Callable[[int, int], None]  # images done, images in all


@torch.inference_mode()
def draw_samples(
    method: Method, n: int, seed: int, batch_size: int, device: torch.device, tick: Tick, **options: Any
) -> Tensor:
    """Sample `n` images, uint8 (n, 3, H, W) on the CPU. Image i depends on (seed, i) alone.

    Raises:
        UserError: the method does not generate, or cannot with these options.
    """
    sample = getattr(method, "sample", None)
    if sample is None:
        raise UserError(f"a {method.config.method} does not generate images; sample a vae")
    if n < 1:
        raise UserError(f"-n must be at least 1, not {n}")
    method.to(device)
    images = []
    for rows in chunks(n, batch_size):
        noise = generators(seed, "sample", range(rows.start, rows.stop))
        try:
            images.append(to_bytes(sample(len(noise), noise, **options)).cpu())
        except (ValueError, TypeError) as error:
            raise UserError(f"cannot sample this {method.config.method}: {error}") from error
        tick(rows.stop, n)
    return torch.cat(images)


def sample(
    method: Method, n: int, *, seed: int, batch_size: int, device: torch.device, tick: Tick, prior: str
) -> tuple[Outcome, Tensor]:
    """`n` samples as a grid, with how they were drawn; the samples themselves, uint8 (n, 3, H, W)."""
    start = time.perf_counter()
    options = {} if prior == "normal" else {"prior": prior}
    images = draw_samples(method, n, seed, batch_size, device, tick, **options)
    seconds = time.perf_counter() - start
    values = {"images": n, "prior": prior, "seed": seed, "seconds": round(seconds, 3)}
    return Outcome(values, {"samples": figures.grid(images)}), images
