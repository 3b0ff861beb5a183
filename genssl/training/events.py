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
    """The run folder exists and the first step is about to be taken."""

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
    """Progress of training; sent about once a second."""

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
    """An epoch's line of the history."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Note:
    """A message to show."""

    text: str


Event = Loading | Started | TrainingProgress | EpochEnded | Note
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that shows nothing."""
