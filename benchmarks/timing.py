"""Timing two things in turn, so that a machine whose speed drifts is fair to both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIDES = ("peer", "peer_tuned", "genssl")


@dataclass(frozen=True)
class Pair:
    """Images a second of two sides, measured in turn."""

    theirs: list[float]
    ours: list[float]


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
