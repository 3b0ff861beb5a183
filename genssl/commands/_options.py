"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from genssl.errors import UserError


def checked_device(device: str) -> str:
    """Check the name of a device; whether the machine has it is seen later.

    Raises:
        UserError: no device has such a name.
    """
    if re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", device) is None:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:1 or mps")
    return device


def checked_data(data: str | None) -> str | None:
    """Check that a data set has this name or path, before anything takes time.

    Raises:
        UserError: it is neither.
    """
    from genssl.data.registry import require

    if data is not None:
        require(data)
    return data


def checked_picture(out: Path | None) -> Path | None:
    """Check that --out names a folder, or a picture in a format that can be written.

    Raises:
        UserError: it has no suffix, or one of no picture format.
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
        metavar="REF", help="A method (its newest run, finished ones first), the name of a run, or a path."
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="REF", help="Use this run of the method: its name or path.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="svhn, svhn-extra, cifar10, synthetic, a path, or NAME-remix; default: the data of the run.",
        callback=checked_data,
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.", callback=checked_device)]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the figure here, without a JSON file; default: both in eval/ of the run.",
        callback=checked_picture,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", help="Start without asking for confirmation.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use at most N images of the split, shuffled.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip unreadable files.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size of the evaluation, in images.")]
SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, SplitName] = ("train", "test")
RunSplitName = Literal["train", "validation", "test"]  # validation: what the run held out of its training
ImageSize = Annotated[int, typer.Option(min=1, help="Image size, in pixels per side.")]
# Settings of a training; None: the default of the method
TrainingData = Annotated[
    str | None, typer.Option(help="svhn, svhn-extra, cifar10, synthetic, a path, or NAME-remix.")
]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs.")]
TrainingBatchSize = Annotated[int | None, typer.Option("--batch-size", help="Batch size, in images.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Learning rate.")]
TrainingLimit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Train on at most N images, shuffled.")
]
Holdout = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of the train images to hold out for validation; default: 0."),
]
KnnEvery = Annotated[int | None, typer.Option(help="Epochs between kNN accuracies; 0: none.")]
TrainingSeed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
MaxMinutes = Annotated[
    float | None, typer.Option(min=0, metavar="N", help="Stop each training after N minutes.")
]
# Sampling options are passed on to `sample` of the method; those that it does not have are refused
Prior = Annotated[
    Literal["normal", "mixture"] | None,
    typer.Option(help="VAE prior: normal (N(0, I)), or the mixture fitted to the latents."),
]
Sampler = Annotated[
    Literal["dpm++", "ddim", "ancestral"] | None, typer.Option(help="DDPM sampler; default: dpm++.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of sampler steps (DDPM).")]
Eta = Annotated[
    float | None, typer.Option(help="Noise of the ddim sampler: 0 is deterministic, 1 ancestral.")
]
Variance = Annotated[
    Literal["posterior", "large"] | None, typer.Option(help="Variance of the ancestral sampler.")
]


def given(**values: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in values.items() if value is not None}
