"""Images one by one, a PNG each: what other tools measure."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from genssl.commands.screen import say
from genssl.invocation import command_line
from genssl.marks import made_by, mark_png

if TYPE_CHECKING:
    from torch import Tensor


def write_each(images: "Tensor", folder: Path) -> None:
    """Write uint8 images (N, 3, H, W) as 00000.png, 00001.png, ... into a folder from `claim_folder`.

    What this command wrote there before goes: leftovers would be counted as images.
    """
    from genssl import figures

    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": command_line()}
    for i, image in enumerate(images):
        content = io.BytesIO()
        figures.one(image).save(content, "png")
        # no flush to disk for each of thousands
        (folder / f"{i:05d}.png").write_bytes(mark_png(content.getvalue(), about))
    written = {f"{i:05d}.png" for i in range(len(images))}
    for file in folder.glob("*.png"):
        if file.name not in written and made_by(file, about["command"]):
            file.unlink()
    say(f"{len(images)} images: {folder}")
