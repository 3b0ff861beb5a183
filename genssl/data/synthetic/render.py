"""The synthetic data set: house numbers rendered on the spot, in the manner of SVHN, with masks."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl import runtime
from genssl.data.split import Split
from genssl.data.synthetic.glyphs import CENTER, Numbers, draw_numbers, look_up
from genssl.data.synthetic.rng import BatchRNG
from genssl.errors import UserError
from genssl.files import tensor_digest

TRAIN_IMAGES = 20_000
TEST_IMAGES = 4_000
CLASSES = tuple("0123456789")
CHUNK = 250  # images of one random stream: part of the data set's definition
SMALLEST = 16  # pixels on a side; digits cannot be read below
Plane = tuple[Tensor, Tensor]  # (across, down) of each pixel, (N, H, W), in heights of a digit


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

    Examples:
        >>> split = make("test", count=4)
        >>> split.images.shape, split.labels.shape, split.masks.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4]), torch.Size([4, 32, 32]))
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


# What a number is painted on and with: walls, signs, inks, shadows and the light on them.
# Paints as (red, green, blue) relative to their brightness, and how often they are seen.
PAINTS = {
    "gray": ((1.00, 1.00, 1.00), 4.0),
    "cool gray": ((0.94, 1.00, 1.08), 6.0),
    "slate": ((0.82, 0.98, 1.22), 3.0),
    "blue": ((0.66, 0.82, 1.55), 2.2),
    "violet": ((0.95, 0.88, 1.35), 1.0),
    "beige": ((1.10, 1.00, 0.86), 2.2),
    "brown": ((1.28, 0.96, 0.72), 1.2),
    "red": ((1.90, 0.72, 0.66), 0.4),
    "green": ((0.80, 1.10, 0.82), 0.5),
}


def draw_scene(numbers: Numbers, plane: Plane, pixel: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
    """Paint each number on its ground.

    Args:
        numbers: N of them.
        plane: where on the number's plane each pixel lies.
        pixel: (N, 1, 1), the side of a pixel in heights of a digit.
        rng: the random numbers.

    Returns:
        Scenes in [0, 1], float32 (N, 3, H, W); and masks, uint8 (N, H, W), 0 on the ground and 1 + digit
        where a digit covers at least half of the pixel.
    """
    ground, ink = _brightnesses(rng)
    distance, digit = look_up(numbers, *plane)
    distance = distance + rng.uniform(0, 0.035, 1, 1)  # the weight of the stroke
    body = _coverage(distance, pixel)
    scene = _ground(numbers, plane, pixel, ground, rng)
    scene = _shadow(scene, numbers, plane, pixel, rng)
    scene = _outline(scene, distance, pixel, rng)
    scene = _mix(scene, _ink(plane, ink, rng), body)
    masks = torch.where(body >= 0.5, 1 + digit, 0).to(torch.uint8)
    return (scene * _light(plane, rng) * _cast(rng)).clamp(0, 1), masks


def _coverage(distance: Tensor, pixel: Tensor) -> Tensor:
    """The part of each pixel inside an edge at this signed distance, both in the same unit."""
    return (0.5 + distance / pixel).clamp(0, 1)


def _mix(under: Tensor, over: Tensor, coverage: Tensor) -> Tensor:
    """Lay a color over another: (N, 3, H, W) or (N, 3, 1, 1), coverage (N, H, W)."""
    return torch.lerp(under, over, coverage[:, None])


def _brightnesses(rng: BatchRNG) -> tuple[Tensor, Tensor]:
    """Brightness of the ground and of the ink, each (N,) in [0, 1]; either may be the lighter."""
    difference = rng.lognormal(0.355, 0.35).clamp(0.20, 0.74)
    difference = torch.where(rng.chance(0.5), difference, -difference)
    middle = rng.normal(0.46, 0.16)
    ground, ink = middle - 0.4 * difference, middle + 0.6 * difference
    low, high = torch.minimum(ground, ink), torch.maximum(ground, ink)
    shift = F.relu(0.13 - low) - F.relu(high - 0.89)
    return ground + shift, ink + shift


def _paint(brightness: Tensor, rng: BatchRNG, saturation: float = 1.0) -> Tensor:
    """A color of PAINTS, the paler the lighter, at each brightness (N,): (N, 3, 1, 1)."""
    tints = torch.tensor([tint for tint, _ in PAINTS.values()])
    tint = tints[rng.choice([often for _, often in PAINTS.values()])]
    paleness = (1.6 - 1.6 * brightness).clamp(min=0.25)
    tint = tint ** (saturation * rng.uniform(0.2, 1.3, 1) * paleness[:, None])
    return (brightness[:, None] * tint / tint.mean(1, keepdim=True))[:, :, None, None]


def _ground(numbers: Numbers, plane: Plane, pixel: Tensor, brightness: Tensor, rng: BatchRNG) -> Tensor:
    """A rough sign around the number, on a wall that may be of the same paint: (N, 3, H, W)."""
    across, down = plane
    left, right = numbers.ends()
    margin, margin_down = rng.uniform(0.06, 0.35, 1, 1), rng.uniform(0.06, 0.30, 1, 1)
    middle, half = ((right + left) / 2)[:, None, None], ((right - left) / 2)[:, None, None]
    inside = torch.minimum(half + margin - (across - middle).abs(), 0.5 + margin_down - down.abs())
    sign, wall = _paint(brightness, rng), _paint((brightness + rng.normal(0, 0.2)).clamp(0.05, 0.95), rng)
    has_sign = rng.chance(0.5, 1, 1)
    coverage = torch.where(has_sign, _coverage(inside, pixel), 1.0)
    roughness = rng.lognormal(0.010, 0.5, 1, 1, 1) * _clouds(across, 9, rng)
    return _mix(wall, sign, coverage) + roughness


def _ink(plane: Plane, brightness: Tensor, rng: BatchRNG) -> Tensor:
    """The digits' paint, lighter to one end: (N, 3, H, W)."""
    slope = rng.normal(0, 0.12, 1, 1)
    return _paint(brightness, rng, saturation=0.8) * (1 + slope * plane[1])[:, None]


def _shadow(scene: Tensor, numbers: Numbers, plane: Plane, pixel: Tensor, rng: BatchRNG) -> Tensor:
    """Darken some scenes where raised digits throw a shadow."""
    shift, fall = rng.normal(0, 0.05, 1, 1), rng.uniform(0.02, 0.09, 1, 1)
    distance, _ = look_up(numbers, plane[0] - shift, plane[1] - fall)
    strength = torch.where(rng.chance(0.25, 1, 1), rng.uniform(0.15, 0.5, 1, 1), 0.0)
    return scene * (1 - strength * _coverage(distance, 2 * pixel))[:, None]


def _outline(scene: Tensor, distance: Tensor, pixel: Tensor, rng: BatchRNG) -> Tensor:
    """Paint a rim around the digits of some scenes."""
    width = rng.uniform(0.03, 0.08, 1, 1)
    rim = _paint(rng.uniform(0.1, 0.9), rng)
    return _mix(scene, rim, _coverage(distance + width, pixel) * rng.chance(0.1, 1, 1))


def _light(plane: Plane, rng: BatchRNG) -> Tensor:
    """Uneven light, about one: (N, 1, H, W)."""
    across, down = plane
    slope_across, slope_down = rng.normal(0, 0.08, 1, 1), rng.normal(0, 0.08, 1, 1)
    patches = rng.lognormal(0.04, 0.5, 1, 1, 1) * _clouds(across, 4, rng)
    return (1 + slope_across * across + slope_down * down)[:, None] + patches


def _cast(rng: BatchRNG) -> Tensor:
    """The color of the light, on the cool side as in shade: (N, 3, 1, 1)."""
    red, blue = rng.normal(0.99, 0.045), rng.normal(1.03, 0.06)
    return torch.stack([red, torch.ones_like(red), blue], dim=1)[:, :, None, None]


def _clouds(like: Tensor, cells: int, rng: BatchRNG) -> Tensor:
    """Smooth noise of about `cells` bumps along a side: (N, 1, H, W) for `like` (N, H, W)."""
    return F.interpolate(rng.normal(0, 1, 1, cells, cells), size=like.shape[1:], mode="bicubic")


# A cheap camera: color fringes, blur, sharpening, few pixels, noise and exposure, all as batched algebra.
# Lens, pixel grid and enlargement are linear and act on rows and columns alike, so each is one small matrix
# per image and direction; the noise falls between them, at the camera's resolution, and is enlarged too.
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
