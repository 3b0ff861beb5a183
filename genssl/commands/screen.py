"""What is shown: to a person on stderr, results on stdout; plain lines where there is no terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genssl.invocation import rank

PLAIN_EVERY = 30.0  # seconds between plain lines of progress


def say(text: str) -> None:
    """A line for the person watching, on stderr; of several processes the first one says it."""
    if rank() == 0:
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def is_live() -> bool:
    """Whether a line can be drawn over; the cell of a notebook calls itself a terminal and is none."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "JPY_PARENT_PID" not in os.environ


def is_rows(value: Any) -> bool:
    """Whether a value is a table of its own: a list of mappings."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def results() -> Console:
    """Where results go: stdout, as wide as they are where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def show_values(title: str, values: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """A table of names and numbers on stdout; nested mappings as dotted names, lists of them as tables."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    tables = {name: value for name, value in values.items() if is_rows(value)}
    for name, value in flatten({name: value for name, value in values.items() if name not in tables}):
        if value is not None:
            table.add_row(Text(name), Text(readable(value)))
    console = results()
    console.print(title, style="bold", markup=False)
    console.print(table)
    for name, rows in tables.items():
        show_rows(name, rows)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def readable(value: Any) -> str:
    """A number to six digits, a list with commas."""
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    return str(value)


@contextlib.contextmanager
def ticking(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal that goes when it is done; elsewhere a plain line at most every 30 s."""
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
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def plain(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            say(f"{text}: {done} of {total}")

    yield plain


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with one line a row on stdout; the first row's names are the header."""
    table = Table(box=None, padding=(0, 2, 0, 2))
    for name in rows[0]:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text("" if value is None else readable(value)) for value in row.values()))
    console = results()
    console.print(title, style="bold", markup=False)
    console.print(table)
