"""Reconstruction error, instance retrieval (top-1), and the noise level at which half is lost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genssl.metrics.knn import distances, nearest
from genssl.runtime import generator, to_float64

PEAK = 2.0  # of images in [-1, 1]
SAME = 1 + 1e-5  # distances that differ by less are equal: float32 over thousands of dimensions
HALF = 0.5
INTERVAL = (0.025, 0.975)


def mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the dimensions of each pair of images (B, ...): (B,) float64.

    Examples:
        >>> mean_squared_error(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 3.0]]))
        tensor([3.], dtype=torch.float64)
    """
    return (to_float64(x) - to_float64(y)).square().flatten(1).mean(1)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1], 10 log10(4 / mse), in dB; at most 120.

    Examples:
        >>> psnr(torch.tensor([0.04, 0.0])).round().tolist()
        [20.0, 120.0]
    """
    return 10 * torch.log10(PEAK**2 / mse.clamp(min=PEAK**2 * 1e-12))


def is_top1_match(candidates: Tensor, restored: Tensor, index: Tensor) -> Tensor:
    """Whether the nearest candidate of a reconstruction is its original (instance retrieval): (B,) bool.

    Ties count as matches: a duplicate of the original among the candidates is at the same distance.

    Args:
        candidates: (N, D), the originals among them; of any real type.
        restored: the reconstructions, (B, D).
        index: row of the original of each among the candidates, (B,) int64.

    Examples:
        >>> candidates, restored = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.25], [0.25]])
        >>> is_top1_match(candidates, restored, torch.tensor([0, 1]))
        tensor([ True, False])
    """
    smallest, _ = nearest(candidates, restored)
    return distances(candidates, restored, index) <= smallest * SAME


@dataclass(frozen=True)
class Crossing:
    """The noise level t* at which an accuracy falls half-way, with a bootstrap interval over queries.

    Attributes:
        level: t*; None: the accuracy stays above.
        low, high: the 2.5 and 97.5 percentiles of the resamples; None: beyond the last level.
        not_reached: fraction of the resamples without a crossing.
    """

    level: float | None
    low: float | None
    high: float | None
    not_reached: float


def half_crossing(
    levels: Sequence[int],
    matched: Tensor,
    resamples: int = 1000,
    seed: int = 0,
    chance: float | None = None,
) -> Crossing:
    """Where the fraction of matched queries falls half-way, see `crossings`.

    Args:
        levels: L noise levels above 0, increasing.
        matched: (L, Q) bool.
        resamples: number of bootstrap samples; a query is drawn with all its levels.
        seed: random seed of the bootstrap.
        chance: as in `crossings`.

    Raises:
        ValueError: the levels do not rise from above 0, or `matched` is not (L, Q).

    Examples:
        >>> matched = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
        >>> half_crossing([10, 20, 30], matched).level
        20.0
    """
    if matched.ndim != 2 or len(levels) != len(matched) or 0 in matched.shape:
        raise ValueError(f"matched must be ({len(levels)}, queries), not {list(matched.shape)}")
    if any(a >= b for a, b in zip([0, *levels], levels, strict=False)):
        raise ValueError(f"levels must rise from above 0, not {list(levels)}")
    matched = matched.cpu().double()
    queries = matched.shape[1]
    drawn = torch.randint(queries, (resamples, queries), generator=generator(seed, "eval", resamples))
    times = torch.zeros(resamples, queries).scatter_add_(1, drawn, torch.ones(resamples, queries))
    resampled = crossings(levels, times.double() @ matched.T / queries, chance)
    low, high = (_quantile(resampled, share) for share in INTERVAL)
    level = _finite(float(crossings(levels, matched.mean(1)[None], chance)))
    return Crossing(level, low, high, float(resampled.isinf().double().mean()))


def crossings(levels: Sequence[int], shares: Tensor, chance: float | None = None) -> Tensor:
    """The first level at which a fraction is half-way down or less, linearly interpolated; inf where none is.

    Args:
        levels: L, rising from above 0.
        shares: (R, L) float64.
        chance: what the fraction falls to in the end: half-way is between the first level's fraction, which
            must be larger, and chance. None: half-way is one half, and the curve starts at (0, 1), since
            without noise every query is matched.

    Returns:
        (R,) float64.

    Examples:
        >>> shares = torch.tensor([[1.0, 0.0], [1.0, 0.75]], dtype=torch.float64)
        >>> crossings([10, 20], shares)
        tensor([15., inf], dtype=torch.float64)
    """
    at = torch.tensor(levels, dtype=torch.float64)
    if chance is None:
        at, shares = torch.cat([at.new_zeros(1), at]), torch.cat([shares.new_ones(len(shares), 1), shares], 1)
        target = shares.new_full((len(shares),), HALF)
    else:
        target = (shares[:, 0] + chance) / 2
    is_lost = shares <= target[:, None] + 1e-12  # (R, L)
    # A curve that starts at chance or below has nothing to lose
    is_reached = is_lost.any(1) & ~is_lost[:, 0]
    # The first level at which half are lost; where there is none, what is computed is replaced by inf below
    right = is_lost.int().argmax(1)
    left, rows = (right - 1).clamp(min=0), torch.arange(len(shares))
    # The straight line from (level_left, share_left) to (level_right, share_right) at the target
    fraction = (shares[rows, left] - target) / (shares[rows, left] - shares[rows, right])
    crossings = at[left] + fraction * (at[right] - at[left])
    return torch.where(is_reached, crossings, torch.inf)


def _quantile(resampled: Tensor, share: float) -> float | None:
    # The value of a resample, not between two: one of them may be infinite
    return _finite(float(resampled.quantile(share, interpolation="nearest")))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
