"""How long a command will train, said before it begins, with a smaller command beside it."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from genssl.commands.progress import TrainingScreen, readable_seconds
from genssl.commands.screen import is_live, say
from genssl.errors import FAILED_RUN, UserError
from genssl.invocation import arguments, started_by_torchrun

if TYPE_CHECKING:
    from genssl.settings import Config
    from genssl.train.events import Listener
    from genssl.train.options import Options

LONG = 30 * 60.0  # seconds
FEW = 20_000  # images of 32 pixels, over all epochs: too few for a trial to pay
SMALLER = 10 * 60.0  # seconds that the smaller command may train
PIXELS = 32  # a side


def confirm_long(configs: Sequence["Config"], how: "Options", option: str = "--set") -> None:
    """Where `configs` take long to train, say so and name a smaller command; on a terminal, ask.

    Without a terminal the command goes on. Nothing happens in one of several processes.

    Args:
        configs: one a training.
        how: how they are carried out; max_minutes limits each of them.
        option: how this command takes a setting that has no option of its own.

    Raises:
        UserError: the answer was not yes; or the data or the device is not to be had.
    """
    most = LONG if how.max_minutes is None else 60 * how.max_minutes
    if started_by_torchrun() or most * len(configs) < LONG:
        return
    with TrainingScreen() as screen:
        seconds = _expected(configs, how, screen)
        if seconds < LONG:
            return
        smaller = _smaller(configs, how, option, screen)
    trainings = "this training" if len(configs) == 1 else f"these {len(configs)} trainings"
    say(f"expected: about {readable_seconds(seconds)} for {trainings}\n{smaller}")
    if sys.stdin.isatty() and is_live() and not _agreed():
        raise UserError("not started; --yes starts without asking", FAILED_RUN)


def _agreed() -> bool:
    print("Start? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _expected(configs: Sequence["Config"], how: "Options", listen: "Listener") -> float:
    """Seconds for all trainings together; 0 for few images. What differs in its seed alone is tried once."""
    from genssl.train.estimate import Pace, count_images, pace

    seen = [config.epochs * count_images(config, listen) for config in configs]
    if sum(n * (config.image_size / PIXELS) ** 2 for n, config in zip(seen, configs, strict=True)) < FEW:
        return 0.0
    paces: dict[str, Pace] = {}
    total = 0.0
    for config, images in zip(configs, seen, strict=True):
        key = config.updated({"seed": 0}).to_json()
        if key not in paces:
            paces[key] = pace(config, how, listen)
        seconds = images / paces[key].images_per_second
        total += seconds if how.max_minutes is None else min(seconds, 60 * how.max_minutes)
    return total


def _smaller(configs: Sequence["Config"], how: "Options", option: str, listen: "Listener") -> str:
    """The same command on a smaller network, for fewer epochs and images, with the time that it takes."""
    from genssl.studies.assignment import ON_A_CPU
    from genssl.studies.budget import fit
    from genssl.train.estimate import pace

    first = configs[0]
    usual = ON_A_CPU.get(first.method, ON_A_CPU["simsiam"])
    changes = {name: value for name, value in usual.items() if getattr(first, name) != value}
    trial = pace(first.updated(changes), how, listen)
    length = fit(trial.images_per_second, trial.images, first.epochs, SMALLER / len(configs))
    words = ["genssl", *_without(arguments(), {"--epochs", "--limit", "--batch-size"})]
    for name, value in changes.items():
        words += [option, f"{name}={'none' if value is None else value}"]
    words += ["--epochs", str(length.epochs)]
    if (limit := length.limit or first.limit) is not None:
        words += ["--limit", str(limit)]
    return f"smaller, about {readable_seconds(length.seconds * len(configs))}: {shlex.join(words)}"


def _without(words: Iterable[str], options: set[str]) -> list[str]:
    """A command line without some of its options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word.split("=")[0] not in options:
            kept.append(word)
    return kept
