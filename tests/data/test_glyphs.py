import math

import pytest
import torch
from PIL import Image, ImageDraw

from genssl.data.synthetic import glyphs
from genssl.data.synthetic.rng import BatchRNG


def numbers(count: int) -> glyphs.Numbers:
    return glyphs.draw_numbers(BatchRNG(count, torch.Generator().manual_seed(0)))


def test_choice_follows_the_weights() -> None:
    """Counts are binomial: within 5 sigma; a weight of nothing is never drawn."""
    n, weights = 20_000, (1.0, 0.0, 3.0, 4.0)
    counts = torch.bincount(BatchRNG(n, torch.Generator().manual_seed(0)).choice(weights), minlength=4)
    for count, weight in zip(counts.tolist(), weights, strict=True):
        p = weight / 8
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))


def test_every_digit_is_as_likely_in_every_place() -> None:
    """Counts are binomial(n, 1/10): within 5 sigma; at this n, a digit 11 % too frequent falls outside."""
    n = 20_000
    for place in numbers(n).digits.unbind(1):
        counts = torch.bincount(place, minlength=10)
        assert (counts - n / 10).abs().max() < 5 * math.sqrt(n * 0.1 * 0.9)


@pytest.mark.parametrize("row", range(len(glyphs.FONTS)))
def test_the_field_covers_what_pillow_draws(row: int) -> None:
    """The area inside the outline is the area of Pillow's rendering, within 5 % (hairlines are cut)."""
    font = glyphs._font(list(glyphs.FONTS)[row])
    cells = glyphs.atlas().distance.unflatten(0, (-1, glyphs.CELL))[row]
    for digit, cell in enumerate(cells.unflatten(1, (10, -1)).unbind(1)):
        picture = Image.new("L", (200, 200))
        ImageDraw.Draw(picture).text((60, 150), str(digit), fill=255, font=font, anchor="ls")
        drawn = sum(level * n for level, n in enumerate(picture.histogram())) / 255
        covered = (0.5 + cell * glyphs.HEIGHT).clamp(0, 1).sum() * glyphs.DETAIL**2
        assert covered == pytest.approx(drawn, rel=0.05)
        assert cell.flatten()[[0, -1]].max() < 0  # the corners are ground


def test_the_distance_has_slope_one_along_a_straight_edge() -> None:
    """Halfway up the stem of a one, the field rises by a height for every height walked towards it."""
    row = list(glyphs.FONTS).index("DejaVuSans-Bold")
    middle = glyphs.atlas().distance[row * glyphs.CELL + glyphs.CELL // 2, glyphs.CELL : 2 * glyphs.CELL]
    slopes = (middle.diff() * glyphs.HEIGHT)[middle[1:].abs() < 0.06]
    assert len(slopes) > 6
    assert slopes.abs().mean() == pytest.approx(1, abs=0.1)


def test_digits_stand_side_by_side() -> None:
    drawn = numbers(500)
    right, left = drawn.centers + drawn.widths / 2, drawn.centers - drawn.widths / 2
    assert (left[:, 1:] - right[:, :-1]).min() > 0.05
    assert drawn.centers[:, glyphs.CENTER].abs().max() == 0
    assert drawn.present[:, glyphs.CENTER].all()
    assert set(drawn.present.sum(1).tolist()) == {1, 2, 3, 4}


def test_look_up_finds_each_digit_in_its_place() -> None:
    """On the line through the middles, ink is only between a digit's left and right end, and is its value."""
    drawn = numbers(200)
    across = torch.linspace(-3, 3, 601).expand(200, 1, -1)
    distance, digit = glyphs.look_up(drawn, across, torch.full_like(across, 0.2))
    for place in range(glyphs.SLOTS):
        nearby = (across[:, 0] - drawn.centers[:, place, None]).abs() < drawn.widths[:, place, None] / 2
        ink = nearby & (distance[:, 0] > 0)
        assert torch.equal(ink.any(1), drawn.present[:, place])
        assert (digit[:, 0] == drawn.digits[:, place, None])[ink].all()
    left, right = drawn.ends()
    outside = (across[:, 0] < left[:, None] - 0.03) | (across[:, 0] > right[:, None] + 0.03)
    assert distance[:, 0][outside].max() < 0
