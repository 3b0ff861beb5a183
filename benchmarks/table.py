"""Tables of one side beside another: a row a measurement."""

import statistics
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.timing import Pair


def versions(*packages: str) -> str:
    """The installed versions of packages, for beside a measurement."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def print_head(what: str, theirs: str, ratio: str = "ratio") -> None:
    """The first line of a table of pairs."""
    print(f"{what:<34}{theirs:>14}{'genssl':>14}  {ratio} (pairs)")


def print_rates(what: str, pair: Pair) -> None:
    """Images a second of both sides, and how many times theirs ours is."""
    theirs, ours = statistics.median(pair.theirs), statistics.median(pair.ours)
    ratios = [our / their for our, their in zip(pair.ours, pair.theirs, strict=True)]
    print(f"{what:<34}{theirs:>14,.1f}{ours:>14,.1f}  {spread(ratios)}", flush=True)


def print_seconds(what: str, pair: Pair, count: int) -> None:
    """Seconds for `count` of what the pair counts, and how many times their time ours takes."""
    theirs, ours = (count / statistics.median(rates) for rates in (pair.theirs, pair.ours))
    ratios = [their / our for our, their in zip(pair.ours, pair.theirs, strict=True)]
    print(f"{what:<34}{theirs:>14.2f}{ours:>14.2f}  {spread(ratios)}", flush=True)
