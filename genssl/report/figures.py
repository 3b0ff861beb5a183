"""What a page consists of: embedded pictures, figures with captions, and tables."""

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genssl.report import format

if TYPE_CHECKING:
    from PIL import Image

LARGE = 200_000  # bytes from which on a picture is compressed again
WIDEST = 1600  # pixels
QUALITY = 90  # of a JPEG: no difference is seen at twice the size
MAGNIFIED = 700  # pixels up to which a grid is shown larger than it is


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        source: a data: URI.
        width, height: how large it is shown where there is room, in pixels.
        sharp: it is magnified, and its pixels are to be seen.
        grid: it is a grid of small images.
        alt: what it shows, in words.
    """

    source: str
    width: int
    height: int
    sharp: bool
    alt: str
    grid: bool = False

    @property
    def kind(self) -> str:
        """The classes of its element."""
        return " ".join(name for name in ("grid", "sharp") if getattr(self, name))


def embed(file: Path, alt: str, problems: list[str], *, grid: bool = False) -> Picture | None:
    """A picture file as data; None where there is none, or none that can be read, which is a problem.

    Args:
        file: a PNG.
        alt: what it shows.
        problems: what could not be read is added.
        grid: it is a grid of small images, which are magnified by a whole number.
    """
    from PIL import Image

    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            width, height = opened.size
            opened.verify()
        kind, data = _smaller(content, width)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        problems.append(f"{file} is no picture that can be read")
        return None
    times = max(1, MAGNIFIED // width) if grid else 1
    encoded = base64.b64encode(data).decode()
    return Picture(f"data:image/{kind};base64,{encoded}", times * width, times * height, times > 1, alt, grid)


def _smaller(content: bytes, width: int) -> tuple[str, bytes]:
    """The kind and the bytes of a picture, compressed again where it is large and that makes it smaller."""
    from PIL import Image

    if len(content) < LARGE:
        return "png", content
    with Image.open(io.BytesIO(content)) as opened:
        picture = _on_white(opened)
    if width > WIDEST:
        picture.thumbnail((WIDEST, WIDEST * picture.height), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "jpeg", quality=QUALITY, subsampling=0)  # full color: images have single pixels
    return ("jpeg", packed.getvalue()) if packed.tell() < len(content) else ("png", content)


def _on_white(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a text, and a smaller one beneath it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        about: what all its rows have in common: data, split, images, device.
        floor: how many of the last rows are no models.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    about: str = ""
    notes: list[str] = field(default_factory=list)
    floor: int = 0


@dataclass(frozen=True)
class ReportFigure:
    """A figure with everything that belongs to it.

    Attributes:
        anchor: its place in the page.
        label: e.g. "Figure 4".
        question: of the assignment.
        source: the run or study that it is of.
        shipped: what to say where that run holds the weights of the repository.
        numbers: names and values.
        command: what made it; empty where that is not known.
        usual: what makes such a figure; the commands to give where there is no picture.
    """

    anchor: str
    label: str
    title: str
    question: str = ""
    source: str = ""
    shipped: str = ""
    picture: Picture | None = None
    numbers: list[tuple[str, str]] = field(default_factory=list)
    table: Table | None = None
    notes: list[str] = field(default_factory=list)
    command: str = ""
    usual: list[str] = field(default_factory=list)


def with_origins(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    origins: Sequence[Mapping[str, str]],
    notes: Sequence[str] = (),
) -> Table:
    """A table whose rows were measured on something: in its caption where that is the same, else in columns.

    Args:
        origins: of each row, by name, all with the same names, e.g. data, split, images, device.
    """
    shared = {name: value for name, value in origins[0].items() if all(o[name] == value for o in origins)}
    varying = [name for name in origins[0] if name not in shared]
    body = [
        [*row, *(Cell(origin[name]) for name in varying)] for row, origin in zip(rows, origins, strict=True)
    ]
    details = "; ".join(f"{name}: {value}" for name, value in shared.items() if value != format.NONE)
    return Table(title, [*columns, *varying], body, details, list(dict.fromkeys(notes)))
