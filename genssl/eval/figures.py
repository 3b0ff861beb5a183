"""Figures of classes: confusion matrices, and neighbors of test images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # classes up to which the cells bear their numbers
NAMED = 60  # classes up to which all are named, and each has its own half inch
SHORT = 2  # letters of a name that fit under a cell
DARK = 0.55  # share from which numbers are white
SIDE = 72  # pixels of a shown image
BORDER = 3
GAP = 10
CAPTION = 18
RIGHT, WRONG = "#3a7d44", "#c8102e"


def draw_confusion(matrix: Tensor, classes: Sequence[str], title: str) -> "Figure":
    """Shares of each true class, rows, by predicted class, columns, in percent. `matrix`: counts (C, C)."""
    matrix = matrix.cpu().double()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = max(4.5, 0.5 * min(len(classes), NAMED) + 1.8)
    figure, (axis,) = figures.new_figure(1, 1, side, side)
    axis.grid(visible=False)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, len(classes), math.ceil(len(classes) / NAMED))
    drawn = figures.drawn_names(tuple(classes[i] for i in ticks))
    axis.set_xticks(ticks, drawn.names, family=drawn.families)
    if max(map(len, drawn.names)) > SHORT:
        for label in axis.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(ticks, drawn.names, family=drawn.families)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    if len(classes) <= NUMBERED:
        for row, line in enumerate(shares.tolist()):
            for column, share in enumerate(line):
                color = "white" if share > DARK else "0.25"
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, size=8)
    return figure


def draw_neighbors(
    queries: Tensor,
    query_names: Sequence[str],
    neighbors: Tensor,
    names: Sequence[Sequence[str]],
    classes: Sequence[str] = (),
) -> Image.Image:
    """A row a query: the test image, then its nearest train images; framed red where the class is another.

    Args:
        queries: uint8 (Q, C, H, W).
        query_names: the class of each.
        neighbors: uint8 (Q, n, C, H, W), nearest first.
        names: the class of each.
        classes: all classes in their order; those that are named where there are none.
    """
    classes = classes or sorted({*query_names, *(name for row in names for name in row)})
    drawn = figures.drawn_names(tuple(classes))
    shown, font = dict(zip(classes, drawn.names, strict=True)), drawn.font(12)
    width, height = SIDE + 2 * BORDER + GAP, SIDE + 2 * BORDER + CAPTION + GAP // 2
    left = GAP
    size = (left + GAP + width * (1 + neighbors.shape[1]), CAPTION + GAP + height * len(queries))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((left, GAP // 2), "test image", fill="black", font=font)
    text = "nearest train images, nearest first (red: another class)"
    draw.text((left + width + GAP, GAP // 2), text, fill="black", font=font)
    for row, true in enumerate(query_names):
        top = CAPTION + GAP // 2 + row * height
        _draw_image(sheet, queries[row], shown[true], "black", (left, top), font)
        for column, name in enumerate(names[row]):
            color = RIGHT if name == true else WRONG
            position = (left + GAP + width * (1 + column), top)
            _draw_image(sheet, neighbors[row, column], shown[name], color, position, font)
    return sheet


def _draw_image(
    sheet: Image.Image,
    image: Tensor,
    caption: str,
    color: str,
    position: tuple[int, int],
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
) -> None:
    """One framed image and its caption."""
    left, top = position
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + SIDE + 2 * BORDER - 1, top + SIDE + 2 * BORDER - 1), fill=color)
    picture = figures.one(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    sheet.paste(picture, (left + BORDER, top + BORDER))
    draw.text((left, top + SIDE + 2 * BORDER + 1), _shortened(caption, font), fill=color, font=font)


def _shortened(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
    """As much of a caption as its image is wide."""
    while font.getlength(text) > SIDE + 2 * BORDER + GAP // 2:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def one_of_each(labels: Tensor, most: int) -> Tensor:
    """The first row of each class among labels (N,), for up to `most` classes: int64 rows."""
    first = [(labels == label).int().argmax() for label in labels.unique()[:most]]
    return torch.stack(first)
