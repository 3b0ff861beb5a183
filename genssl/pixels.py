"""The two converters between bytes at rest and the range that models see.

Images are uint8 in 0..255 at rest and float inside models, x = (u + 0.5) / 128 - 1: a bin of x is 1/128
wide, its center is x, and the 256 bins tile [-1, 1] without a gap.
"""

import math

import torch
from torch import Tensor

BIN_WIDTH = 1 / 128
HALF = 0.5
# 65,536 times the weight of red, green and blue in gray, as in Pillow (ITU-R BT.601)
LUMA = (19595, 38470, 7471)
IGNORE = 255  # in a mask: a pixel that counts for nothing, as in Pascal VOC
AT_ONCE = 2**24  # bytes that are compared at a time


def to_model(images: Tensor, noise: Tensor | float = HALF) -> Tensor:
    """Map uint8 images to float32 in [-1, 1].

    Args:
        images: uint8, any shape.
        noise: where in its bin a pixel lands, in [0, 1). The default is the center; uniform noise of the
            shape of `images` dequantises, which densities need (Theis et al. 2016, section 3.1).

    Examples:
        >>> to_model(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-0.99609375, 0.99609375]
    """
    return (images.float() + noise) * BIN_WIDTH - 1


def to_bytes(x: Tensor) -> Tensor:
    """Map model-range images back to uint8: floor((x + 1) 128), clamped to 0..255.

    Examples:
        >>> values = torch.arange(256).to(torch.uint8)
        >>> torch.equal(to_bytes(to_model(values)), values)
        True
    """
    return ((x.float() + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images (N, C, H, W) with 1 or 3 channels: gray is repeated, color (uint8) becomes Pillow's mode L.

    The weights of the latter sum to one: of three equal channels one remains, bit for bit.

    Examples:
        >>> color = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> to_channels(color, 1).item(), to_channels(torch.zeros(1, 1, 2, 2), 3).shape
        (76, torch.Size([1, 3, 2, 2]))
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(LUMA, dtype=torch.int32, device=images.device).view(1, 3, 1, 1)
    luma = (images.int() * weights).sum(1, keepdim=True, dtype=torch.int32) + 2**15
    return (luma >> 16).to(torch.uint8)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images (N, C, H, W) in the model's range with 1 or 3 channels, converted in whole bytes if need be.

    Examples:
        >>> with_channels(torch.zeros(2, 3, 8, 8), channels=1).shape
        torch.Size([2, 1, 8, 8])
    """
    if images.shape[1] == channels:
        return images
    return to_model(to_channels(to_bytes(images), channels))


def is_gray(images: Tensor) -> bool:
    """Whether the channels of all images (N, C, H, W) are equal.

    Examples:
        >>> is_gray(torch.ones(2, 3, 4, 4)), is_gray(torch.rand(2, 3, 4, 4))
        (True, False)
    """
    parts = images.split(max(1, AT_ONCE // images[:1].numel()))
    return all(bool((part == part[:, :1]).all()) for part in parts)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """Bits per dimension of an 8-bit image from the negative log density (nats) of its dequantised x.

    The density of x in [-1, 1] is 128 times that of a byte's unit bin in each dimension, hence the 7 bits:
    NLL / (D ln 2) + 7.

    Examples:
        >>> round(bits_per_dim(3072 * math.log(2), 3072), 6)  # uniform over [-1, 1]: all bytes alike
        8.0
    """
    return nats / (dimensions * math.log(2)) + 7
