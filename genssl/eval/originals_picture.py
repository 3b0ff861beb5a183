"""A picture of samples beside the training images that they are nearest to."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl import figures
from genssl.metrics.originals import Originals

ROWS = 8  # in each of the two blocks
SIDE = 72  # pixels of a shown image
BORDER = 3
GAP = 8
CAPTION = 17
HEAD = 44
BETWEEN = 40  # the blocks
CELL, LINE = SIDE + 2 * BORDER + GAP, SIDE + 2 * BORDER + CAPTION + GAP
NOT_AUTHENTIC, AUTHENTIC, PLAIN = "#c8102e", "#3a7d44", "#9a9a9a"


def draw_originals(samples: Tensor, train: Tensor, originals: Originals) -> Image.Image:
    """Two blocks of rows: the samples closest to training images, and the first ones, as they come.

    A row is a sample, its nearest training image with their distance, and that one's own nearest neighbour
    with theirs. Below the sample is the ratio of the two: a copy has 0; up to 1 it is not authentic, framed
    red.

    Args:
        samples: uint8 (M, 3, H, W).
        train: uint8 (N, 3, H, W).
        originals: of the samples.
    """
    closest = originals.closeness.argsort()[:ROWS]
    rows = min(ROWS, len(samples))
    width = 2 * (3 * CELL + GAP) + BETWEEN
    sheet = Image.new("RGB", (width, HEAD + rows * LINE), "white")
    titles = ("closest to training images", "the first samples")
    chosen = (closest.tolist(), list(range(rows)))
    for block, (title, places) in enumerate(zip(titles, chosen, strict=True)):
        left = GAP + block * (3 * CELL + GAP + BETWEEN)
        _draw_heads(sheet, title, left)
        for row, place in enumerate(places):
            _draw_row(sheet, samples[place], train, _one(originals, place), (left, HEAD + row * LINE))
    return sheet


def _one(originals: Originals, place: int) -> tuple[int, float, int, float]:
    columns = (originals.index, originals.distance, originals.neighbour, originals.spacing)
    index, distance, neighbour, spacing = (column[place].item() for column in columns)
    return int(index), float(distance), int(neighbour), float(spacing)


def _draw_heads(sheet: Image.Image, title: str, left: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 5), title, fill="black", font=ImageFont.load_default(14))
    for column, head in enumerate(("sample", "nearest", "its nearest")):
        draw.text((left + column * CELL, 25), head, fill="black", font=ImageFont.load_default(12))


def _draw_row(
    sheet: Image.Image,
    sample: Tensor,
    train: Tensor,
    found: tuple[int, float, int, float],
    corner: tuple[int, int],
) -> None:
    index, distance, neighbour, spacing = found
    authentic = distance > spacing
    captions = (
        f"ratio {distance / spacing if distance else 0:.2f}" if spacing else "",
        f"at {distance:.3g}",
        f"at {spacing:.3g}",
    )
    colours = (AUTHENTIC if authentic else NOT_AUTHENTIC, PLAIN, PLAIN)
    images = (sample, train[index], train[neighbour])
    _draw_cells(sheet, images, captions, colours, corner)


def _draw_cells(
    sheet: Image.Image,
    images: Sequence[Tensor],
    captions: Sequence[str],
    colours: Sequence[str],
    corner: tuple[int, int],
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = corner[1]
    for column, (image, caption, colour) in enumerate(zip(images, captions, colours, strict=True)):
        left = corner[0] + column * CELL
        side = SIDE + 2 * BORDER
        draw.rectangle((left, top, left + side - 1, top + side - 1), fill=colour)
        picture = figures.one(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + BORDER, top + BORDER))
        draw.text((left, top + side + 1), caption, fill="black", font=font)
