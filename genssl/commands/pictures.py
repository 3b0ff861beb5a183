"""Images one by one, a PNG each: what other tools measure."""

from pathlib import Path
from typing import TYPE_CHECKING

from genssl.commands.screen import say
from genssl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def empty_folder(out: Path) -> Path:
    """`out`, made and empty: leftovers would be counted as images.

    Raises:
        UserError: it is a file, or holds something.
    """
    folder = out.resolve()
    if folder.is_file():
        raise UserError(f"{out} is a file; choose a new folder for the images")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{out} is not empty; choose a new folder for the images")
    return folder


def write_each(images: "Tensor", folder: Path) -> None:
    """Write uint8 images (N, 3, H, W) as 00000.png, 00001.png, ..."""
    from genssl import figures

    for place, image in enumerate(images):
        figures.one(image).save(folder / f"{place:05d}.png")  # no flush to disk for each of thousands
    say(f"{len(images)} images: {folder}")
