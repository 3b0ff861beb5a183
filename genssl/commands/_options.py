"""Options that several commands share."""

import dataclasses
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        metavar="REF",
        help="A method (its newest finished run, else the weights that ship), a run's name, a path, or "
        "hf:OWNER/NAME.",
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="REF", help="Use this run of the method: its name or path.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="svhn, svhn-extra, cifar10, synthetic, a path, hf:OWNER/NAME or NAME-remix; default: the run's.",
        callback=checked_data,
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.", callback=checked_device)]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Language = Annotated[
    Literal["en", "fr"], typer.Option(help="Language of the assignment's report: en, or fr for French.")
]
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
ZipEncoding = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Encoding of the names in a .zip that are not UTF-8, such as cp932."),
]
Fit = Annotated[
    Literal["crop", "pad", "stretch"],
    typer.Option(help="How images that are not square become so: center crop, pad with white, or stretch."),
]
TrainingFit = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option("--fit", help="How images that are not square become so; default: crop (to the center)."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Batch size of the evaluation, in images.")]
SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, SplitName] = ("train", "test")
RunSplitName = Literal["train", "validation", "test"]  # validation: what the run held out of its training
RealSplitName = Literal["train", "validation", "test", "all"]  # all: train and test together
ImageSize = Annotated[int, typer.Option(min=1, max=4096, help="Image size, in pixels per side.")]
# Settings of a training; None: the default of the method
TrainingData = Annotated[
    str | None,
    typer.Option(help="svhn, svhn-extra, cifar10, synthetic, a path, hf:OWNER/NAME, or NAME-remix."),
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
DiffusionSampler = Literal["dpm++", "unipc", "heun", "ddim", "ancestral"]
Sampler = Annotated[
    Literal["dpm++", "unipc", "heun", "ddim", "ancestral", "euler"] | None,
    typer.Option(help="Sampler; default: dpm++ (DDPM), heun (flow)."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of sampler steps (DDPM, flow).")]
Spacing = Annotated[
    Literal["karras", "log-snr", "quadratic", "uniform"] | None,
    typer.Option(
        help="Spacing of the times that the DDPM's sampler visits; "
        "default: karras (dpm++, unipc, heun), quadratic (ddim, ancestral)."
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Noise of the ddim sampler: 0 is deterministic, 1 ancestral."),
]
Variance = Annotated[
    Literal["posterior", "large"] | None, typer.Option(help="Variance of the ancestral sampler.")
]
ClassLabel = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="CLASS",
        help="Class to sample, by name or number, or all: a column per class; default: drawn at random.",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(min=-1, max=1000, help="Classifier-free guidance w; 0: none, -1: no class; default: 0.5."),
]


def given(**values: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Common:
    """What every command that evaluates a run takes beside it."""

    checkpoint: Checkpoint = None
    data: Data = None
    skip_bad: SkipBad = False
    limit: Limit = None
    out: Out = None
    seed: Seed = 0
    batch_size: BatchSize = 256
    device: Device = "auto"
    as_json: Json = False


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; None: the method's default."""

    prior: Prior = None
    sampler: Sampler = None
    steps: Steps = None
    spacing: Spacing = None
    eta: Eta = None
    variance: Variance = None
    class_label: ClassLabel = None
    guidance: Guidance = None

    def given(self) -> dict[str, Any]:
        """The options that are not None."""
        return given(**vars(self))


def with_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command have parameters of the types `Common` and `Sampling`, whose fields are its options.

    Where a parameter of its own has the name of a field, that is the option, and the field has its default.

    Args:
        without: fields that are no options of this command; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command).parameters.values()
        groups: dict[str, Any] = {
            p.name: p.annotation for p in parameters if p.annotation in (Common, Sampling)
        }
        direct = [p for p in parameters if p.name not in groups]
        omitted = {*without, *(p.name for p in direct)}
        fields = {
            name: [field for field in dataclasses.fields(group) if field.name not in omitted]
            for name, group in groups.items()
        }

        @functools.wraps(command)
        def run(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = group(**{field.name: values.pop(field.name) for field in fields[name]})
            command(**values)

        added = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for name in reversed(groups)
            for f in fields[name]
        ]
        run.__signature__ = inspect.Signature([*direct, *added])  # type: ignore[attr-defined]
        return run

    return decorate


def numbers(texts: Sequence[str] | None, option: str) -> list[float]:
    """The numbers of an option that is repeated, or given once with commas; each number once.

    Raises:
        UserError: one of them is no finite number.
    """
    parsed = []
    for text in (part.strip() for whole in texts or () for part in whole.split(",")):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{option} takes numbers, with commas between them, not {text!r}")
        parsed.append(number)
    return list(dict.fromkeys(parsed))


def whole(number: float, option: str) -> int:
    """A number of an option that takes whole ones.

    Raises:
        UserError: it is not whole.
    """
    if number != int(number):
        raise UserError(f"{option} takes whole numbers, not {number:g}")
    return int(number)


# --set key=value


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into values; none and null mean no value, a leading bracket means JSON.

    lr, bs and wd stand for learning_rate, batch_size and weight_decay.

    Raises:
        UserError: a text has no `=`, or a key has two different values.
    """
    parsed = parse_repeated_settings(settings)
    for name, values in parsed.items():
        if len(values) > 1:
            raise UserError(f"--set {name} has {len(values)} values ({_texts(values)}); keep one of them")
    return {name: value for name, (value,) in parsed.items()}


def parse_repeated_settings(settings: list[str]) -> dict[str, list[Any]]:
    """As `parse_settings`, with all different values of each key, in their order.

    Raises:
        UserError: a text has no `=`.
    """
    from genssl.settings import RENAMED, SHORT

    parsed: dict[str, list[Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set takes key=value, not {setting!r}")
        name = name.strip().replace("-", "_")
        values = parsed.setdefault((SHORT | RENAMED).get(name, name), [])
        value = _parse_value(text.strip())
        if value not in values:
            values.append(value)
    return parsed


def _texts(values: list[Any]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)


def _parse_value(value: str) -> Any:
    if value.lower() in {"none", "null"}:
        return None
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
