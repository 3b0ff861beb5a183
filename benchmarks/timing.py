"""Timing two things in turn, so that a machine whose speed drifts is fair to both."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIDES = ("peer", "peer, tuned", "genssl")


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


def all_in_turn(sides: Mapping[str, Callable[[], float]], rounds: int = 5) -> dict[str, list[float]]:
    """Measure every side `rounds` times in turn after one warm-up each; each call returns images a second."""
    for measure in sides.values():
        measure()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            rates[name].append(measure())
    return rates


def in_turn(theirs: Callable[[], float], ours: Callable[[], float], rounds: int = 5) -> Pair:
    """Measure both `rounds` times in turn after one warm-up each; each call returns images a second."""
    rates = all_in_turn({"theirs": theirs, "ours": ours}, rounds)
    return Pair(rates["theirs"], rates["ours"])
