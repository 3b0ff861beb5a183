"""What a house number is painted on and with: walls, signs, inks, shadows and the light on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genssl.data.synthetic.glyphs import Numbers, look_up
from genssl.data.synthetic.rng import BatchRNG

Plane = tuple[Tensor, Tensor]  # (across, down) of each pixel, (N, H, W), in heights of a digit
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
