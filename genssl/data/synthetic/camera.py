"""A cheap camera: color fringes, blur, sharpening, few pixels, noise and exposure, all as batched algebra.

Lens, pixel grid and enlargement are linear and act on rows and columns alike, so each is one small matrix
per image and direction; the noise falls between them, at the camera's resolution, and is enlarged too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.synthetic.rng import BatchRNG

REFERENCE = 32  # lengths below are in pixels of a picture of this size
BLOCK = 8  # pixels on a side of what is compressed at a time
# Rows: the brightness and the two color differences that JPEG stores, from red, green and blue.
BRIGHTNESS_AND_COLOR = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


def photograph(scene: Tensor, rng: BatchRNG) -> Tensor:
    """Take a picture of each scene.

    Args:
        scene: float32 (N, 3, S, S) in [0, 1].
        rng: the random numbers.

    Returns:
        uint8 (N, 3, S, S).
    """
    size = scene.shape[-1]
    resolution = (rng.lognormal(20, 0.30).clamp(15, REFERENCE) * size / REFERENCE).floor()
    blur = rng.lognormal(0.82, 0.40).clamp(max=1.5)
    sharpening = rng.uniform(-0.4, 0.5).clamp(min=0)
    columns, rows = (_lens(size, resolution, blur, sharpening, rng) for _ in range(2))
    exposed = rows @ scene @ columns.mT
    enlarge = _enlargement(size, resolution)
    picture = enlarge @ _compress(exposed + _noise(size, rng), rng) @ enlarge.mT
    return (_expose(picture, rng) * 256).floor().clamp(0, 255).to(torch.uint8)


def _lens(size: int, resolution: Tensor, blur: Tensor, sharpening: Tensor, rng: BatchRNG) -> Tensor:
    """Scene to sensor along one direction: (N, 3, size, size); the first `resolution` rows of each count.

    Red and blue are focused a little to either side of green. Sharpening subtracts a wider blur, as cameras
    do, which leaves the bright rims around dark digits.
    """
    step = size / resolution
    fringe = rng.normal(0, 0.18) * size / REFERENCE
    shift = torch.stack([fringe, torch.zeros_like(fringe), -fringe], dim=1)  # (N, 3)
    sensor = (torch.arange(size) + 0.5)[None, None] * step[:, None, None] + shift[:, :, None]
    offset = (sensor[..., None] - (torch.arange(size) + 0.5)) * REFERENCE / size  # (N, 3, sensor, scene)
    stretch = rng.lognormal(1, 0.15)  # a little shaken: the two directions differ
    width = ((blur * stretch).square() + (0.35 * step * REFERENCE / size).square()).sqrt()[
        :, None, None, None
    ]
    narrow, wide = _gaussian(offset, width), _gaussian(offset, 1.8 * width)
    amount = sharpening[:, None, None, None]
    return (1 + amount) * narrow - amount * wide


def _gaussian(offset: Tensor, width: Tensor) -> Tensor:
    """Weights over the last axis that sum to one, also where the kernel leaves the picture."""
    return (-0.5 * (offset / width).square()).softmax(-1)


def _enlargement(size: int, resolution: Tensor) -> Tensor:
    """Sensor to picture along one direction by cubic interpolation (Keys 1981): (N, 1, size, size)."""
    pixel, sensor = torch.arange(size) + 0.5, torch.arange(size)
    count = resolution[:, None, None]
    position = (pixel[None, :, None] * count / size - 0.5).clamp(min=0).minimum(count - 1)
    x = (position - sensor).abs()
    near = (1.5 * x - 2.5) * x.square() + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (sensor < count)
    return (weights / weights.sum(-1, keepdim=True))[:, None]


def _noise(size: int, rng: BatchRNG) -> Tensor:
    """Sensor noise, most of it shared by the channels: (N, 3, size, size)."""
    strength = rng.lognormal(0.005, 0.7, 1, 1, 1)
    gray, color = rng.normal(0, 1, 1, size, size), rng.normal(0, 0.5, 3, size, size)
    return strength * (gray + color)


def _compress(picture: Tensor, rng: BatchRNG) -> Tensor:
    """Lose what JPEG loses, in blocks: fine detail first, and of color more than of brightness.

    Args:
        picture: (N, 3, S, S).
        rng: the random numbers.
    """
    size = picture.shape[-1]
    fill = -size % BLOCK
    split = torch.tensor(BRIGHTNESS_AND_COLOR)
    whole = torch.einsum("ij,njhw->nihw", split, F.pad(picture, (0, fill, 0, fill), mode="replicate"))
    count, side = len(picture), whole.shape[-1]
    blocks = whole.reshape(count, 3, side // BLOCK, BLOCK, side // BLOCK, BLOCK).transpose(3, 4)
    coarseness = rng.lognormal(0.010, 0.5, 1) * torch.tensor([1.0, 1.5, 1.5])  # (N, 3)
    rounded = _round_frequencies(blocks, coarseness[:, :, None, None, None, None])
    whole = rounded.transpose(3, 4).reshape(count, 3, side, side)
    return torch.einsum("ij,njhw->nihw", split.inverse(), whole)[..., :size, :size]


def _round_frequencies(blocks: Tensor, coarseness: Tensor) -> Tensor:
    """Round the cosine coefficients of (..., BLOCK, BLOCK) to steps that grow with the frequency."""
    cosines, frequency = _cosines(), torch.arange(BLOCK)
    step = coarseness * (1 + frequency[:, None] + frequency)
    return cosines.T @ ((cosines @ blocks @ cosines.T / step).round() * step) @ cosines


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform, frequencies down: (BLOCK, BLOCK)."""
    frequency, position = torch.arange(BLOCK)[:, None], torch.arange(BLOCK) + 0.5
    scale = torch.where(frequency == 0, (1 / BLOCK) ** 0.5, (2 / BLOCK) ** 0.5)
    return scale * (torch.pi * frequency * position / BLOCK).cos()


def _expose(picture: Tensor, rng: BatchRNG) -> Tensor:
    """Change contrast about the middle, then brightness."""
    contrast, brightness = rng.uniform(0.8, 1.1, 1, 1, 1), rng.normal(0, 0.04, 1, 1, 1)
    return (picture - 0.5) * contrast + 0.5 + brightness
