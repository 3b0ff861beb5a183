"""Random numbers for a batch of scenes: one row per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genssl import runtime


@dataclass(frozen=True)
class BatchRNG:
    """Draws for `count` images at a time from one generator, so that the order of the calls is the stream."""

    count: int
    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high): (count, *shape)."""
        return low + (high - low) * runtime.uniform((self.count, *shape), self.generator)

    def normal(self, mean: float, deviation: float, *shape: int) -> Tensor:
        """Normal, cut at two deviations so that no image is an outlier nobody can read: (count, *shape)."""
        return mean + deviation * runtime.normal((self.count, *shape), self.generator).clamp(-2, 2)

    def lognormal(self, median: float, spread: float, *shape: int) -> Tensor:
        """The median times e to a normal of deviation `spread`, cut like `normal`: (count, *shape)."""
        return median * self.normal(0, spread, *shape).exp()

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Bool, true with this probability: (count, *shape)."""
        return runtime.uniform((self.count, *shape), self.generator) < probability

    def choice(self, weights: Sequence[float], *shape: int) -> Tensor:
        """Index into `weights`, drawn in proportion to them: int64 (count, *shape)."""
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        point = edges[-1] * runtime.uniform((self.count, *shape), self.generator).double()
        return torch.bucketize(point, edges[:-1], right=True)
