"""What a page consists of: embedded pictures, figures with captions, and tables."""

import base64
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genssl import files
from genssl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LARGE = 200_000  # bytes from which on a picture is compressed again
WIDEST = 1600  # pixels
QUALITY = 90  # of a JPEG: no difference is seen at twice the size
MAGNIFIED = 700  # pixels up to which a small picture is shown larger than it is


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        source: a data: URI.
        width, height: how large it is shown where there is room, in pixels.
        sharp: it is magnified, and its pixels are to be seen.
        alt: what it shows, in words.
    """

    source: str
    width: int
    height: int
    sharp: bool
    alt: str


def embed(file: Path, alt: str, problems: list[str]) -> list[Picture]:
    """A picture file as data; none where there is none, or none that can be read, which is a problem.

    A small one, a grid of images, is magnified by a whole number.

    Args:
        file: a PNG.
        alt: what it shows.
        problems: what could not be read is added.
    """
    from PIL import Image

    if not os.path.lexists(file):
        return []
    try:
        content = files.read_bytes(file)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            width, height = opened.size
            opened.verify()
        kind, data = _smaller(content, width)
    except UserError as error:
        problems.append(str(error))
        return []
    except Exception:  # Pillow raises nearly every type there is
        problems.append(f"{file} is no picture that can be read")
        return []
    times = max(1, MAGNIFIED // width)
    encoded = base64.b64encode(data).decode()
    source = f"data:image/{kind};base64,{encoded}"
    return [Picture(source, times * width, times * height, times > 1, alt)]


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

    @property
    def line(self) -> str:
        """Both in one line: "0.50 ± 0.02", or "176 (160 to 190)"."""
        if not self.small:
            return self.text
        return f"{self.text} {self.small}" if self.small.startswith("±") else f"{self.text} ({self.small})"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        conditions: what all its rows have in common: data, split, images, device.
        notes: on its rows.
        references: how many of the last rows are no models.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    conditions: str = ""
    notes: list[str] = field(default_factory=list)
    references: int = 0


@dataclass(frozen=True)
class ReportFigure:
    """A figure or a result with everything that belongs to it.

    Attributes:
        anchor: its place in the page.
        label: e.g. "Figure 4".
        question: of the assignment.
        source: the run or study that it is of.
        shipped: what to say where that run holds the weights of the repository.
        numbers: names and values.
        conditions: what they were measured on, in a line.
        command: what made it; empty where that is not known.
        usual: what makes such a figure; the commands to give where there is no picture.
    """

    anchor: str
    title: str
    label: str = ""
    question: str = ""
    source: str = ""
    shipped: str = ""
    pictures: list[Picture] = field(default_factory=list)
    numbers: list[tuple[str, str]] = field(default_factory=list)
    conditions: str = ""
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    usual: list[str] = field(default_factory=list)

    @property
    def picture(self) -> Picture | None:
        """The first picture."""
        return self.pictures[0] if self.pictures else None
