"""The two converters between bytes at rest and the range that models see.

Images are uint8 in 0..255 at rest and float inside models, x = (u + 0.5) / 128 - 1: a bin of x is 1/128
wide, its center is x, and the 256 bins tile [-1, 1] without a gap.
"""

import math

import torch
from torch import Tensor

BIN_WIDTH = 1 / 128
HALF = 0.5


def to_model(images: Tensor, noise: Tensor | float = HALF) -> Tensor:
    """Map uint8 images to float32 in [-1, 1].

    Args:
        images: uint8, any shape.
        noise: where in its bin a pixel lands, in [0, 1). The default is the center; uniform noise of the
            shape of `images` dequantises, which densities need (Theis et al. 2016, section 3.1).
    """
    return (images.float() + noise) * BIN_WIDTH - 1


def to_bytes(x: Tensor) -> Tensor:
    """Map model-range images back to uint8: floor((x + 1) 128), clamped to 0..255."""
    return ((x.float() + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """Bits per dimension of an 8-bit image from the negative log density (nats) of its dequantised x.

    The density of x in [-1, 1] is 128 times that of a byte's unit bin in each dimension, hence the 7 bits:
    NLL / (D ln 2) + 7.
    """
    return nats / (dimensions * math.log(2)) + 7
