"""Where results go. Nothing is replaced that this same command line did not make.

What --out names is refused where another file exists, before the work. A further picture beside it, and what
goes to the current folder by default, takes a number. A run's folder eval/ is the program's: there, options
that matter are in the names.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import typer

from genssl.environment import command_line
from genssl.errors import UserError
from genssl.eval.names import file_name
from genssl.files import made_by
from genssl.paths import LABEL, is_writable_run
from genssl.report import load

# Of a run's folder; the last one as in genssl.checkpoint, which imports torch
RUN_FILES = {load.MODEL, load.CONFIG, load.HISTORY, load.ENVIRONMENT, LABEL, "state.safetensors"}
RUN_PICTURES = ("curves.png", "wall-clock.png", "-over-epochs.png")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}
IMAGE = re.compile(r"\d{5,}\.png")  # in a folder of images


@dataclass(frozen=True)
class Target:
    """Where an evaluation's results go.

    Attributes:
        picture: the first of its pictures.
        with_numbers: a JSON file of the numbers goes beside it; not beside a file that --out names.
        replaces: pictures of other commands may be replaced, in a run's folder eval/.
    """

    picture: Path
    with_numbers: bool
    replaces: bool

    def further(self, name: str) -> Path:
        """Where another picture goes."""
        path = self.picture.with_stem(f"{self.picture.stem}-{name.replace(' ', '-')}")
        return path if self.replaces else unused(path)


def evaluation_name(context: typer.Context) -> str:
    """What the files of the command that is carried out are called."""
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    changed = {name: value for name, value in context.params.items() if value != defaults[name]}
    return file_name(str(context.command.name), changed)


def target_of_run(folder: Path, name: str, out: Path | None) -> Target:
    """Where the results of a run go: `out`, else <run>/eval/, else here where the run's folder takes none.

    Raises:
        UserError: as in `target`.
    """
    if out is None and is_writable_run(folder):
        return Target(folder / "eval" / f"{name}.png", with_numbers=True, replaces=True)
    return target(Path(f"{folder.name}-{name}.png"), name, out)


def target(usual: Path, name: str, out: Path | None) -> Target:
    """`out`, or a picture called `name` in it where it is a folder; else `usual`, with a number if need be.

    Raises:
        UserError: --out has no suffix of a picture, or names what is not to be replaced.
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
        UserError: --out is a file that is no picture, or names what is not to be replaced.
    """
    if out is not None and out.suffix in PICTURES and not out.is_dir():
        return Target(claim(out), with_numbers=False, replaces=False)
    if out is not None and out.is_file():
        raise UserError(f"--out {out} is a file; give a folder, or a picture such as {out}.png")
    folder, number = out or usual, 1
    picture, numbers = f"{kind}.png", f"{kind}.json"
    if out is not None:
        claim(folder / numbers)
        return Target(claim(folder / picture), with_numbers=True, replaces=False)
    while not (_is_free(folder / picture) and _is_free(folder / numbers)):
        number += 1
        folder = usual.with_name(f"{usual.name}-{number}")
    return Target(folder / picture, with_numbers=True, replaces=False)


def claim(path: Path) -> Path:
    """`path`, which --out names.

    Raises:
        UserError: it exists and was not made by this command, or is a place where a run keeps its own.
    """
    _refuse_place_of_run(path)
    if path.exists() and not made_by(path, command_line()):
        raise UserError(f"{path} exists and was not made by this command; choose another --out")
    return path


def unused(path: Path, *suffixes: str) -> Path:
    """`path`, or -2, -3, ... before its suffix: where nothing lies but what this command made.

    Args:
        path: the wish.
        suffixes: of all files that are to be written under its name; its own when there are none.
    """
    stem, number = path.stem, 1
    while not all(_is_free(path.with_suffix(suffix)) for suffix in suffixes or (path.suffix,)):
        number += 1
        path = path.with_stem(f"{stem}-{number}")
    return path


def claim_folder(out: Path) -> Path:
    """A folder for images one by one: new, empty, or with nothing but images that this command made.

    Raises:
        UserError: it is a file, holds something else, whose images would be counted, or is in a run's folder.
    """
    folder = out.resolve()
    if folder.is_file():
        raise UserError(f"{out} is a file; choose a new folder for the images")
    _refuse_place_of_run(folder)
    command = command_line()
    for file in folder.iterdir() if folder.is_dir() else ():
        if not (IMAGE.fullmatch(file.name) and made_by(file, command)):
            raise UserError(
                f"{out} is not empty and was not made by this command; choose a new folder for the images"
            )
    return folder


def _is_free(path: Path) -> bool:
    return not path.exists() or made_by(path, command_line())


def _refuse_place_of_run(path: Path) -> None:
    """Keep --out from the files of a run, those that are not there yet included."""
    folder = path.resolve().parent
    of_run = path.name in RUN_FILES or path.name.endswith(RUN_PICTURES)
    if (of_run and load.is_run(folder)) or load.is_run(folder.parent):
        run = folder if load.is_run(folder) else folder.parent
        raise UserError(f"{path} is where the run {run.name} keeps its own files; choose another --out")
