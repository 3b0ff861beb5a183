"""Pictures as data: a page holds them itself."""

import base64
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    picture.save(packed, "jpeg", quality=QUALITY, subsampling=0)  # full colour: images have single pixels
    return ("jpeg", packed.getvalue()) if packed.tell() < len(content) else ("png", content)


def _on_white(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white
