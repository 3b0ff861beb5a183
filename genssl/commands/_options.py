"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from genssl.errors import UserError


def checked_device(device: str) -> str:
    """The name of a device, which may not be there.

    Raises:
        UserError: no device has such a name.
    """
    if re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device) is None:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps")
    return device


def checked_data(data: str | None) -> str | None:
    """The data, which are known by this name or there; known before anything takes time.

    Raises:
        UserError: they are neither.
    """
    from genssl.data.registry import require

    if data is not None:
        require(data)
    return data


def checked_picture(out: Path | None) -> Path | None:
    """A picture that can be written, or a folder for it.

    Raises:
        UserError: it has no suffix, or one of no picture.
    """
    from genssl.files import picture_format

    if out is None or out.is_dir():
        return out
    if not out.suffix:
        raise UserError(f"--out {out} has no suffix; name a picture such as {out}.png")
    picture_format(out)
    return out


Run = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="A method (its newest run, finished ones first), a run's name, or a path."
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="REF", help="Take this run of the method: its name or path.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="svhn, svhn-extra, cifar10, synthetic or a path, or its -remix; the run's own by default.",
        callback=checked_data,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", callback=checked_device)]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The picture, without a file of numbers; by default both go to the run's eval/.",
        callback=checked_picture,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON and nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start without asking, however long it takes.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use so many images of the split, shuffled.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable files of a path out.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
# How a generative model draws images: handed on to its `sample`, which refuses what the method does not have
Prior = Annotated[
    Literal["normal", "mixture"] | None,
    typer.Option(help="Of a VAE: N(0, I), or the mixture fitted to its latents."),
]
Sampler = Annotated[
    Literal["dpm++", "ddim", "ancestral"] | None, typer.Option(help="Of a DDPM; dpm++ by default.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Network calls of a DDPM's sampler.")]
Eta = Annotated[float | None, typer.Option(help="Fresh noise of ddim: 0 none, 1 ancestral.")]
Variance = Annotated[
    Literal["posterior", "large"] | None, typer.Option(help="Of the ancestral sampler's steps.")
]


def given(**values: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in values.items() if value is not None}
