"""Titled grids of images beside each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MOST_COLUMNS = 4
SIZE, LINE = 16, 21  # of the titles' letters and lines, pixels
MARGIN = 10


@dataclass(frozen=True)
class Panel:
    """A grid and what is written over it, a line each."""

    lines: tuple[str, ...]
    grid: Image.Image

    @property
    def width(self) -> int:
        """Of what is wider, in pixels."""
        return math.ceil(max([self.grid.width, *(_font().getlength(line) for line in self.lines)]))


def side_by_side(panels: Sequence[Panel]) -> Image.Image:
    """The panels in a row, or in rows of four; none is scaled, so that a pixel stays a pixel."""
    columns = min(len(panels), MOST_COLUMNS)
    head = LINE * max(len(panel.lines) for panel in panels)
    width = max(panel.width for panel in panels) + MARGIN
    height = head + max(panel.grid.height for panel in panels) + MARGIN
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for place, panel in enumerate(panels):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        for number, line in enumerate(panel.lines):
            draw.text((left, top + number * LINE), line, fill="black", font=_font())
        sheet.paste(panel.grid, (left, top + head))
    return sheet


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZE)
