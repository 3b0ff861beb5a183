"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[
    str, typer.Argument(metavar="REF", help="A method (its newest finished run), a run's name, or a path.")
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="REF", help="Take this run of the method: its name or path.")
]
Data = Annotated[
    str | None, typer.Option(help="svhn, cifar10, synthetic or a path; the run's own data by default.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Out = Annotated[
    Path | None, typer.Option(help="Where the picture goes; beside the run, in eval/, by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON and nothing else.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use so many images of the split, shuffled.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable files of a path out.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
