"""Terminal output: lines, tables, progress bars, and the confirmation before long trainings."""

import contextlib
import html
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genssl.environment import arguments, is_launched_by_torchrun, launched_rank
from genssl.errors import FAILED_RUN, UserError, printable
from genssl.eval.result import flatten

if TYPE_CHECKING:
    from genssl.eval.result import EvalResult
    from genssl.settings import Config
    from genssl.training.events import EpochEnded, Event, Listener, Started, TrainingProgress
    from genssl.training.options import Options

PLAIN_EVERY = 30.0  # seconds between plain lines of progress
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_RESULTS: ContextVar["list[EvalResult] | None"] = ContextVar("results", default=None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, no progress and no lines on stderr but warnings, questions and errors: `genssl --quiet`."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def echo(*lines: str, always: bool = False) -> None:
    """Print lines on stderr, in the main process only; a stderr on a full disk stops no work.

    Args:
        lines: under `quiet`, only those that begin with "warning" are printed.
        always: also where it is to be quiet.

    Raises:
        BrokenPipeError: its reader has ended.
    """
    if launched_rank() > 0:
        return
    if _QUIET.get() and not always:
        lines = tuple(line for line in lines if line.startswith("warning"))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        for line in lines:
            console.print(_text(line))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise


def is_live() -> bool:
    """Whether to draw on stderr: a terminal with a cursor; a notebook cell claims to be one and is not."""
    return is_terminal() and not _QUIET.get()


def is_terminal() -> bool:
    """Whether stderr is a terminal with a cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "JPY_PARENT_PID" not in os.environ


def _text(text: str) -> Text:
    """A line that is `printable`."""
    return Text(printable(text))


@contextlib.contextmanager
def collect_results() -> "Iterator[list[EvalResult]]":
    """Inside, commands put their results into this list instead of printing them."""
    results: list[EvalResult] = []
    token = _RESULTS.set(results)
    try:
        yield results
    finally:
        _RESULTS.reset(token)


def hand_over(result: "EvalResult") -> bool:
    """Give the result to a caller from Python, if there is one, who then shows it; whether there is."""
    results = _RESULTS.get()
    if results is not None:
        results.append(result)
    return results is not None


def is_rows(value: Any) -> bool:
    """Whether a value is a table: a list of mappings."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def stdout() -> Console:
    """The console for results; 240 columns wide where stdout is not a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def show_lines(*lines: str) -> None:
    """Print lines on stdout."""
    console = stdout()
    for line in lines:
        console.print(_text(line), soft_wrap=True)


def show_values(
    title: str,
    values: Mapping[str, Any],
    notes: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
) -> None:
    """Print names, values and units; nested mappings get dotted names, lists of mappings tables."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    tables = {name: value for name, value in values.items() if is_rows(value)}
    for name, value in flatten({name: value for name, value in values.items() if name not in tables}):
        if value is not None:
            unit = (units or {}).get(name, "")
            table.add_row(_text(name), _text(f"{format_value(value)} {unit}".rstrip()))
    console = stdout()
    console.print(_text(title), style="bold")
    console.print(table)
    for name, rows in tables.items():
        show_rows(name, rows)
    show_lines(*(f"note: {note}" for note in notes))


def format_value(value: Any) -> str:
    """A number to six digits, a list with commas."""
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return str(value)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A transient progress bar on a terminal; elsewhere a plain line at most every 30 s."""
    if is_live():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(printable(text), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start = last = time.monotonic()

    def plain(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            left = (last - start) * (total - done) / max(1, done)
            echo(f"{text}: {done:,} of {total:,}, about {readable_seconds(left)} left")

    yield plain


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table, one line per row; the names in the first row are the header."""
    table = Table(box=None, padding=(0, 2, 0, 2))
    for name in rows[0]:
        table.add_column(_text(name))
    for row in rows:
        table.add_row(*(_text("" if value is None else format_value(value)) for value in row.values()))
    console = stdout()
    console.print(_text(title), style="bold")
    console.print(table)


class TrainingScreen:
    """An event listener that shows the progress of a training."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live: Live | None = None
        self._last_line = 0.0  # time of the last plain line

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
        from genssl.training import events

        if self.quiet:
            return
        match event:
            case events.Loading(text=text, done=done, total=total):
                self._update(f"{text}: {done:,}" + (f" of {total:,}" if total else ""))
            case events.Started():
                self._lines(*describe_start(event))
            case events.TrainingProgress():
                self._show_progress(event)
            case events.EpochEnded():
                self._plain(describe_epoch(event))
            case events.Note(text=text):
                self._lines(text)

    def _show_progress(self, event: "TrainingProgress") -> None:
        if self._live is None:
            self._plain(describe_progress(event))
            return
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=event.total_steps, completed=event.step, width=24)
        table.add_row(bar, _text(describe_progress(event)))
        self._live.update(table)

    def _update(self, text: str) -> None:
        if self._live is None:
            self._plain(text)
        else:
            self._live.update(_text(text))

    def _plain(self, text: str) -> None:
        if self._live is None and time.monotonic() - self._last_line >= PLAIN_EVERY:
            self._last_line = time.monotonic()
            echo(text)

    def _lines(self, *lines: str) -> None:
        if self._live is None:
            echo(*lines)
            return
        for line in lines:
            self._live.console.print(_text(line), highlight=False, soft_wrap=True)


class NotebookScreen(TrainingScreen):
    """The progress of a training in a notebook cell: one line with a bar, which is replaced in place."""

    def __init__(self) -> None:
        super().__init__()
        from IPython.display import HTML, display

        self._html = HTML
        self._cell = display(HTML(""), display_id=True)

    def _show_progress(self, event: "TrainingProgress") -> None:
        bar = f'<progress value="{event.step}" max="{event.total_steps}"></progress> '
        self._cell.update(self._html(bar + html.escape(printable(describe_progress(event)))))

    def _update(self, text: str) -> None:
        self._cell.update(self._html(html.escape(printable(text))))


def screen_here(quiet: bool) -> TrainingScreen:
    """What shows a training where this runs: a notebook's cell, a terminal, or plain lines."""
    is_notebook = "JPY_PARENT_PID" in os.environ and importlib.util.find_spec("IPython") is not None
    return NotebookScreen() if is_notebook and not quiet else TrainingScreen(quiet=quiet)


def describe_start(event: "Started") -> tuple[str, str]:
    """The method, data and device of a training, and its folder, in two lines."""
    from genssl.run_info import parameters_text

    again = f", resumed at step {event.step:,}" if event.step else ""
    held_out = f", and {event.held_out:,} held out for validation" if event.held_out else ""
    parameters = parameters_text(event.parameters, event.all_parameters)
    return (
        f"training {event.method} ({parameters} parameters) on {event.data} "
        f"({event.images:,} images{held_out}), {event.epochs} epochs, {event.total_steps:,} steps, "
        f"{event.device}, {event.precision}{again}",
        f"run folder: {event.folder}",
    )


def describe_progress(event: "TrainingProgress") -> str:
    """Epoch, step, speed, loss terms, memory and time left."""
    losses = "  ".join(f"{name} {format_value(round(value, 4))}" for name, value in event.losses.items())
    return (
        f"epoch {event.epoch}/{event.epochs}  step {event.step:,}/{event.total_steps:,}  "
        f"{event.images_per_second:,.0f} images/s  {losses}  {event.memory_bytes / 2**30:.2f} GiB  "
        f"{readable_seconds(event.seconds_left)} left"
    )


def describe_epoch(event: "EpochEnded") -> str:
    """The numbers of an epoch, as text."""
    from genssl.settings import BOOKKEEPING

    record = {name: value for name, value in event.record.items() if value is not None}
    terms = [f"{name} {value:.5g}" for name, value in record.items() if name not in BOOKKEEPING]
    speed = f"{record['images_per_second']:,.0f} images/s, {readable_seconds(record['seconds'])}"
    return f"epoch {record['epoch']}: {', '.join(terms)} ({speed})"


def readable_seconds(seconds: float) -> str:
    """Seconds as text, e.g. "3 min 20 s"."""
    from genssl.training.signals import format_seconds

    return format_seconds(seconds)


def with_channels(config: "Config", quiet: bool) -> "Config":
    """The settings with as many channels as the data have: one where all training images are gray.

    Raises:
        UserError: the data cannot be read.
    """
    from genssl.data.loading import channels_of
    from genssl.training.events import Loading

    with TrainingScreen(quiet=quiet or launched_rank() > 0) as screen:
        channels = channels_of(config, lambda *progress: screen(Loading(*progress)))
    return config.updated({"channels": channels})


LONG = 30 * 60.0  # seconds
FEW = 20_000  # images of 32 pixels, over all epochs: too few for a trial to pay
SMALLER = 10 * 60.0  # seconds that the smaller command may train
PIXELS = 32  # a side


def confirm_long(configs: Sequence["Config"], options: "Options", option: str = "--set") -> None:
    """Where `configs` take long to train, print the time and a smaller command; on a terminal, ask.

    Without a terminal the command continues. A process of a multi-process run does nothing.

    Args:
        configs: one per training.
        options: of the trainings; max_minutes limits each of them.
        option: the option by which this command takes arbitrary settings.

    Raises:
        UserError: the answer was not yes, or the data or the device is not available.
    """
    most = LONG if options.max_minutes is None else 60 * options.max_minutes
    if is_launched_by_torchrun() or most * len(configs) < LONG:
        return
    with TrainingScreen() as screen:
        seconds = _expected(configs, options, screen)
        if seconds < LONG:
            return
        smaller = _smaller(configs, options, option, screen)
    trainings = "this training" if len(configs) == 1 else f"these {len(configs)} trainings"
    confirm(f"expected: about {readable_seconds(seconds)} for {trainings}", smaller)


def confirm(*lines: str) -> None:
    """Print lines on what takes long; on a terminal, ask whether to start.

    Raises:
        UserError: the answer was not yes.
    """
    echo(*lines, always=True)
    if sys.stdin.isatty() and is_terminal() and not agreed("Start?"):
        raise UserError("not started; --yes starts without asking", FAILED_RUN)


def agreed(question: str) -> bool:
    """Ask on the terminal; whether the answer is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _expected(configs: Sequence["Config"], options: "Options", listen: "Listener") -> float:
    """Seconds of all trainings; 0 for few images. Configs that differ only in their seed are timed once."""
    from genssl.training.estimate import Pace, count_images, pace

    seen = [config.epochs * count_images(config, listen) for config in configs]
    if sum(n * (config.image_size / PIXELS) ** 2 for n, config in zip(seen, configs, strict=True)) < FEW:
        return 0.0
    paces: dict[str, Pace] = {}
    total = 0.0
    for config, images in zip(configs, seen, strict=True):
        key = config.updated({"seed": 0}).to_json()
        if key not in paces:
            paces[key] = pace(config, options, listen)
        seconds = images / paces[key].images_per_second
        total += seconds if options.max_minutes is None else min(seconds, 60 * options.max_minutes)
    return total


def _smaller(configs: Sequence["Config"], options: "Options", option: str, listen: "Listener") -> str:
    """The same command with a smaller network, fewer epochs and images, and its expected time."""
    from genssl.studies.plan import fit
    from genssl.training.estimate import pace

    first = configs[0]
    changes = {name: value for name, value in first.on_a_cpu.items() if getattr(first, name) != value}
    trial = pace(first.updated(first.with_recipe(changes)), options, listen)
    length = fit(trial.images_per_second, trial.images, first.epochs, SMALLER / len(configs))
    keys = {*changes, "epochs", "limit", "batch_size"}
    words = ["genssl", *_without(arguments(), {"--epochs", "--limit", "--batch-size"}, option, keys)]
    for name, value in changes.items():
        words += [option, f"{name}={'none' if value is None else value}"]
    words += ["--epochs", str(length.epochs)]
    if (limit := length.limit or first.limit) is not None:
        words += ["--limit", str(limit)]
    return f"smaller, about {readable_seconds(length.seconds * len(configs))}: {shlex.join(words)}"


def _without(words: Iterable[str], options: set[str], setting: str, keys: set[str]) -> list[str]:
    """A command line without some options and their values, and without some keys of `setting` KEY=VALUE."""
    from genssl.settings import RENAMED, SHORT

    remaining: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name not in {*options, setting}:
            remaining.append(word)
            continue
        value = value if equals else left.pop(0)
        key = value.partition("=")[0].strip()
        if name == setting and (SHORT | RENAMED).get(key, key) not in keys:
            remaining += [name, value]
    return remaining
