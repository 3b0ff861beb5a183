"""A method whose features are known, and splits whose classes it can partly tell."""

from dataclasses import replace

import torch
from torch import Tensor

from genssl.config import VAEConfig
from genssl.data.split import Split
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.runtime import generator

SIZE = 16
CLASSES = ("cat", "dog", "ship")


class Projection(Method):
    """Features are fixed random projections of an image, far from the origin."""

    def __init__(self, dimensions: int = 8, factor: float = 1.0) -> None:
        super().__init__()
        size = 3 * SIZE**2
        self.matrix = torch.randn(size, dimensions, generator=generator(0, "test")) / size**0.5
        self.factor = factor
        self.config = VAEConfig(image_size=SIZE, width=4, z_dim=5)
        self.batches: list[int] = []

    def features(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.factor * (images.flatten(1).matmul(self.matrix) + 0.3)


def split(part: str, n: int, classes: tuple[str, ...] = CLASSES) -> Split:
    """Noise around a picture a class."""
    draw = generator(0, "test", len(part))
    centers = torch.rand(len(classes), 3, SIZE, SIZE, generator=generator(0, "test", 99))
    labels = torch.randint(len(classes), (n,), generator=draw)
    noise = torch.rand(n, 3, SIZE, SIZE, generator=draw)
    images = (256 * (0.4 * centers[labels] + 0.6 * noise)).to(torch.uint8)
    return Split(images, labels, classes, "blobs", part, "digest")


def unlabeled(data: Split) -> Split:
    return replace(data, labels=None, classes=())


def reference(method: Projection, data: Split) -> Tensor:
    """The features by another way: all at once, in double precision."""
    x = (data.images.double() + 0.5) / 128 - 1
    return method.factor * (x.flatten(1).matmul(method.matrix.double()) + 0.3)


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def as_pixels(data: Split) -> Tensor:
    return to_model(data.images).flatten(1).double()
