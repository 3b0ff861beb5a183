"""How a training run is shown: a live line on a terminal, a plain line at most every 30 s elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genssl.commands.screen import PLAIN_EVERY, is_live, readable, say

if TYPE_CHECKING:
    from genssl.train.events import EpochEnded, Event, Progress, Started

HIDDEN = {"epoch", "step", "seconds", "learning_rate", "images_per_second"}


class TrainingScreen:
    """Listens to a run and shows it."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live: Live | None = None
        self._told = 0.0  # when the last plain line was written

    def __enter__(self) -> Self:
        if is_live() and not self.quiet:
            self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Show one event."""
        from genssl.train import events

        if self.quiet:
            return
        match event:
            case events.Loading(text=text, done=done, total=total):
                self._update(f"{text}: {done:,}" + (f" of {total:,}" if total else ""))
            case events.Started():
                self._line(describe_start(event))
            case events.Progress():
                self._show_progress(event)
            case events.EpochEnded():
                self._plain(describe_epoch(event))
            case events.Note(text=text):
                self._line(text)

    def _show_progress(self, event: "Progress") -> None:
        if self._live is None:
            self._plain(describe_progress(event))
            return
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=event.total_steps, completed=event.step, width=24)
        table.add_row(bar, Text(describe_progress(event)))
        self._live.update(table)

    def _update(self, text: str) -> None:
        if self._live is None:
            self._plain(text)
        else:
            self._live.update(Text(text))

    def _plain(self, text: str) -> None:
        if self._live is None and time.monotonic() - self._told >= PLAIN_EVERY:
            self._told = time.monotonic()
            say(text)

    def _line(self, text: str) -> None:
        if self._live is None:
            say(text)
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_start(event: "Started") -> str:
    """What is trained, on what, where, and where to."""
    again = f", resumed at step {event.step:,}" if event.step else ""
    return (
        f"training {event.method} ({event.parameters:,} parameters) on {event.data} "
        f"({event.images:,} images), {event.epochs} epochs, {event.total_steps:,} steps, "
        f"{event.device}, {event.precision}{again}\nrun folder: {event.folder}"
    )


def describe_progress(event: "Progress") -> str:
    """Epoch, step, speed, loss terms, memory and time left."""
    losses = "  ".join(f"{name} {readable(round(value, 4))}" for name, value in event.losses.items())
    return (
        f"epoch {event.epoch}/{event.epochs}  step {event.step:,}/{event.total_steps:,}  "
        f"{event.images_per_second:,.0f} images/s  {losses}  {event.memory_bytes / 2**30:.2f} GiB  "
        f"{readable_seconds(event.seconds_left)} left"
    )


def describe_epoch(event: "EpochEnded") -> str:
    """An epoch's numbers."""
    record = event.record
    terms = [
        f"{name} {value:.5g}" for name, value in record.items() if name not in HIDDEN and value is not None
    ]
    speed = f"{record['images_per_second']:,.0f} images/s, {readable_seconds(record['seconds'])}"
    return f"epoch {record['epoch']}: {', '.join(terms)} ({speed})"


def readable_seconds(seconds: float) -> str:
    """Seconds as a person says them."""
    from genssl.train.sitting import readable_time

    return readable_time(seconds)
