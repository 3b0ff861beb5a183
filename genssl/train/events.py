"""What a run tells whoever listens: the loop never prints, and the command decides how to show it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Loading:
    """Data is being fetched or converted; `total` is None while it is unknown."""

    text: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Started:
    """The run folder exists and the first step is about to be taken."""

    folder: Path
    method: str
    parameters: int
    data: str
    images: int
    epochs: int
    total_steps: int
    step: int  # above zero in a resumed run
    device: str
    precision: str


@dataclass(frozen=True)
class TrainingProgress:
    """Where the run stands; sent about once a second."""

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
    """A sentence for the person watching."""

    text: str


Event = Loading | Started | TrainingProgress | EpochEnded | Note
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that shows nothing."""
