"""Output paths. No file is replaced unless this same command line made it.

An --out that exists is refused before the work starts. Further figures beside it, and files in the current
folder, get a number. In eval/ of a run, the options that matter are part of the file name.
"""

import io
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genssl.commands._console import echo
from genssl.environment import command_line, made_by, mark_png
from genssl.errors import UserError
from genssl.eval.names import file_name
from genssl.files import refuse_outside, require_writable, sweep, write_json, write_picture
from genssl.paths import LABEL, is_writable_run
from genssl.report import load
from genssl.run_info import CONFIG, ENVIRONMENT, HISTORY, MODEL, STATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

RUN_FILES = {MODEL, CONFIG, HISTORY, ENVIRONMENT, STATE, LABEL}
RUN_PICTURES = ("curves.png", "wall-clock.png", "-over-epochs.png")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}
IMAGE = re.compile(r"\d{5,}\.png")  # in a folder of images
SETTINGS = "samples.json"  # beside them: how they were sampled
SMALLEST = 500  # bytes of a PNG of 32 x 32 pixels
TEMPORARY = ".png.tmp"  # suffix of an image that is being written


@dataclass(frozen=True)
class Target:
    """The output paths of an evaluation.

    Attributes:
        picture: the main figure.
        with_numbers: write a JSON file beside it; not beside a file that --out names.
        replaces: figures of other commands may be replaced, in eval/ of a run.
    """

    picture: Path
    with_numbers: bool
    replaces: bool

    def further(self, name: str) -> Path:
        """The path of a further figure."""
        path = self.picture.with_stem(f"{self.picture.stem}-{name.replace(' ', '-')}")
        return path if self.replaces else unused(path)

    def write(
        self, values: Mapping[str, Any], pictures: "Mapping[str, Figure | Image]", origin: Mapping[str, str]
    ) -> None:
        """Write the pictures, then the numbers: a plan repeats an evaluation that a kill left without them.

        Numbers are not lost where a picture cannot be written.

        Args:
            values: of the JSON file, which only a target `with_numbers` has.
            pictures: by their titles, the main one first.
            origin: metadata of the pictures.
        """
        try:
            for i, (title, picture) in enumerate(pictures.items()):
                path = self.picture if i == 0 else self.further(title)
                sweep(path.parent, stem=f"{path.name}.")  # what a killed call left half-written
                write_picture(path, picture, origin)
                echo(f"{title}: {path}")
        except Exception:
            self._write_numbers(values)
            raise
        self._write_numbers(values)

    def _write_numbers(self, values: Mapping[str, Any]) -> None:
        if self.with_numbers:
            file = self.picture.with_suffix(".json")
            sweep(file.parent, stem=f"{file.name}.")
            write_json(file, values)


def evaluation_name(context: typer.Context) -> str:
    """The file name, without suffix, of the current command."""
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    # An option that may be repeated has an empty sequence where it is not given
    given = {name: value for name, value in context.params.items() if value not in ((), [])}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    return file_name(str(context.command.name), changed)


def target_of_run(folder: Path, name: str, out: Path | None) -> Target:
    """The target for a run: `out`, else <run>/eval/, else the current folder where the run is read-only.

    Raises:
        UserError: as in `target`.
    """
    if out is None and is_writable_run(folder):
        picture = folder / "eval" / f"{name}.png"
        for file in (picture, picture.with_suffix(".json")):
            refuse_outside(file)
        return Target(picture, with_numbers=True, replaces=True)
    return target(Path(f"{folder.name}-{name}.png"), name, out)


def target(usual: Path, name: str, out: Path | None) -> Target:
    """`out`, or `name`.png in it where it is a folder; else `usual`, numbered if it exists.

    Raises:
        UserError: --out has no picture suffix, or names a file that must not be replaced.
    """
    from genssl.files import picture_format

    if out is None:
        return Target(unused(usual, ".png", ".json", ".jsonl"), with_numbers=True, replaces=False)
    if not out.suffix and not out.is_dir():
        raise UserError(f"--out {out} has no suffix; name a picture such as {out}.png")
    picture = out / f"{name}.png" if out.is_dir() else out
    picture_format(picture)
    return Target(claim(picture), with_numbers=False, replaces=False)


def target_of_study(usual: Path, kind: str, out: Path | None) -> Target:
    """The picture `out`, or <kind>.png and <kind>.json in the folder `out`; else in `usual`.

    Raises:
        UserError: --out is a file that is no picture, or names a file that must not be replaced.
    """
    if out is not None and out.suffix in PICTURES and not out.is_dir():
        return Target(claim(out), with_numbers=False, replaces=False)
    if out is not None and out.is_file():
        raise UserError(f"--out {out} is a file; give a folder, or a picture such as {out}.png")
    folder, number = out or usual, 1
    picture, numbers = f"{kind}.png", f"{kind}.json"
    if out is not None:
        claim(folder / numbers)
        claim(folder / picture)
        if folder.is_dir():
            sweep(folder, stem=kind)  # what a killed call of this command left half-written
        return Target(folder / picture, with_numbers=True, replaces=False)
    while not (_is_free(folder / picture) and _is_free(folder / numbers)):
        number += 1
        folder = usual.with_name(f"{usual.name}-{number}")
    if folder.is_dir():
        sweep(folder, stem=kind)
    return Target(folder / picture, with_numbers=True, replaces=False)


def claim(path: Path) -> Path:
    """Check that --out may be written.

    Raises:
        UserError: it exists and was not made by this command, or belongs to the files of a run.
    """
    _refuse_run_files(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in --out")
    if path.exists() and not made_by(path, command_line()):
        raise UserError(f"{path} exists and was not made by this command; choose another --out")
    return require_writable(path)


def unused(path: Path, *suffixes: str) -> Path:
    """`path`, or with -2, -3, ... before its suffix: the first that is free or was made by this command.

    Args:
        path: the preferred path.
        suffixes: of all files that will be written under its name; default: its own.
    """
    stem, number = path.stem, 1
    while not all(_is_free(path.with_suffix(suffix)) for suffix in suffixes or (path.suffix,)):
        number += 1
        path = path.with_stem(f"{stem}-{number}")
    return path


def claim_folder(out: Path) -> Path:
    """Check a folder for single images: new, empty, or only with images that this command made.

    What a stopped command left half-written (TEMPORARY) is removed by the next one.

    Raises:
        UserError: it is a file, holds other files, or is in the folder of a run.
    """
    folder = out.resolve()
    if folder.is_file():
        raise UserError(f"{out} is a file; choose a new folder for the images")
    _refuse_run_files(folder)
    command = command_line()
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.endswith(TEMPORARY):
            continue
        if not ((IMAGE.fullmatch(file.name) or file.name == SETTINGS) and made_by(file, command)):
            raise UserError(
                f"{out} is not empty and was not made by this command; choose a new folder for the images"
            )
    require_writable(folder / SETTINGS)
    return folder


def claim_folder_of(out: Path, mark: str) -> Path:
    """Check a folder for what a command writes as a whole: new, empty, or made by this command.

    Args:
        out: the folder.
        mark: the JSON file in it that says which command made it.

    Raises:
        UserError: it is a file, holds other files, or is in the folder of a run.
    """
    if out.is_file():
        raise UserError(f"{out} is a file; choose a new folder")
    _refuse_run_files(out.resolve())
    if not _is_free_folder(out, mark):
        raise UserError(f"{out} is not empty and was not made by this command; choose a new folder")
    require_writable(out / mark)
    return out


def unused_folder(path: Path, mark: str) -> Path:
    """`path`, or with -2, -3, ...: the first that is free or was made by this command; see above."""
    number, folder = 1, path
    while not _is_free_folder(folder, mark):
        number += 1
        folder = path.with_name(f"{path.name}-{number}")
    return folder


def _is_free_folder(folder: Path, mark: str) -> bool:
    if (folder / mark).is_file():
        return made_by(folder / mark, command_line())
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


class SampleFolder:
    """A folder of one PNG per image, 00000.png, 00001.png, ..., which are written as they come.

    Args:
        folder: from `claim_folder`.
        settings: what the images depend on, besides their index; written beside them.

    Images of this command that have these settings are kept; those of others are deleted.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.details = folder, {"command": command_line()}
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"*{TEMPORARY}"):
            file.unlink()
        self.present = 0
        if settings is not None:
            record = {**self.details, "settings": dict(settings)}
            file = folder / SETTINGS
            if file.exists() and json.loads(file.read_bytes()) == record:
                while (folder / f"{self.present:05d}.png").exists():
                    self.present += 1
            else:
                self.remove_from(0)
                write_json(file, record)

    def require_space(self, n: int) -> None:
        """Refuse more images than the disk can hold.

        Raises:
            UserError: `n` are more, were each as small as a PNG gets.
        """
        free, need = shutil.disk_usage(self.folder).free, (n - self.present) * SMALLEST
        if need > free:
            raise UserError(
                f"{n:,} images take {need / 1e9:,.1f} GB or more, and the disk of {self.folder} has "
                f"{free / 1e9:,.1f} GB left; take fewer than {free // SMALLEST:,}"
            )

    def read(self, most: int) -> "Tensor | None":
        """The first images that are there already, uint8 (up to `most`, C, H, W); None: there is none."""
        import numpy as np
        import torch
        from PIL import Image

        images = []
        for i in range(min(most, self.present)):
            with Image.open(self.folder / f"{i:05d}.png") as image:
                images.append(torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1))
        return torch.stack(images).permute(0, 3, 1, 2) if images else None

    def write(self, start: int, images: "Tensor") -> None:
        """Write uint8 images (N, C, H, W) under the numbers from `start` on."""
        from genssl import figures

        for i, image in enumerate(images, start):
            content = io.BytesIO()
            figures.one(image).save(content, "png")
            file = self.folder / f"{i:05d}.png"
            # Whole or absent, but no flush to disk for each of thousands
            temporary = file.with_suffix(TEMPORARY)
            temporary.write_bytes(mark_png(content.getvalue(), self.details))
            temporary.replace(file)

    def remove_from(self, n: int) -> None:
        """Delete the images of this command from number `n` on, since other tools count all images."""
        for file in self.folder.glob("*.png"):
            if file.stem.isdigit() and int(file.stem) >= n and made_by(file, self.details["command"]):
                file.unlink()


def write_each(images: "Tensor", folder: Path) -> None:
    """Write uint8 images (N, C, H, W) as 00000.png, 00001.png, ... into a folder from `claim_folder`."""
    samples = SampleFolder(folder)
    samples.write(0, images)
    samples.remove_from(len(images))
    echo(f"{len(images)} images: {folder}")


def _is_free(path: Path) -> bool:
    return not path.exists() or made_by(path, command_line())


def _refuse_run_files(path: Path) -> None:
    """Refuse an --out that is, or would become, one of the files of a run."""
    folder = path.resolve().parent
    of_run = path.name in RUN_FILES or path.name.endswith(RUN_PICTURES)
    if (of_run and load.is_run(folder)) or load.is_run(folder.parent):
        run = folder if load.is_run(folder) else folder.parent
        raise UserError(f"{path} is where the run {run.name} keeps its own files; choose another --out")


def finite(value: Any) -> Any:
    """The same JSON value with null in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
