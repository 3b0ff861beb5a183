"""Digits as signed distance fields, and numbers set from them.

A field stores how far each point lies inside the digit's outline. Unlike a picture of the digit it can be
rotated, stretched, emboldened or outlined at any size by arithmetic on one sampled value a pixel.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl.data.synthetic.rng import BatchRNG

# How often each font is drawn. Every matplotlib release brings these; "" is the font of Pillow, the nearest
# to what is nailed to houses. Dotted zeros (DejaVu Sans Mono) are left out: blurred, they read as eights.
FONTS = {
    "": 6.0,
    "DejaVuSans": 2.0,
    "DejaVuSans-Bold": 2.5,
    "DejaVuSans-BoldOblique": 0.5,
    "DejaVuSerif": 0.7,
    "DejaVuSerif-Bold": 0.8,
    "STIXGeneral": 1.0,
    "STIXGeneralBol": 1.2,
    "STIXGeneralBolIta": 0.4,
    "cmb10": 0.6,
    "cmr10": 0.5,
    "cmss10": 1.5,
    "cmtt10": 0.6,
}
SLOTS = 5  # digits of a number that can reach into the picture: the center and two on either side
CENTER = SLOTS // 2
LENGTHS = (0.14, 0.40, 0.32, 0.14)  # of numbers with 1, 2, 3 and 4 digits
CELL = 80  # pixels on a side of one digit's field
HEIGHT = 48  # pixels of the digit in it
DETAIL = 2  # the outline is rendered this many times finer


@dataclass(frozen=True)
class Atlas:
    """All digits of all fonts.

    Attributes:
        distance: float32 (fonts * CELL, 10 * CELL), inside the outline positive, in heights of the digit.
        widths: float32 (fonts, 10), in heights of the digit.
    """

    distance: Tensor
    widths: Tensor


@functools.cache
def atlas() -> Atlas:
    """The fields of FONTS, rendered once a process (about a second)."""
    fonts = [_font(name) for name in FONTS]
    rows = [torch.cat([_field(font, digit) for digit in range(10)], dim=1) for font in fonts]
    widths = [[_width(font, digit) for digit in range(10)] for font in fonts]
    return Atlas(torch.cat(rows), torch.tensor(widths))


def _font(name: str) -> ImageFont.FreeTypeFont:
    """The font at the size that makes its digits HEIGHT * DETAIL pixels high."""
    height_at_1000 = _load(name, 1000).getbbox("1", anchor="ls")[1]
    return _load(name, -1000 * HEIGHT * DETAIL / height_at_1000)


def _load(name: str, size: float) -> ImageFont.FreeTypeFont:
    if name:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        return ImageFont.truetype(str(path), size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which renders the synthetic digits")
    return font


def _width(font: ImageFont.FreeTypeFont, digit: int) -> float:
    left, _, right, _ = font.getbbox(str(digit), anchor="ls")
    return (right - left) / (HEIGHT * DETAIL)


def _field(font: ImageFont.FreeTypeFont, digit: int) -> Tensor:
    """One digit's signed distance, in heights: (CELL, CELL)."""
    from scipy.ndimage import distance_transform_edt

    side = CELL * DETAIL
    left, _, right, _ = font.getbbox(str(digit), anchor="ls")
    picture = Image.new("L", (side, side))
    baseline = ((side - left - right) / 2, (CELL + HEIGHT) / 2 * DETAIL)
    ImageDraw.Draw(picture).text(baseline, str(digit), fill=255, font=font, anchor="ls")
    inside = np.asarray(picture) >= 128
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    field = torch.from_numpy(distance).float() / (HEIGHT * DETAIL)
    return F.avg_pool2d(field[None], DETAIL)[0]


@dataclass(frozen=True)
class Numbers:
    """House numbers, one per row; lengths in heights of a digit, zero at the middle of the center digit.

    Attributes:
        fonts: int64 (N,).
        digits: int64 (N, SLOTS).
        present: bool (N, SLOTS), false where the number has ended.
        centers: float32 (N, SLOTS), where each digit's middle stands.
        widths: float32 (N, SLOTS).
    """

    fonts: Tensor
    digits: Tensor
    present: Tensor
    centers: Tensor
    widths: Tensor

    def ends(self) -> tuple[Tensor, Tensor]:
        """The left and right end of the ink, each (N,)."""
        left = torch.where(self.present, self.centers - self.widths / 2, torch.inf).amin(1)
        right = torch.where(self.present, self.centers + self.widths / 2, -torch.inf).amax(1)
        return left, right


def draw_numbers(rng: BatchRNG) -> Numbers:
    """Numbers of random length with every digit equally likely; the center may be any of their digits."""
    fonts = rng.choice(tuple(FONTS.values()))
    digits = rng.choice((1.0,) * 10, SLOTS)
    length = 1 + rng.choice(LENGTHS)
    first = -(length * rng.uniform(0, 1)).floor()  # slot of the first digit, counted from the center
    slot = torch.arange(SLOTS) - CENTER
    present = (slot >= first[:, None]) & (slot < (first + length)[:, None])
    widths = atlas().widths[fonts[:, None], digits]
    gap = rng.uniform(0.06, 0.24, 1)
    steps = (widths[:, 1:] + widths[:, :-1]) / 2 + gap
    centers = F.pad(steps.cumsum(1), (1, 0))
    return Numbers(fonts, digits, present, centers - centers[:, CENTER : CENTER + 1], widths)


def look_up(numbers: Numbers, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """What is at the given points of each number's plane.

    A point belongs to the digit on its side of the middle of the gap, so one sample a point serves any
    number of digits.

    Args:
        numbers: N of them.
        across: (N, H, W), along the line, in heights from the middle of the center digit.
        down: (N, H, W), in heights from the middle of the line.

    Returns:
        Signed distance in heights, positive inside a digit, and the digit's value, int64; each (N, H, W).
    """
    right, left = numbers.centers + numbers.widths / 2, numbers.centers - numbers.widths / 2
    borders = (right[:, :-1] + left[:, 1:]) / 2
    slot = (across[:, None] > borders[:, :, None, None]).sum(1)
    digit, center = _at(numbers.digits, slot), _at(numbers.centers, slot)
    reach = (CELL / 2 - 1) / HEIGHT
    near_across, near_down = (across - center).clamp(-reach, reach), down.clamp(-reach, reach)
    distance = _sample(
        digit * CELL + CELL / 2 + near_across * HEIGHT,
        numbers.fonts[:, None, None] * CELL + CELL / 2 + near_down * HEIGHT,
    )
    beyond = (across - center - near_across).abs() + (down - near_down).abs()
    return torch.where(_at(numbers.present, slot), distance - beyond, -1.0), digit


def _at(values: Tensor, slot: Tensor) -> Tensor:
    """Each point's own entry: values (N, SLOTS), slot (N, H, W) -> (N, H, W)."""
    return values.gather(1, slot.flatten(1)).view_as(slot)


def _sample(column: Tensor, row: Tensor) -> Tensor:
    """Read the atlas between its pixels, whose centers lie at halves; column and row (N, H, W)."""
    field = atlas().distance
    grid = torch.stack([2 * column / field.shape[1] - 1, 2 * row / field.shape[0] - 1], dim=-1)
    flat = grid.reshape(1, -1, column.shape[-1], 2)  # one picture with all rows of all images
    return F.grid_sample(field[None, None], flat, align_corners=False).view_as(column)
