"""Image grids and curves: functions that return a PIL image or a matplotlib Figure and never save it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl.pixels import to_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PADDING = 2  # pixels between images
WHITE = 255


def grid(images: Tensor, columns: int | None = None, scale: int = 1) -> Image.Image:
    """Images side by side on white, row by row.

    Args:
        images: (N, 3, H, W), uint8, or float in the model's range.
        columns: the square root of N, rounded up, when None.
        scale: whole factor of magnification.
    """
    if images.is_floating_point():
        images = to_bytes(images)
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    blank = images.new_full((rows * columns - count, channels, height, width), WHITE)
    cells = torch.cat([images, blank]).cpu()
    cells = torch.nn.functional.pad(cells, (PADDING, 0, PADDING, 0), value=WHITE)
    sheet = cells.view(rows, columns, channels, height + PADDING, width + PADDING)
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(rows * (height + PADDING), columns * (width + PADDING), -1)
    sheet = torch.nn.functional.pad(sheet, (0, 0, 0, PADDING, 0, PADDING), value=WHITE)
    picture = Image.fromarray(np.ascontiguousarray(sheet.expand(-1, -1, 3).numpy()))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def preview(kind: str, images: Tensor) -> Image.Image:
    """The grid of a kind of preview, (M, 3, H, W): reconstructions are pairs, which a row keeps together."""
    return grid(images, columns=8 if kind == "reconstructions" or len(images) > 16 else None)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], columns: int = 4) -> Image.Image:
    """Titled pictures of one size, row by row."""
    font = ImageFont.load_default(14)
    width = max(picture.width for _, picture in pictures) + 8
    height = max(picture.height for _, picture in pictures) + 26
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, picture) in enumerate(pictures):
        left, top = place % columns * width, place // columns * height
        draw.text((left + 6, top + 4), title, fill="black", font=font)
        sheet.paste(picture, (left + 4, top + 22))
    return sheet


def new_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure with a flat list of its axes; `width` and `height` of one panel in inches.

    Built without pyplot, which costs half a second and keeps global state.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, list(axes.flat)


def wall_clock(history: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Cumulative wall-clock time over epochs (figures 1 and 7 of the assignment)."""
    figure, (axis,) = new_figure(1, 1, 5.5, 3.5)
    seconds = [record["seconds"] for record in history]
    unit, name = (60.0, "minutes") if seconds and seconds[-1] > 300 else (1.0, "seconds")
    axis.plot([record["epoch"] for record in history], [s / unit for s in seconds], marker=".")
    axis.set(xlabel="epoch", ylabel=f"wall clock ({name})", title=title)
    return figure


def curves(history: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Every measured number over epochs, one panel a name; a test value joins its training value."""
    known = {"epoch", "step", "seconds", "learning_rate", "images_per_second"}
    names = list(dict.fromkeys(key for record in history for key in record if key not in known))
    panels = [name for name in names if not (name.startswith("test_") and name[5:] in names)]
    columns = min(3, max(1, len(panels)))
    figure, axes = new_figure(max(1, math.ceil(len(panels) / columns)), columns, 4.2, 3.0)
    for axis, name in zip(axes, panels, strict=False):
        _draw_series(axis, history, name, "train")
        if f"test_{name}" in names:
            _draw_series(axis, history, f"test_{name}", "test")
            axis.legend(frameon=False)
        axis.set(xlabel="epoch", title=name.replace("_", " "))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    return figure


def _draw_series(axis: "Axes", history: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    points = [(r["epoch"], r[name]) for r in history if r.get(name) is not None]
    axis.plot([x for x, _ in points], [y for _, y in points], marker=".", label=label)


def one(image: Tensor) -> Image.Image:
    """One uint8 image (3, H, W)."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
