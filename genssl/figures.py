"""Image grids and curves: functions that return a PIL image or a matplotlib Figure and never save it."""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genssl.pixels import to_bytes
from genssl.settings import BOOKKEEPING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PADDING = 2  # pixels between images
WHITE = 255
LATIN = 0x180  # the first letter that is none of Latin's common ones
CELL = 128  # pixels of a magnified image's side: 32 pixels are shown four times as large
LARGEST = 2400  # pixels of a magnified grid's side, at most
LEAST_WIDTH = 560  # pixels, so that a header has room above a few images
MARGIN = 6
TEXT_SIZE, LINE_HEIGHT = 18, 24  # pixels, of headers
TITLE_SIZE, TITLE_HEIGHT = 15, 22  # pixels, of columns' titles
GRID_TOP = "grid_top"  # in a picture's information: rows of pixels above its grid

# Units of the values in every history; those of a method's terms are its `units`
UNITS = {
    "output_std": "1: spread out, 0: collapsed",
    "rankme": "effective rank (dimensions)",
    "output_scale": "deviation of an output",
    "learning_rate": "learning rate",
    "bits_per_dim": "bits/dim",
    "probe_loss": "nats per image",
}
COLLAPSED_COLOR = "tab:red"
# Of held-out images, whose split the name does not say
HELD_OUT = {"knn_accuracy", "output_std", "rankme", "output_scale"}


@dataclass(frozen=True)
class DrawnNames:
    """Names of classes as a figure can show them.

    Attributes:
        names: those whose letters no font has are replaced by class and a number.
        families: fonts for matplotlib, in order of preference.
        file: a font for Pillow; None: its own will do.
    """

    names: tuple[str, ...]
    families: tuple[str, ...] = ("DejaVu Sans",)
    file: str | None = None

    def font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """The font for Pillow, in pixels."""
        return ImageFont.truetype(self.file, size) if self.file else ImageFont.load_default(size)


@functools.lru_cache(maxsize=8)
def drawn_names(classes: tuple[str, ...]) -> DrawnNames:
    """Look for an installed font that has all letters of the names; warn where there is none.

    The fonts of matplotlib and of Pillow have no Chinese, Japanese or Korean; Pillow's is Latin only.
    A space before an underscore keeps matplotlib from leaving the name out of a legend.
    """
    names = tuple(f" {name}" if name.startswith("_") else name for name in classes)
    letters = frozenset("".join(names))
    if all(ord(letter) < LATIN for letter in letters):
        return DrawnNames(names)
    from matplotlib import font_manager

    default = font_manager.findfont("DejaVu Sans")
    known = _letters_of(default)
    if letters <= known:
        return DrawnNames(names, file=default)
    for font in font_manager.fontManager.ttflist:
        if letters <= _letters_of(font.fname):
            return DrawnNames(names, ("DejaVu Sans", font.name), font.fname)
    names = tuple(name if known.issuperset(name) else f"class {i}" for i, name in enumerate(names))
    missing = next(name for name, drawn in zip(classes, names, strict=True) if drawn.strip() != name)
    warnings.warn(
        f"no installed font has the letters of {missing} and the other classes, so they are drawn as "
        "class 0, class 1 and so on; install one that has, such as Noto Sans CJK",
        stacklevel=2,
    )
    return DrawnNames(names, file=default)


@functools.lru_cache(maxsize=1024)
def _letters_of(file: str) -> frozenset[str]:
    """The letters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def grid(images: Tensor, columns: int | None = None, scale: int = 1) -> Image.Image:
    """Images side by side on white, row by row.

    Args:
        images: (N, C, H, W), uint8, or float in the model's range.
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


def magnification(images: Tensor, columns: int | None = None) -> int:
    """The whole factor at which a grid of images (N, C, H, W) is easy to see and not too large a file."""
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    native = max(columns * (width + PADDING), math.ceil(count / columns) * (height + PADDING)) + PADDING
    wanted = max(1, round(CELL / max(height, width)))
    return max(1, min(wanted, LARGEST // native))


def titled_grid(
    images: Tensor, header: str, columns: int | None = None, titles: Sequence[str] = ()
) -> Image.Image:
    """A magnified grid below a line that says what it shows, and below a title per column.

    Args:
        images: (N, C, H, W), uint8, or float in the model's range.
        header: method, data, epoch, number, sampler; wrapped at spaces where the grid is narrow.
        columns: as in `grid`.
        titles: of the first columns, repeated over the others; left out where they are wider than an image.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    sheet = grid(images, columns, magnification(images, columns))
    width = max(sheet.width, LEAST_WIDTH)
    lines = _wrapped(header, width - 2 * MARGIN)
    drawn = drawn_names(tuple(titles))
    font, cell = drawn.font(TITLE_SIZE), sheet.width / columns
    shown = [drawn.names[i % len(titles)] for i in range(columns)] if titles else []
    if any(font.getlength(title) > cell for title in shown):
        shown = []
    top = MARGIN + LINE_HEIGHT * len(lines) + (TITLE_HEIGHT if shown else 0)
    picture = Image.new("RGB", (width, top + sheet.height), "white")
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        position = (MARGIN, MARGIN + i * LINE_HEIGHT)
        draw.text(position, line, fill="black", font=ImageFont.load_default(TEXT_SIZE))
    for i, title in enumerate(shown):
        draw.text(((i + 0.5) * cell, top - TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm")
    picture.paste(sheet, (0, top))
    picture.info |= {"Description": header, GRID_TOP: str(top - (TITLE_HEIGHT if shown else 0))}
    return picture


def _wrapped(text: str, width: float) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces."""
    font = ImageFont.load_default(TEXT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def run_title(method: str, data: str, epoch: float | None = None) -> str:
    """Title of a run's picture: "vae on svhn, epoch 70"."""
    return f"{method} on {data}{'' if epoch is None else f', epoch {epoch:g}'}"


def preview(kind: str, images: Tensor, header: str = "") -> Image.Image:
    """The grid of a kind of preview, (M, C, H, W): reconstructions are pairs, which a row keeps together.

    As it is without a header, and magnified below one.
    """
    columns = 8 if kind == "reconstructions" or len(images) > 16 else None
    if not header:
        return grid(images, columns)
    titles = ("original", "reconstruction") if kind == "reconstructions" else ()
    return titled_grid(images, header, columns, titles)


def contact_sheet(
    pictures: Sequence[tuple[str, Image.Image]], columns: int = 4, header: str = ""
) -> Image.Image:
    """Titled pictures, row by row, below a header; what stands above their own grids is left out.

    Large pictures are halved, so that a sheet of many is not a large file.
    """
    pages = [(title, _page(picture)) for title, picture in pictures]
    size = max(14, max(page.width for _, page in pages) // 22)  # legible where the sheet is shown smaller
    font, line = ImageFont.load_default(size), size + 8
    width = max(page.width for _, page in pages) + 8
    height = max(page.height for _, page in pages) + line + 4
    columns = min(columns, len(pages))
    top = line if header else 0
    sheet = Image.new("RGB", (columns * width, top + math.ceil(len(pages) / columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((6, 4), header, fill="black", font=font)
    for i, (title, page) in enumerate(pages):
        x, y = i % columns * width, top + i // columns * height
        draw.text((x + 6, y + 4), title, fill="black", font=font)
        sheet.paste(page, (x + 4, y + line))
    return sheet


def _page(picture: Image.Image) -> Image.Image:
    """A picture without the header that `titled_grid` gave it, half as large where it was magnified."""
    top = int(picture.info.get(GRID_TOP, 0))
    page = picture.crop((0, top, picture.width, picture.height))
    return page.reduce(2) if top else page


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
    axis.set(xlabel="epoch", ylabel=f"wall-clock time ({name})", title=title)
    axis.locator_params(axis="x", integer=True)
    return figure


def curves(
    history: Sequence[Mapping[str, Any]], title: str, units: Mapping[str, str] | None = None
) -> "Figure":
    """Every measured number over epochs, one panel per name; a held-out value joins its training value.

    Epochs at which the outputs had collapsed are shaded in all panels.

    Args:
        history: one record per epoch.
        title: of the whole.
        units: of the method's own terms, by name, e.g. {"kl": "nats per image"}.
    """
    split = next((record["split"] for record in history if "split" in record), "test")
    names = list(dict.fromkeys(key for record in history for key in record if key not in BOOKKEEPING))
    names = [name for name in names if not any(isinstance(record.get(name), bool) for record in history)]
    joined = [f"{split}_{name}" for name in names]
    panels = [name for name in names if name not in joined]
    columns = min(3, max(1, len(panels)))
    figure, axes = new_figure(max(1, math.ceil(len(panels) / columns)), columns, 4.2, 3.0)
    for axis, name in zip(axes, panels, strict=False):
        _draw_series(axis, history, name, "train")
        if f"{split}_{name}" in names:
            _draw_series(axis, history, f"{split}_{name}", split)
            axis.legend(frameon=False)
        measured_on = f" ({split})" if split != "test" and name in HELD_OUT else ""
        axis.set(xlabel="epoch", title=name.replace("_", " ") + measured_on)
        axis.locator_params(axis="x", integer=True)
        _label_units(axis, name, {**UNITS, **(units or {})})
        _shade_collapsed(axis, history)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(f"{title} (shaded: collapsed)" if _collapsed_epochs(history) else title)
    return figure


def _draw_series(axis: "Axes", history: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    points = [(r["epoch"], r[name]) for r in history if r.get(name) is not None]
    axis.plot([x for x, _ in points], [y for _, y in points], marker=".", label=label)


def _label_units(axis: "Axes", name: str, units: Mapping[str, str]) -> None:
    """The unit along the y axis; shares as percent; the name of what has no unit."""
    term = name.removeprefix("test_").removeprefix("validation_")
    if term.endswith("accuracy"):
        axis.set_ylabel("accuracy (%)")
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    else:
        axis.set_ylabel(units.get(term, term.replace("_", " ")))


def _collapsed_epochs(history: Sequence[Mapping[str, Any]]) -> list[int]:
    return [record["epoch"] for record in history if record.get("collapsed") is True]


def _shade_collapsed(axis: "Axes", history: Sequence[Mapping[str, Any]]) -> None:
    for epoch in _collapsed_epochs(history):
        axis.axvspan(epoch - 0.5, epoch + 0.5, color=COLLAPSED_COLOR, alpha=0.12, linewidth=0)


def one(image: Tensor) -> Image.Image:
    """One uint8 image (C, H, W), in mode RGB, or L where it has one channel."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()))


# Classes: confusion matrices, and neighbors of test images

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
    figure, (axis,) = new_figure(1, 1, side, side)
    axis.grid(visible=False)
    axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, len(classes), math.ceil(len(classes) / NAMED))
    drawn = drawn_names(tuple(classes[i] for i in ticks))
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
    drawn = drawn_names(tuple(classes))
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


def draw_captioned(
    images: Tensor,
    captions: Sequence[Sequence[str]],
    truths: Sequence[str],
    titles: Sequence[str],
    header: str,
) -> Image.Image:
    """Rows of images with a word below each, framed and written green where it is the row's own, else red.

    Args:
        images: uint8 (R, K, C, H, W).
        captions: R rows of K words.
        truths: the right word of each row.
        titles: of the K columns; a line break is one.
        header: above all, wrapped at spaces.
    """
    drawn = drawn_names(tuple(sorted({*truths, *(word for row in captions for word in row)})))
    font, lines = drawn.font(12), 1 + max(title.count("\n") for title in titles)
    width, height = SIDE + 2 * BORDER + GAP + CAPTION, SIDE + 2 * BORDER + CAPTION + GAP // 2
    whole = max(2 * GAP + width * images.shape[1], LEAST_WIDTH)
    wrapped = _wrapped(header, whole - 2 * MARGIN)
    top = MARGIN + LINE_HEIGHT * len(wrapped)
    below = top + lines * CAPTION
    sheet = Image.new("RGB", (whole, below + GAP // 2 + height * len(images)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(wrapped):
        position = (MARGIN, MARGIN + i * LINE_HEIGHT)
        draw.text(position, line, fill="black", font=ImageFont.load_default(TEXT_SIZE))
    for column, title in enumerate(titles):
        draw.multiline_text((GAP + width * column, top), title, fill="black", font=ImageFont.load_default(12))
    for row, words in enumerate(captions):
        for column, word in enumerate(words):
            color = RIGHT if word == truths[row] else WRONG
            position = (GAP + width * column, below + GAP // 2 + row * height)
            _draw_image(sheet, images[row, column], word, color, position, font)
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
    picture = one(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
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
