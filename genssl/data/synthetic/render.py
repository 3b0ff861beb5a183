"""The synthetic data set: house numbers rendered on the spot, in the manner of SVHN, with masks."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from genssl import runtime
from genssl.data.split import Split
from genssl.data.synthetic.camera import photograph
from genssl.data.synthetic.glyphs import CENTER, draw_numbers
from genssl.data.synthetic.paint import Plane, draw_scene
from genssl.data.synthetic.rng import BatchRNG
from genssl.errors import UserError
from genssl.files import tensor_digest

TRAIN_IMAGES = 20_000
TEST_IMAGES = 4_000
CLASSES = tuple("0123456789")
CHUNK = 250  # images of one random stream: part of the data set's definition
SMALLEST = 16  # pixels on a side; digits cannot be read below


def make(
    part: Literal["train", "test"],
    seed: int = 0,
    image_size: int = 32,
    count: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Render the data set; image i depends on (seed, part, i) and the size alone, never on `count`.

    Args:
        part: which of two disjoint random streams.
        seed: of the streams.
        image_size: pixels on a side.
        count: images to make; TRAIN_IMAGES or TEST_IMAGES when None.
        progress: called with (images done, images in all) after every chunk.

    Returns:
        images (N, 3, image_size, image_size), labels (N,), and masks (N, image_size, image_size) that are 0
        on the ground and 1 + digit on the pixels at least half covered by a digit, neighbors included.

    Raises:
        UserError: no images are asked for, or too small ones.
    """
    total = count if count is not None else {"train": TRAIN_IMAGES, "test": TEST_IMAGES}[part]
    if total < 1 or image_size < SMALLEST:
        raise UserError(
            f"cannot render {total} images of {image_size} pixels; ask for at least one of {SMALLEST} or more"
        )
    chunks = []
    for start in range(0, total, CHUNK):
        random = runtime.generator(seed, f"synthetic-{part}", start // CHUNK)
        chunks.append(_chunk(BatchRNG(CHUNK, random), image_size))
        if progress is not None:
            progress(min(start + CHUNK, total), total)
    images, labels, masks = (torch.cat(column)[:total] for column in zip(*chunks, strict=True))
    digest = tensor_digest({"images": images, "labels": labels, "masks": masks})
    return Split(images, labels, CLASSES, "synthetic", part, digest, masks)


def _chunk(rng: BatchRNG, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and masks of one stream."""
    numbers = draw_numbers(rng)
    height = rng.normal(0.74, 0.075, 1, 1)  # of a digit, in heights of the image
    plane = _plane(size, height, rng)
    scene, masks = draw_scene(numbers, plane, 1 / (size * height), rng)
    return photograph(scene, rng), numbers.digits[:, CENTER], masks


def _plane(size: int, height: Tensor, rng: BatchRNG) -> Plane:
    """Where each pixel lies on the plane of its number, (across, down) in heights of a digit.

    Args:
        size: pixels on a side.
        height: (N, 1, 1), of a digit in heights of the image.
        rng: the random numbers.
    """
    line = (torch.arange(size) + 0.5) / size - 0.5
    x = line - rng.normal(0, 0.02, 1, 1)
    y = line[:, None] - rng.normal(0, 0.03, 1, 1)
    angle, shear = rng.normal(0, 0.08, 1, 1), rng.normal(0, 0.10, 1, 1)
    stretch = rng.lognormal(0.63, 0.17, 1, 1)
    down = (y * angle.cos() - x * angle.sin()) / height
    across = (x * angle.cos() + y * angle.sin()) / height
    return (across + shear * down) / stretch, down
