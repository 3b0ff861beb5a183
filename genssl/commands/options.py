"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
        help="svhn, svhn-extra, cifar10, synthetic or a path, or its -remix; the run's own by default."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Out = Annotated[
    Path | None, typer.Option(help="Where the picture goes; beside the run, in eval/, by default.")
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
Steps = Annotated[int | None, typer.Option(help="Network calls of a DDPM's sampler.")]
Eta = Annotated[float | None, typer.Option(help="Fresh noise of ddim: 0 none, 1 ancestral.")]
Variance = Annotated[
    Literal["posterior", "large"] | None, typer.Option(help="Of the ancestral sampler's steps.")
]


def given(**values: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in values.items() if value is not None}
