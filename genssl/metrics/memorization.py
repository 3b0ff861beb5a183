"""The training images that samples are nearest to, and how closely those lie to each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genssl.metrics.knn import QUERIES, distances, nearest, nearest_index, rows_of


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
    chosen = rows_of(train, rows, rows.device)
    # The nearest but for the image itself
    neighbors = torch.cat(
        [
            nearest_index(train, part, excluded=part_rows[:, None])
            for part, part_rows in zip(chosen.split(QUERIES), rows.split(QUERIES), strict=True)
        ]
    )
    spacing = distances(train, chosen, neighbors)
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
    queries = rows_of(train, rows, rows.device)
    for start in range(0, len(rows), QUERIES):
        part = slice(start, start + QUERIES)
        # The nearest other image x*, and the nearest image to that one, neither of them the one left out
        index[part] = nearest_index(train, queries[part], excluded=rows[part, None])
        excluded = torch.stack([index[part], rows[part]], 1)
        neighbor[part] = nearest_index(train, rows_of(train, index[part], rows.device), excluded)
    distance = distances(train, queries, index)
    spacing = distances(train, rows_of(train, index, rows.device), neighbor)
    return NearestTraining(index, distance, neighbor, spacing)
