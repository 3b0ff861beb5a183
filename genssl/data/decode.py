"""One image file in, one square of bytes out."""

import contextlib
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from genssl.data.fit import Fit

Bytes = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000

# Only formats that are pictures: Pillow would hand PostScript that calls itself .png to an interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")


class BadImage(ValueError):
    """A file that is no usable image; the message is the reason, in a few words."""


def decode(content: bytes, size: int | Fit) -> Bytes:
    """Decode an image of any mode and size: uint8 (size, size, 3).

    EXIF orientation is applied, alpha is laid over white, 16 bits become 8, the center square is cut out
    (or as `size` says) and resized with antialiasing. A square of the right size keeps its pixels bit for
    bit.

    Raises:
        BadImage: the content is no image, truncated, larger than MAX_PIXELS, or of 32-bit pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _open(content)
            return np.array(_fit(size)(_to_rgb(image)))
    except BadImage:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise nearly every type there is
        raise BadImage(_reason(error)) from error


def _open(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"too large, {image.width} x {image.height} pixels")
    image.load()  # verify() would let a truncated file pass
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bit(np.asarray(image), image.info.get("transparency"))
    if image.mode == "I" and image.format in {"PPM", "PNG"}:  # 16 bits, in a wider type
        return _from_16_bit(np.asarray(image), image.info.get("transparency"))
    if image.mode in {"I", "F"}:
        raise BadImage("32-bit pixels have no agreed range")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bit(wide: npt.NDArray[np.integer], transparent: object) -> Image.Image:
    narrow = (wide >> 8).astype(np.uint8)  # convert() would clip at 255 instead
    if isinstance(transparent, int):
        narrow[wide == transparent] = 255
    return Image.fromarray(narrow).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def from_pixels(pixels: Bytes, size: int | Fit) -> Bytes:
    """As `decode`, of an array (H, W) or (H, W, C) with 1, 3 or 4 channels, the fourth one alpha."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    return np.array(_fit(size)(_to_rgb(image)))


def _fit(size: int | Fit) -> Fit:
    return size if isinstance(size, Fit) else Fit(size)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too large"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    words = str(error).splitlines() or [type(error).__name__]
    return "truncated" if "truncated" in words[0].lower() else words[0][:80]
