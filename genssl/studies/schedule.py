"""How a budget of time is divided over the steps of a plan, again before every step.

A training has a clock, which ends it; an evaluation takes fewer images. What cannot be shortened is kept free
for the steps to come, and what is left beyond it is divided in the proportions of the first planning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

LEAST_TRAINING = 10.0  # seconds that a training is given at least
PRIOR = 10.0  # seconds at the expected speed, counted before anything was measured


@dataclass(frozen=True)
class Size:
    """An option of an evaluation that says how many images it takes.

    Attributes:
        option: e.g. --limit.
        full: images where there is time enough.
        least: images below which the result means little.
    """

    option: str
    full: int
    least: int

    def at(self, share: float) -> int:
        """Images for a share of the time that all of them take."""
        return min(self.full, max(self.least, round(self.full * share)))


@dataclass(frozen=True)
class Cost:
    """What a step is expected to take.

    Attributes:
        fixed: seconds whatever its size.
        scalable: further seconds at full size; of a training, none.
        planned_seconds: further seconds in the first planning.
        sizes: options that make an evaluation smaller.
        has_clock: a training, which --max-minutes ends.
        group: trainings of one group are compared: a later one has no more time than an earlier one.
    """

    fixed: float
    scalable: float = 0.0
    planned_seconds: float = 0.0
    sizes: tuple[Size, ...] = ()
    has_clock: bool = False
    group: str = ""

    def least(self) -> float:
        """Seconds beyond `fixed` that it takes at its smallest."""
        if self.has_clock:
            return LEAST_TRAINING
        return self.scalable * max((size.least / size.full for size in self.sizes), default=1.0)

    def smallest(self) -> float:
        """Seconds that it takes at its smallest."""
        return self.fixed + self.least()

    def most(self) -> float:
        """Seconds beyond `fixed` that it takes at its full size."""
        return max(LEAST_TRAINING, self.planned_seconds) if self.has_clock else self.scalable

    def with_share(self, share: float) -> Self:
        """An evaluation that is planned with this share of what its full size takes beyond its smallest."""
        if self.has_clock:
            return self
        return replace(self, planned_seconds=self.least() + share * (self.scalable - self.least()))


def divide(costs: Sequence[Cost], left: float) -> tuple[float, float]:
    """How a plan fits into `left` seconds: (share of the planned trainings, share of full evaluations).

    Evaluations become smaller first, and then trainings shorter; both shares are 0 to 1.
    """
    free = left - sum(cost.smallest() for cost in costs)
    trainings = sum(cost.most() - cost.least() for cost in costs if cost.has_clock)
    evaluations = sum(cost.most() - cost.least() for cost in costs if not cost.has_clock)
    if free < trainings:
        return max(0.0, free) / max(1e-9, trainings), 0.0
    return 1.0, min(1.0, (free - trainings) / max(1e-9, evaluations))


def seconds_for(costs: Sequence[Cost], left: float, pace: float) -> float:
    """Seconds beyond `fixed` for the first of the steps that are left.

    Args:
        costs: of all steps that are left, the next one first.
        left: seconds until the end of the budget; may be negative.
        pace: seconds that a step takes for each second that it was expected to take.
    """

    def extra(cost: Cost) -> float:
        return max(0.0, cost.planned_seconds - cost.least()) * (1.0 if cost.has_clock else pace)

    # a clock goes by seconds, however slow the machine is
    smallest = [pace * cost.fixed + cost.least() * (1.0 if cost.has_clock else pace) for cost in costs]
    free = max(0.0, left - sum(smallest))
    share = extra(costs[0]) / max(1e-9, sum(map(extra, costs)))
    return smallest[0] - pace * costs[0].fixed + free * share


def pace_of(expected: Sequence[float], measured: Sequence[float]) -> float:
    """Seconds taken for each second expected, over the steps so far."""
    return (PRIOR + sum(measured)) / (PRIOR + sum(expected))


def with_option(words: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """A command line in which `option` has this value."""
    if option not in words:
        return (*words, option, value)
    i = words.index(option) + 1
    return (*words[:i], value, *words[i + 1 :])
