"""Events of a run: it never prints, and the command decides how to show them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Loading:
    """Progress of fetching or converting data; `total` is None while it is unknown."""

    text: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Started:
    """The run folder exists and the first step is about to be taken.

    Examples:
        >>> def show(event):  # a callback of genssl.train
        ...     if isinstance(event, Started):
        ...         print(f"{event.method} on {event.images:,} images of {event.data}")
        >>> folder = Path("checkpoints/a-run")
        >>> show(Started(folder, "a-method", 1000, 1000, "svhn", 73_257, 70, 80_150, 0, "cpu", "fp32"))
        a-method on 73,257 images of svhn
    """

    folder: Path
    method: str
    parameters: int  # trained
    all_parameters: int  # with those of a target network, which are not trained
    data: str
    images: int
    epochs: int
    total_steps: int
    step: int  # above zero in a resumed run
    device: str
    precision: str
    held_out: int = 0  # images of the validation split


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of training; sent about once a second.

    Examples:
        >>> event = TrainingProgress(2, 10, 30, 200, 5000.0, {"loss": 1500.0}, 12.0, 2**30)
        >>> f"epoch {event.epoch} of {event.epochs}, loss {event.losses['loss']:.1f}"
        'epoch 2 of 10, loss 1500.0'
    """

    epoch: int
    epochs: int
    step: int
    total_steps: int
    images_per_second: float
    losses: dict[str, float]
    seconds_left: float
    memory_bytes: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch's line of the history.

    Examples:
        >>> def show(event):  # a callback of genssl.train
        ...     if isinstance(event, EpochEnded):
        ...         print(event.record["epoch"], event.record["loss"])
        >>> show(EpochEnded({"epoch": 1, "loss": 1500.0}))
        1 1500.0
    """

    record: dict[str, Any]


@dataclass(frozen=True)
class Note:
    """A message to show.

    Examples:
        >>> Note("the images are digits: none is mirrored").text
        'the images are digits: none is mirrored'
    """

    text: str


Event = Loading | Started | TrainingProgress | EpochEnded | Note
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that shows nothing."""
