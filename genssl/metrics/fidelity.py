"""How close generated images are to real ones: distances between two sets of features, and their overlap."""

from typing import NamedTuple

import torch
from torch import Tensor

from genssl.metrics.knn import QUERIES, top
from genssl.metrics.linalg import mean_and_covariance
from genssl.metrics.memorization import find_nearest_training
from genssl.runtime import generator, to_float64

ROWS = 1024  # rows of a kernel matrix that are held at once, in float64
# Two products of the same vectors differ by their rounding. A squared distance that exceeds a radius by less
# than this share of the squared norms counts as equal: else chance would say whether a copy is a copy.
ROUNDING = 1e-6


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mu - mu'|^2 + Tr(S + S' - 2 (S S')^(1/2)): FID, with features of one's own choice.

    Heusel et al. 2017, equation 6 (Dowson and Landau 1982). With factors F F^T = S and G G^T = S', the
    trace of the root is the sum of the singular values of F^T G: their squares are the eigenvalues of
    S^(1/2) S' S^(1/2). The usual way, the matrix root of S S', loses half of the digits where a covariance
    is singular, and may turn complex. Float64. Covariances are divided by N - 1. Fewer samples have a larger
    distance: never compare two sizes.

    Args:
        x: features (N, D) of any real type, N at least 2.
        y: features (M, D), M at least 2.

    Returns:
        The distance, in squared units of the features; 0 up to rounding for equal sets, never below 0.

    Raises:
        ValueError: fewer than two rows, or the shapes differ.

    Examples:
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 0.5), 3)  # the squared distance of the means, 8 * 0.5^2
        2.0
    """
    _check(x, y, 2)
    (mean, factor), (other_mean, other_factor) = _moments(x), _moments(y)
    # Tr (S S')^(1/2)
    trace_root = torch.linalg.svdvals(factor.T @ other_factor).sum()
    mean_term = (mean - other_mean).square().sum()
    # Tr S = |F|^2, the sum of its squared entries
    trace, other_trace = factor.square().sum(), other_factor.square().sum()
    return max(0.0, float(mean_term + trace + other_trace - 2 * trace_root))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,), and a factor F (D, min(N, D)) of the covariance, F F^T = S; float64."""
    rows, dimensions = x.shape
    # With no more rows than dimensions the centered rows themselves are such a factor
    if rows <= dimensions:
        x = to_float64(x)
        mean = x.mean(0)
        return mean, (x - mean).T / (rows - 1) ** 0.5
    mean, covariance = mean_and_covariance(x)
    values, vectors = torch.linalg.eigh(covariance * (rows / (rows - 1)))
    return mean, vectors * values.clamp(min=0).sqrt()


def kernel_distance(
    x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, *, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy over random subsets: KID, with features of one's own choice.

    Binkowski et al. 2018, section 3: the unbiased estimate, so that it may be below 0, and its expectation
    does not depend on the number of samples.

    Args:
        x: features (N, D) of any real type, N at least 2.
        y: features (M, D), M at least 2.
        subsets: how many, each drawn without replacement from both sets.
        size: rows in each; all of them where a set has fewer.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets. The deviation belongs to the subsets' size and is 0
        where each holds everything; it is no standard error of the mean.

    Raises:
        ValueError: fewer than two rows, no subset, or the shapes differ.

    Examples:
        >>> x, like_x, other = torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(0))
        >>> near, _ = kernel_distance(x, like_x, subsets=10, size=100)
        >>> far, _ = kernel_distance(x, other + 1, subsets=10, size=100)
        >>> far > 10 * abs(near)
        True
    """
    _check(x, y, 2)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets must be at least 1 and their size at least 2, not {subsets}, {size}")
    estimates = []
    for i in range(subsets):
        random = generator(seed, "eval", i)
        x_rows, y_rows = (torch.randperm(len(part), generator=random)[:size] for part in (x, y))
        estimates.append(_squared_mmd(x[x_rows.to(x.device)], y[y_rows.to(y.device)]))
    values = torch.stack(estimates)
    return float(values.mean()), float(values.std(correction=0))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD^2 (Gretton et al. 2012, equation 3) with k(x, y) = (x.y / D + 1)^3.

    x: (N, D), y: (M, D), at least two rows each; float64, in bounded memory.

    Examples:
        >>> squared_mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
        9.5
    """
    _check(x, y, 2)
    return float(_squared_mmd(x, y))


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """On the device, so that many of them are read at once."""
    n, m = len(x), len(y)
    # Without the pairs of a row with itself, which would bias the estimate upwards
    within_x = _kernel_sum(x, x, skip_diagonal=True) / (n * (n - 1))
    within_y = _kernel_sum(y, y, skip_diagonal=True) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor, *, skip_diagonal: bool = False) -> Tensor:
    """The sum of k(x, y) over all pairs; `skip_diagonal`: x is y, and no row is paired with itself."""
    columns = to_float64(y).T
    total = columns.new_zeros(())
    # A few rows at a time: all N x M values of the kernel would not fit into memory
    for part in x.split(ROWS):
        total += (to_float64(part) @ columns / x.shape[1] + 1).pow(3).sum()
    if skip_diagonal:
        # k(x, x) = (|x|^2 / D + 1)^3
        norms = to_float64(x).square().sum(1)
        total -= (norms / x.shape[1] + 1).pow(3).sum()
    return total


class PRDC(NamedTuple):
    """Overlap of two sets.

    Attributes:
        precision: the share of the samples within some real image's ball.
        recall: the share of the real images within some sample's ball.
        density: in how many real balls a sample lies, over k; about 1 for real images, may exceed 1.
        coverage: the share of the real balls that hold a sample.

    Examples:
        >>> overlap = PRDC(precision=0.75, recall=0.5, density=0.9, coverage=0.6)
        >>> overlap.recall
        0.5
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> PRDC:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball around an image reaches to its k-th nearest neighbor in its own set, itself not counted. Balls
    are closed, as in the former paper, so that copies of the real images have precision, recall and
    coverage 1 and density (k + 1) / k. Float32 around the real images' mean, 512 rows at a time.

    Args:
        real: features (N, D) of any real type.
        fake: features (M, D).
        k: below both N and M.

    Raises:
        ValueError: k is out of range, or the shapes differ.

    Examples:
        >>> real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> fake = torch.tensor([[0.25], [0.5], [0.75]])  # none near 10
        >>> prdc(real, fake, k=1)
        PRDC(precision=1.0, recall=0.5, density=2.0, coverage=0.5)
    """
    _check(real, fake, 1)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k must be from 1 to {min(len(real), len(fake)) - 1}, not {k}")
    with torch.autocast(real.device.type, enabled=False):
        # Distances do not depend on the origin, their rounding does: around the mean the norms are smallest
        center = real.mean(0, dtype=torch.float32)
        return _overlap(real.float() - center, fake.float() - center, k)


def _overlap(real: Tensor, fake: Tensor, k: int) -> PRDC:
    norms, fake_norms = ((1 - ROUNDING) * part.square().sum(1) for part in (real, fake))
    radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)
    counts, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = recalled.clone()
    for start in range(0, len(fake), QUERIES):
        rows = slice(start, start + QUERIES)
        # |f - r|^2 = |r|^2 - 2 f.r + |f|^2, (q, N): one product serves all four numbers
        squares = torch.addmm(norms, fake[rows], real.T, alpha=-2).add_(fake_norms[rows, None])
        within = squares <= radii
        counts.append(within.sum(1))
        covered |= within.any(0)
        recalled |= (squares <= fake_radii[rows, None]).any(0)
    balls_around = torch.cat(counts)  # (M,), in how many real balls each sample lies
    return PRDC(
        precision=float((balls_around > 0).cpu().double().mean()),
        recall=float(recalled.cpu().double().mean()),
        density=float(balls_around.cpu().double().mean() / k),
        coverage=float(covered.cpu().double().mean()),
    )


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """The squared distance from each row of x (N, D), float32, to its k-th nearest other row: (N,)."""
    norms = x.square().sum(1)
    parts = []
    for start in range(0, len(x), QUERIES):
        part = x[start : start + QUERIES]
        # |q|^2 - d^2, which is largest for the nearest rows; the row itself is left out
        nearness = torch.addmm(norms, part, x.T, alpha=2, beta=-1)
        nearness.diagonal(start).fill_(-torch.inf)
        parts.append(norms[start : start + QUERIES] - top(nearness, k)[0].amin(1))
    return torch.cat(parts).clamp_(min=0)


def authenticity(train: Tensor, fake: Tensor) -> float:
    """The share of the samples that are no copies of training images (Alaa et al. 2022, section 3.3).

    A sample is a copy where it is as near to its nearest training image as that one's nearest neighbor
    among the training images, or nearer. New real images have a share well below 1: look at theirs, too.

    Args:
        train: features (N, D) of any real type, N at least 2.
        fake: features (M, D).

    Raises:
        ValueError: fewer than two training images, no sample, or the shapes differ.

    Examples:
        >>> train = torch.tensor([[0.0], [1.0], [10.0]])
        >>> authenticity(train, torch.tensor([[0.0], [5.0]]))  # a copy, and an image that is none
        0.5
    """
    return float(find_nearest_training(train, fake).authentic.cpu().double().mean())


def _check(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        shapes = f"{list(x.shape)}, {list(y.shape)}"
        raise ValueError(f"features must be (N, D) and (M, D) of at least {least} rows, not {shapes}")
