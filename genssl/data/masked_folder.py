"""Images with masks: images/NAME.* and masks/NAME.png in a folder, or in its train/ and test/."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from genssl.data.archive import BadFile, Member, members
from genssl.data.decode import BadImage, decode
from genssl.data.fit import Fit
from genssl.data.image_folder import data_name, hold_out
from genssl.data.registry import PARTS, Part, Shape
from genssl.data.split import Split
from genssl.errors import UserError, first_few
from genssl.files import tensor_digest
from genssl.pixels import IGNORE, to_channels

NAME = re.compile(r"(?:(train|test)/)?(images|masks)/(.+)\.[^./]+")
DEPTH = 24  # byte of a PNG that says how many bits a number has
INTEGERS = ("1", "L", "P", "I", "I;16")  # modes of images that hold one number per pixel
LAYOUT = "give images/NAME.* and masks/NAME.png, with the number of a class at each pixel"
Pair = dict[str, tuple[str, bytes]]  # "images" and "masks": name and content


def has_masks(path: Path) -> bool:
    """Whether a folder has a folder masks/, or a part that has one."""
    return any((path / folder / "masks").is_dir() for folder in ("", *PARTS))


def read_masked(
    path: Path, part: Part, image_size: int, channels: int, *, fit: Shape = "crop", seed: int = 0
) -> Split:
    """A part of a folder of images and masks, in memory, its labels None.

    A mask is a PNG of one channel, or of a palette, as large as its image: 0 for ground, the number of a
    class elsewhere, 255 where a pixel counts for nothing. It is cut as its image and resized to the nearest
    pixel; what pads an image counts for nothing. Where there is no train/ and test/, a tenth is for testing.

    Args:
        path: of the folder.
        part: "train" or "test".
        image_size: pixels per side.
        channels: of the images, 1 or 3.
        fit: how images that are not square become so.
        seed: of what is held out.

    Raises:
        UserError: an image without a mask or a mask without an image, a file that cannot be read, a mask of
            another size or of colors, no image for the part.
    """
    parts = _pairs(path)
    arrays = {
        name: [_read(pair, image_size, fit) for pair in pairs.values()] for name, pairs in parts.items()
    }
    masks = [mask[mask != IGNORE] for rows in arrays.values() for _, mask in rows]
    largest = max((int(mask.max()) for mask in masks if mask.size), default=0)
    if largest == 0:
        raise UserError(f"the masks of {path} show nothing but ground; {LAYOUT}")
    everything = part if part in arrays else "all"
    if everything not in arrays:
        raise UserError(f"{path} has no images for the {part} part; add some")
    pixels = torch.from_numpy(np.stack([image for image, _ in arrays[everything]])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([mask for _, mask in arrays[everything]]))
    digest = tensor_digest({"images": pixels.contiguous(), "masks": labels})
    classes = tuple(str(i) for i in range(1, largest + 1))
    images = to_channels(pixels.contiguous(), channels)
    split = Split(images, None, classes, data_name(path), everything, digest, labels)
    return split if everything == part else hold_out(split, part, seed)


def _pairs(path: Path) -> dict[str, dict[str, Pair]]:
    """By part, by name without its suffix: the image and the mask."""
    parts: dict[str, dict[str, Pair]] = {}
    for member in members(path):
        if match := NAME.fullmatch(member.name):
            pair = parts.setdefault(match[1] or "all", {}).setdefault(match[3], {})
            if match[2] in pair:
                raise UserError(f"{path} has two files for {pair[match[2]][0]} and {member.name}; keep one")
            pair[match[2]] = (member.name, _content(path, member))
    if not parts:
        raise UserError(f"no images in {path}; {LAYOUT}")
    for pairs in parts.values():
        _require_both(path, pairs)
    return {name: dict(sorted(pairs.items())) for name, pairs in parts.items()}


def _content(path: Path, member: Member) -> bytes:
    try:
        return member.read()
    except BadFile as error:
        raise UserError(f"cannot read {member.name} in {path} ({error}); repair or remove it") from error


def _require_both(path: Path, pairs: Mapping[str, Pair]) -> None:
    """Refuse an image without a mask, and a mask without an image."""
    for kind, other in (("images", "mask"), ("masks", "image")):
        alone = sorted(pair[kind][0] for pair in pairs.values() if set(pair) == {kind})
        if alone:
            shown = first_few(alone)
            raise UserError(
                f"in {path} {len(alone):,} {kind} have no {other} of the same name: {shown}; {LAYOUT}"
            )


def _read(pair: Pair, size: int, fit: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (size, size, 3), and its mask, uint8 (size, size)."""
    (name, content), (mask_name, mask_content) = pair["images"], pair["masks"]
    try:
        pixels = decode(content, Fit(size, fit))
        with Image.open(io.BytesIO(content)) as image:
            shape = ImageOps.exif_transpose(image).size
    except BadImage as error:
        raise UserError(f"{name} cannot be used ({error}); repair or remove it") from error
    mask = _mask(mask_name, mask_content)
    if mask.size != shape:
        sizes = [f"{width}x{height}" for width, height in (mask.size, shape)]
        raise UserError(f"the mask {mask_name} has {sizes[0]} pixels, and its image {sizes[1]}")
    # White is IGNORE: what pads an image
    return pixels, np.array(Fit(size, fit, resampling=Image.Resampling.NEAREST)(mask))


def _mask(name: str, content: bytes) -> Image.Image:
    """A mask in mode L, whose pixels are the numbers as they are in the file."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            numbers, mode = np.array(image), image.mode
            if mode == "L" and content[DEPTH] < 8:  # Pillow spreads 2 and 4 bits of gray over 8
                numbers = numbers // (255 // (2 ** content[DEPTH] - 1))
    except Exception as error:  # on damaged files Pillow's readers raise nearly every type there is
        raise UserError(f"cannot read the mask {name} as a PNG; write it again") from error
    if mode not in INTEGERS or numbers.max() > IGNORE:
        raise UserError(f"the mask {name} has no numbers from 0 to 255 (its mode is {mode}); {LAYOUT}")
    return Image.fromarray(numbers.astype(np.uint8))
