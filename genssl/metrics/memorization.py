"""The training images that samples are nearest to, and how closely those lie to each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genssl.metrics.knn import BANK, QUERIES, distances, nearest, rows_of


@dataclass(frozen=True)
class NearestTraining:
    """The training image that each sample is nearest to.

    Attributes:
        index: which one, int64 (M,).
        distance: from the sample to it, (M,).
        neighbor: which other training image is nearest to that one, int64 (M,).
        spacing: the distance between those two, (M,).
    """

    index: Tensor
    distance: Tensor
    neighbor: Tensor
    spacing: Tensor

    @property
    def authentic(self) -> Tensor:
        """Which samples are farther from their training image than its nearest neighbor is: bool (M,)."""
        return self.distance > self.spacing

    @property
    def closeness(self) -> Tensor:
        """distance / spacing, (M,): a copy has 0, an authentic sample more than 1."""
        return torch.where(self.distance == 0, 0, self.distance / self.spacing)


def find_nearest_training(train: Tensor, samples: Tensor) -> NearestTraining:
    """The nearest training image (N, D) of each sample (M, D), and that one's own nearest neighbor.

    Found in float32; the distances are those of the differences, so that a copy is at 0.

    Raises:
        ValueError: fewer than two training images, no sample, or the shapes differ.

    Examples:
        >>> train, samples = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.0], [4.0]])
        >>> nearest_training = find_nearest_training(train, samples)
        >>> nearest_training.closeness.tolist(), nearest_training.authentic.tolist()
        ([0.0, 3.0], [False, True])
    """
    if len(train) < 2 or len(samples) == 0:
        raise ValueError(f"authenticity needs samples and two training images: {len(samples)}, {len(train)}")
    distance, index = nearest(train, samples)
    # Several samples may share a training image: its own neighbor is looked for once
    rows, row_of_sample = index.unique(return_inverse=True)
    neighbors = torch.cat([_nearest_other(train, part, part[:, None]) for part in rows.split(QUERIES)])
    spacing = distances(train, rows_of(train, rows, rows.device), neighbors)
    return NearestTraining(index, distance, neighbors[row_of_sample], spacing[row_of_sample])


def leave_one_out(train: Tensor, rows: Tensor) -> NearestTraining:
    """As `find_nearest_training` of the training images `rows`, each as if it were not among them.

    It gives the share of authentic images that new images of the training distribution have.

    Args:
        train: features (N, D), N at least 3.
        rows: int64 (M,), which of them stand for samples.

    Raises:
        ValueError: fewer than three training images, or no row.

    Examples:
        >>> train = torch.tensor([[0.0], [1.0], [10.0]])
        >>> leave_one_out(train, torch.tensor([0, 2])).distance.tolist()
        [1.0, 9.0]
    """
    if len(train) < 3 or len(rows) == 0:
        raise ValueError(f"leaving one out needs a row and three training images: {len(rows)}, {len(train)}")
    index, neighbor = torch.empty_like(rows), torch.empty_like(rows)
    for start in range(0, len(rows), QUERIES):
        part = slice(start, start + QUERIES)
        # The nearest other image x*, and the nearest image to that one, neither of them the one left out
        index[part] = _nearest_other(train, rows[part], rows[part, None])
        excluded = torch.stack([index[part], rows[part]], 1)
        neighbor[part] = _nearest_other(train, index[part], excluded)
    distance = distances(train, rows_of(train, rows, rows.device), index)
    spacing = distances(train, rows_of(train, index, rows.device), neighbor)
    return NearestTraining(index, distance, neighbor, spacing)


def _nearest_other(bank: Tensor, rows: Tensor, excluded: Tensor) -> Tensor:
    """Which row of the bank (N, D) is nearest to each of its `rows` (q,), but for some: int64 (q,).

    Args:
        bank: features.
        rows: int64 (q,).
        excluded: int64 (q, e), rows of the bank that do not count, such as the row itself.
    """
    chosen = rows_of(bank, rows, rows.device)
    center = chosen.mean(0)
    queries = chosen - center
    smallest, index = torch.full_like(queries[:, 0], torch.inf), torch.zeros_like(rows)
    for start in range(0, len(bank), BANK):
        piece = bank[start : start + BANK].to(rows.device).float() - center
        # |b|^2 - 2 q.b, (q, n): the squared distances but for |q|^2, which changes no order
        squares = torch.addmm(piece.square().sum(1), queries, piece.T, alpha=-2)
        # The maximum with infinity, or with minus infinity for rows of other pieces: the host would have to
        # wait for a list of those of this one
        is_here = (excluded >= start) & (excluded < start + len(piece))
        no_less = torch.where(is_here, torch.inf, -torch.inf).to(squares.dtype)
        squares.scatter_reduce_(1, (excluded - start).clamp(0, len(piece) - 1), no_less, "amax")
        least, columns = squares.min(1)
        nearer = least < smallest
        smallest, index = torch.where(nearer, least, smallest), torch.where(nearer, columns + start, index)
    return index
