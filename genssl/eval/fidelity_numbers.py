"""The numbers of `fidelity` for two groups of images, each with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genssl.metrics.features import Tick
from genssl.metrics.fidelity import frechet_distance, kernel_distance, prdc, squared_mmd
from genssl.metrics.sharpness import variety
from genssl.runtime import generator

PERCENT = (0.025, 0.975)
SUBSETS, LARGEST_SUBSET = 100, 1000  # of the kernel distance
SHARES = {"precision", "recall", "coverage", "authenticity"}  # from 0 to 1


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        resamples: halves drawn for the intervals; 0: no intervals.
        seed: of the subsets and the halves.
        batch_size: images encoded at a time.
    """

    neighbours: int = 5
    resamples: int = 100
    seed: int = 0
    batch_size: int = 256


@dataclass(frozen=True)
class Group:
    """Images that are measured together.

    Attributes:
        features: (N, D).
        sharpness: (N,).
        authentic: (N,) bool, which of them are no copies of training images; None: not looked at.
    """

    features: Tensor
    sharpness: Tensor
    authentic: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, index: slice | Tensor) -> "Group":
        """Some of the images."""
        authentic = None if self.authentic is None else self.authentic[index]
        return Group(self.features[index], self.sharpness[index], authentic)

    def half(self, draw: torch.Generator) -> "Group":
        """Half of the images, drawn without replacement."""
        order = torch.randperm(len(self), generator=draw)
        return self.rows(order[: len(self) // 2].to(self.features.device))


@dataclass(frozen=True)
class Number:
    """One measure.

    Attributes:
        value: of all the images.
        low, high: of its 95 % interval; None: there is none.
    """

    value: float
    low: float | None = None
    high: float | None = None


def measured(real: Group, own: Group, settings: Settings, tick: Tick) -> tuple[dict[str, Number], float]:
    """Every measure of `own` by name, and the deviation of the kernel distance over its subsets."""
    values = numbers(real, own, settings.neighbours)
    size = subset_size(real, own)
    mean, deviation = kernel_distance(real.features, own.features, SUBSETS, size, seed=settings.seed)
    values["kernel_distance"] = mean
    halves = []
    for place in range(settings.resamples):
        draw = generator(settings.seed, "eval", place)
        halves.append(numbers(real.half(draw), own.half(draw), settings.neighbours))
        tick(place + 1, settings.resamples)
    return {name: _with_interval(name, value, halves) for name, value in values.items()}, deviation


def numbers(real: Group, own: Group, neighbours: int) -> dict[str, float]:
    """The measures by name, the kernel distance from all pairs."""
    found = {
        "frechet_distance": frechet_distance(real.features, own.features),
        "kernel_distance": squared_mmd(real.features, own.features),
        **prdc(real.features, own.features, neighbours)._asdict(),
    }
    if own.authentic is not None:
        found["authenticity"] = float(own.authentic.double().mean())
    return found | {"sharpness": float(own.sharpness.mean()), "variety": variety(own.features)}


def subset_size(real: Group, own: Group) -> int:
    """The size of the kernel distance's subsets: a half at most, so that they differ."""
    return min(LARGEST_SUBSET, len(real) // 2, len(own) // 2)


def _with_interval(name: str, value: float, halves: Sequence[Mapping[str, float]]) -> Number:
    if not halves:
        return Number(value)
    low, high = interval(value, torch.tensor([half[name] for half in halves], dtype=torch.float64))
    return Number(value, max(0.0, low), min(1.0, high)) if name in SHARES else Number(value, low, high)


def interval(value: float, resampled: Tensor) -> tuple[float, float]:
    """95 % of what random halves of the images gave (R,), moved so that its mean is `value`.

    Halves drawn without replacement spread as new images of the whole number would (the delete-d jackknife of
    Shao and Wu 1989, with d = N / 2), and hold no image twice: the repeats of a bootstrap would be
    neighbours at no distance. Being fewer, they are biased, which the move takes away.
    """
    ends = (resampled - resampled.mean()).quantile(torch.tensor(PERCENT, dtype=torch.float64))
    return value + float(ends[0]), value + float(ends[1])
