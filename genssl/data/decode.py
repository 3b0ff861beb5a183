"""One image file in, one square of bytes out; and what a file is by its first bytes."""

import contextlib
import functools
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from genssl.data.fit import Fit
from genssl.errors import UserError

Bytes = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000
MAX_PIXELS_VARIABLE = "GENSSL_MAX_PIXELS"
# The limit here is on pixels, and is checked before any is decoded: Pillow's own cannot be raised by a user
Image.MAX_IMAGE_PIXELS = None

# Only formats that are pictures: Pillow would hand PostScript that calls itself .png to an interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
PICTURES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"}
SUFFIXES = PICTURES | {".ppm", ".pgm", ".pbm", ".pnm"}
JPEG_2000 = {".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"}
HEIF = {".heic", ".heif", ".hif"}
CONVERT = "convert it to PNG or JPEG"
INSTALL_HEIF = "pip install 'genssl[heif]', or convert it to JPEG"
UNPACK = "unpack it to a folder"
WRITE = "write its images as PNG files"
WEB_PAGE = "a web page; download the file again"
BRANDS = {b"avif": ".avif", b"avis": ".avif"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), ".heic"
)
# First bytes of images: what their suffix would be
SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF87a", ".gif"), (b"GIF89a", ".gif"),
    (b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"\xff\x0a", ".jxl"), (b"\0\0\0\x0cJXL ", ".jxl"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ".jp2"), (b"\xff\x4f\xff\x51", ".j2k"),
)  # fmt: skip
# First bytes of what is often given in place of images: what it is, and what to do
CONTENTS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; run `git lfs pull`"),
    (b"<!doctype html", WEB_PAGE), (b"<html", WEB_PAGE),
    *((bytes([0x80, i]), f"a pickle, which is never loaded; {WRITE}") for i in (2, 3, 4, 5)),
    (b"\x93NUMPY", f"a NumPy array; {WRITE}"), (b"PAR1", f"a Parquet file; {WRITE}"),
    (b"ARROW1", f"an Arrow file; {WRITE}"), (b"\x89HDF", f"an HDF5 file; {WRITE}"),
    (b"MATLAB", f"a MATLAB file; {WRITE}"),
    (b"%PDF", f"a PDF; {CONVERT}"), (b"8BPS", f"a Photoshop file; {CONVERT}"),
    (b"<?xml", f"XML or SVG, not pixels; {CONVERT}"), (b"<svg", f"an SVG, not pixels; {CONVERT}"),
    (b"Rar!", f"a RAR archive; {UNPACK}"), (b"7z\xbc\xaf", f"a 7z archive; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by Zstandard; {UNPACK}"),
)  # fmt: skip


class BadImage(ValueError):
    """A file that is no usable image; the message is the reason, in a few words."""


@dataclass
class Observed:
    """What was noticed while images were decoded.

    Attributes:
        bits: that the values of 16-bit images are taken to have; 16 unless a first reading showed fewer.
        wide: 16-bit images so far.
        largest: value in them.
        animated: images with more than one frame.
    """

    bits: int = 16
    wide: int = 0
    largest: int = 0
    animated: int = 0

    def narrow(self, wide: npt.NDArray[np.integer]) -> Bytes:
        """16 bits to 8, by division: a conversion by Pillow would clip at 255 instead."""
        self.wide += 1
        self.largest = max(self.largest, int(wide.max()))
        return (wide >> (self.bits - 8)).clip(0, 255).astype(np.uint8)

    def needed_bits(self) -> int:
        """The bits of the largest value of all 16-bit images, as cameras have them: 8, 10, 12, 14 or 16."""
        bits = self.largest.bit_length()
        return 16 if self.wide == 0 or bits > 14 else max(8, bits + bits % 2)

    def notices(self, n: int) -> Iterator[str]:
        """What users of n images may not have meant."""
        if self.bits < 16:
            yield (
                f"the {self.wide:,} images of 16 bits hold values up to {self.largest:,}: they are read "
                f"as images of {self.bits} bits"
            )
        if self.animated:
            yield f"{self.animated:,} of {n:,} images have several frames, of which the first one is taken"

    def look(self, content: bytes) -> None:
        """Note an image that is decoded later, by its header where it has not 16 bits; not a bad one."""
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                self.animated += bool(getattr(image, "is_animated", False))
                if _is_wide(image):
                    self.narrow(np.asarray(image))


def suffixes() -> set[str]:
    """The suffixes of the files that can be decoded here."""
    return SUFFIXES | (JPEG_2000 if _has_jpeg_2000() else set()) | (HEIF if has_heif() else set())


@functools.cache
def _has_jpeg_2000() -> bool:
    return bool(features.check("jpg_2000"))


@functools.cache
def has_heif() -> bool:
    """Whether the extra `heif` is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def _formats() -> tuple[str, ...]:
    return (*FORMATS, *("JPEG2000",) * _has_jpeg_2000(), *("HEIF",) * has_heif())


def identify(content: bytes) -> str:
    """The suffix that a file of an image format should have, by its first bytes; "" if it is none."""
    for start, suffix in SIGNATURES:
        if content.startswith(start):
            return suffix
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[4:8] == b"ftyp":
        return BRANDS.get(content[8:12], "")
    if content[:2] == b"BM" and content[6:10] == bytes(4):
        return ".bmp"
    is_portable = content[:1] == b"P" and content[1:2] in b"123456" and content[2:3].isspace()
    return ".ppm" if is_portable and content[3:4] in b"#0123456789" else ""


def describe(content: bytes) -> str:
    """What content that is no usable image is, and what to do; "" where the first bytes say nothing."""
    start = content[:64].lstrip().lower()
    for signature, text in CONTENTS:
        if start.startswith(signature.lower()):
            return text
    suffix = identify(content)
    if suffix in suffixes() or not suffix:
        return ""
    return f"a {suffix[1:].upper()} image; {INSTALL_HEIF if suffix in HEIF else CONVERT}"


def max_pixels() -> int:
    """The most pixels of an image: GENSSL_MAX_PIXELS, else MAX_PIXELS.

    Raises:
        UserError: the variable is no number.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    try:
        return int(float(text)) if text else MAX_PIXELS
    except (ValueError, OverflowError) as error:
        raise UserError(f"{MAX_PIXELS_VARIABLE} must be a number of pixels, not {text!r}") from error


def decode(content: bytes, size: int | Fit, observed: Observed | None = None) -> Bytes:
    """Decode an image of any mode and size: uint8 (size, size, 3).

    EXIF orientation is applied, alpha is laid over white, 16 bits become 8, the center square is cut out
    (or as `size` says) and resized with antialiasing. A square of the right size keeps its pixels bit for
    bit.

    Args:
        content: of the file.
        size: pixels per side, or a `Fit` that says how the square is made.
        observed: records what was noticed, and says how 16 bits become 8.

    Raises:
        BadImage: the content is no image, truncated, larger than `max_pixels`, or of 32-bit pixels.
    """
    observed = observed or Observed()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = _fit(size)
            image = _open(content, fit.size)
            observed.animated += bool(image.info.get(ANIMATED))
            return np.array(fit(_to_rgb(image, observed)))
    except (BadImage, UserError):
        raise
    except Exception as error:  # on damaged files Pillow's readers raise nearly every type there is
        raise BadImage(_reason(error, content)) from error


ANIMATED = "genssl-animated"  # in the information of an opened image
ENOUGH = 4  # times the size that is asked for, of a JPEG that is made smaller while it is decoded
JPEG_END = b"\xff\xd9"
FILLERS = [bytes([value]) * 999 for value in (0x55, 0xAA, 0xF0, 0xFE)]  # no markers of a JPEG


def _open(content: bytes, image_size: int) -> Image.Image:
    try:
        return _opened(content, image_size)
    except OSError:
        if not content.startswith(b"\xff\xd8"):
            raise
        return _opened_without_end(content, image_size)
    except ValueError:
        # Pillow takes more than a megabyte of text for an attack
        if (shorter := _without_text(content)) == content:
            raise
        return _opened(shorter, image_size)


def _opened(content: bytes, image_size: int) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=_formats())
    limit, size = max_pixels(), image.size
    if size[0] * size[1] > limit:  # only a JPEG becomes smaller by this
        image.draft(None, (ENOUGH * image_size, ENOUGH * image_size))
    if image.width * image.height > limit:
        raise BadImage(
            f"too large, {size[0]} x {size[1]} pixels; {MAX_PIXELS_VARIABLE}={size[0] * size[1]} reads it"
        )
    with contextlib.suppress(Exception):  # to be seen before the pixels are decoded
        image.info[ANIMATED] = bool(getattr(image, "is_animated", False))
    image.load()  # verify() would let a truncated file pass
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _opened_without_end(content: bytes, image_size: int) -> Image.Image:
    """A JPEG without its last two bytes, which are no pixels.

    Raises:
        OSError: pixels are missing, too: then they change with what is put in their place.
    """
    start = content.rstrip(b"\xff")
    image = _opened(start + JPEG_END, image_size)
    pixels = image.tobytes()
    if any(_opened(start + filler + JPEG_END, image_size).tobytes() != pixels for filler in FILLERS):
        raise OSError("truncated")
    return image


def _without_text(content: bytes) -> bytes:
    """A PNG without its texts and its color profile; anything else as it is."""
    start = SIGNATURES[0][0]
    if not content.startswith(start):
        return content
    chunks, position = [start], len(start)
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4])
        if content[position + 4 : position + 8] not in {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}:
            chunks.append(content[position:end])
        position = end
    return b"".join(chunks)


def _to_rgb(image: Image.Image, observed: Observed) -> Image.Image:
    if _is_wide(image):
        return _from_16_bit(np.asarray(image), image.info.get("transparency"), observed)
    if image.mode in {"I", "F"}:
        raise BadImage("32-bit pixels have no agreed range")
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    # "I" is 16 bits in a wider type where the format has no more
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PPM", "PNG", "JPEG2000"})


def _from_16_bit(wide: npt.NDArray[np.integer], transparent: object, observed: Observed) -> Image.Image:
    narrow = observed.narrow(wide)
    if isinstance(transparent, int):
        narrow[wide == transparent] = 255
    return Image.fromarray(narrow).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def from_pixels(pixels: Bytes, size: int | Fit) -> Bytes:
    """As `decode`, of an array (H, W) or (H, W, C) with 1, 3 or 4 channels, the fourth one alpha."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    return np.array(_fit(size)(_to_rgb(image, Observed())))


def _fit(size: int | Fit) -> Fit:
    return size if isinstance(size, Fit) else Fit(size)


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return describe(content) or ("not an image" if content else "not an image: empty")
    words = str(error).splitlines() or [type(error).__name__]
    return "truncated" if "truncated" in words[0].lower() else words[0][:80]
