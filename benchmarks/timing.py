"""Timing two things in turn, so that a machine whose speed drifts is fair to both."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Images a second of two sides, measured in turn."""

    theirs: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """The median over the pairs of ours / theirs."""
        return statistics.median(our / their for our, their in zip(self.ours, self.theirs, strict=True))

    def line(self, what: str) -> str:
        """One line of a table."""
        theirs, ours = statistics.median(self.theirs), statistics.median(self.ours)
        spread = [our / their for our, their in zip(self.ours, self.theirs, strict=True)]
        return (
            f"{what}: plain {theirs:,.0f}, genssl {ours:,.0f} images/s; "
            f"ratio {self.ratio:.2f} (pairs {min(spread):.2f} to {max(spread):.2f})"
        )


def in_turn(theirs: Callable[[], float], ours: Callable[[], float], rounds: int = 5) -> Pair:
    """Measure both `rounds` times in turn after one warm-up each; each call returns images a second."""
    theirs(), ours()
    pairs = [(theirs(), ours()) for _ in range(rounds)]
    return Pair([first for first, _ in pairs], [second for _, second in pairs])
