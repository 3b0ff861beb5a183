"""Nearest neighbors: classes by weighted vote, distances, confusion. Exact, in float32, in bounded memory."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 512  # compared at once
BANK = 65536  # rows of the bank that they are compared with at once
GROUP = 16


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """Classes by a vote of the `k` nearest by cosine, each with weight exp(cosine / temperature).

    The protocol of Wu et al. 2018 (section 3.4) that SimSiam, BYOL and their benchmarks report.

    Args:
        bank: features (N, D) of any real type; a chunk at a time is made float32 and unit length. A bank
            that is too large for the queries' device may stay on the host.
        bank_labels: int64 (N,), in [0, num_classes).
        queries: features (Q, D).
        num_classes: C.
        k: neighbors that vote.
        temperature: the smaller, the more the nearest count.

    Returns:
        (Q,) int64; of classes with equal votes the first.

    Raises:
        ValueError: k is not in 1..N, or the shapes or the temperature make no sense.

    Examples:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> knn_predict(bank, labels, torch.tensor([[3.0, 1.0], [1.0, 3.0]]), num_classes=2, k=1)
        tensor([0, 1])
    """
    return knn_predict_each(bank, bank_labels, queries, num_classes, [k], temperature)[0]


def knn_predict_each(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = 0.1,
) -> list[Tensor]:
    """`knn_predict` for each of several k: the neighbors are looked for once.

    Raises:
        ValueError: as `knn_predict`.

    Examples:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 1])
        >>> knn_predict_each(bank, labels, torch.tensor([[1.0, 0.9]]), num_classes=2, ks=[1, 3])
        [tensor([0]), tensor([1])]
    """
    _check(bank, queries)
    if not all(1 <= k <= len(bank) for k in ks):
        raise ValueError(f"k must be from 1 to the size of the bank, {len(bank)}, not {ks}")
    if len(bank_labels) != len(bank) or temperature <= 0:
        raise ValueError(f"{len(bank_labels)} labels for {len(bank)} features, temperature {temperature}")
    with _float32(queries):
        similarity, index = _most_similar(bank, queries, max(ks))
        if min(ks) < max(ks):
            similarity, order = similarity.sort(1, descending=True)
            index = index.gather(1, order)
        result = []
        for k in ks:
            parts = zip(similarity[:, :k].split(QUERIES), index[:, :k].split(QUERIES), strict=True)
            votes = [_vote(*part, bank_labels, num_classes, temperature) for part in parts]
            result.append(torch.cat(votes))
        return result


def _vote(similarity: Tensor, index: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    # Relative to the nearest one, so that no temperature overflows: a vote does not mind the scale
    weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()  # (q, k)
    # Each neighbor adds its weight to the sum of its class
    sums = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[index], weights)
    return sums.argmax(1)


def _most_similar(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The cosines of the k rows of the bank most like each query, and which rows: (Q, k) both, unsorted.

    The bank is the outer loop: each of its rows is made unit length once, not once for every few queries.
    """
    units = F.normalize(queries.float(), dim=1).split(QUERIES)
    best = [part.new_empty(len(part), 0) for part in units]
    index = [torch.empty(len(part), 0, dtype=torch.int64, device=part.device) for part in units]
    buffer = queries.new_empty(min(QUERIES, len(queries)) * min(BANK, len(bank)), dtype=torch.float32)
    for start, piece in _pieces(bank, queries.device):
        rows = F.normalize(piece, dim=1).T
        for i, part in enumerate(units):
            # Into one buffer: memory that is asked for anew costs as much as the product
            cosines = buffer[: len(part) * rows.shape[1]].view(len(part), rows.shape[1])
            values, columns = top(torch.mm(part, rows, out=cosines), k)
            best[i], index[i] = _keep_largest(
                torch.cat([best[i], values], 1), torch.cat([index[i], columns + start], 1), k
            )
    return torch.cat(best), torch.cat(index)


def _keep_largest(values: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, and their entries of `index`."""
    if values.shape[1] <= k:
        return values, index
    largest, order = values.topk(k, sorted=False)
    return largest, index.gather(1, order)


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The min(k, n) largest of each row of values (q, n), unsorted, and their columns.

    The k largest are all in the k groups with the largest maxima, so that only those are searched: on a
    CPU, selecting from all of a row can cost as much as the matrix product that made it.

    Examples:
        >>> values, columns = top(torch.tensor([[3.0, 1.0, 2.0]]), k=2)
        >>> sorted(values[0].tolist()), sorted(columns[0].tolist())
        ([2.0, 3.0], [0, 2])
    """
    n = values.shape[1]
    width = n // GROUP
    if width < 2 * k:
        return values.topk(min(k, n), sorted=False)
    # Group g holds the columns g, g + width, g + 2 width, ...
    groups = values[:, : width * GROUP].unflatten(1, (GROUP, width))
    leading = groups.amax(1).topk(k, sorted=False).indices  # (q, k)
    offsets = torch.arange(0, width * GROUP, width, device=values.device)
    columns = (leading[:, None] + offsets[:, None]).flatten(1)  # (q, GROUP k)
    rest = torch.arange(width * GROUP, n, device=values.device).expand(len(values), -1)
    columns = torch.cat([columns, rest], 1)
    largest, order = values.gather(1, columns).topk(k, sorted=False)
    return largest, columns.gather(1, order)


def nearest(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean distance from each query to the nearest row of the bank, and which row that is.

    Args:
        bank: (N, D) of any real type; a chunk at a time is made float32.
        queries: (Q, D).

    Returns:
        distance (Q,) float32 and index (Q,) int64.

    Raises:
        ValueError: the bank is empty, or the shapes differ.

    Examples:
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest(bank, torch.tensor([[3.0, 3.0]]))
        (tensor([1.]), tensor([1]))
    """
    _check(bank, queries)
    index = torch.cat([nearest_index(bank, part) for part in queries.split(QUERIES)])
    return distances(bank, queries, index), index


def nearest_index(bank: Tensor, queries: Tensor, excluded: Tensor | None = None) -> Tensor:
    """The row of the bank (N, D) that is nearest to each query (q, D), of few enough queries: int64 (q,).

    Found in float32, one piece of the bank at a time.

    Args:
        bank: features of any real type.
        queries: features; (q, BANK) distances fit in memory.
        excluded: int64 (q, e), rows of the bank that do not count for a query, such as the query itself.

    Examples:
        >>> bank = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest_index(bank, bank, excluded=torch.tensor([[0], [1], [2]]))
        tensor([1, 0, 1])
    """
    queries = queries.float()
    # |q - b|^2 = |q|^2 + |b|^2 - 2 q.b, where |q|^2 is the same for all b; centered, so that less cancels
    center = queries.mean(0)
    queries = queries - center
    smallest = torch.full((len(queries),), torch.inf, device=queries.device)
    index = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    with _float32(queries):
        for start, piece in _pieces(bank, queries.device):
            rows = piece - center
            squares = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)
            if excluded is not None:
                _exclude(squares, excluded - start)
            least, columns = squares.min(1)
            nearer = least < smallest
            smallest = torch.where(nearer, least, smallest)
            index = torch.where(nearer, columns + start, index)
    return index


def _exclude(squares: Tensor, columns: Tensor) -> None:
    """Set entries of `squares` (q, n) to infinity, in place: of each row its `columns` (q, e) in [0, n)."""
    # The maximum with minus infinity changes nothing: to select the columns that exist, the host would wait
    is_here = (columns >= 0) & (columns < squares.shape[1])
    limit = torch.where(is_here, torch.inf, -torch.inf).to(squares.dtype)
    squares.scatter_reduce_(1, columns.clamp(0, squares.shape[1] - 1), limit, "amax")


def distances(bank: Tensor, queries: Tensor, index: Tensor) -> Tensor:
    """The Euclidean distance from each query (Q, D) to its row `index` (Q,) of the bank (N, D): (Q,).

    Examples:
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> distances(bank, torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([0., 5.])
    """
    rows = zip(queries.split(QUERIES), index.split(QUERIES), strict=True)
    # From the differences, not from norms and products: a copy is at a distance of exactly 0
    return torch.cat(
        [(part.float() - rows_of(bank, chosen, part.device)).norm(dim=1) for part, chosen in rows]
    )


def rows_of(bank: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """The rows `index` (Q,) of a bank (N, D), float32 on `device`, wherever both are.

    Examples:
        >>> rows_of(torch.tensor([[1], [2], [3]]), torch.tensor([2, 0]), torch.device("cpu"))
        tensor([[3.],
                [1.]])
    """
    return bank[index.to(bank.device)].to(device).float()


def _pieces(bank: Tensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(bank), BANK):
        yield start, bank[start : start + BANK].to(device).float()


def _float32(tensor: Tensor) -> torch.autocast:
    """Full precision, whatever autocast surrounds the call."""
    return torch.autocast(tensor.device.type, enabled=False)


def _check(bank: Tensor, queries: Tensor) -> None:
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1] or len(bank) == 0:
        raise ValueError(f"features must be (N, D) and (Q, D), not {list(bank.shape)}, {list(queries.shape)}")


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (C, C) int64: row the true class, column the predicted one.

    Args:
        labels: int64 (N,), in [0, classes).
        predicted: int64 (N,), likewise.
        classes: C.

    Raises:
        ValueError: the numbers of labels and predictions differ.

    Examples:
        >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), classes=2)
        tensor([[1, 1],
                [0, 1]])
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"{list(predicted.shape)} predictions for {list(labels.shape)} labels")
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_accuracy(matrix: Tensor) -> Tensor:
    """The share of each class predicted right, (C,) float64; NaN for a class without images.

    Examples:
        >>> class_accuracy(torch.tensor([[1, 1], [0, 1]]))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    return matrix.diagonal().cpu().double() / matrix.sum(1).cpu()


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy measured on `n` images drawn independently: sqrt(a (1 - a) / n).

    Examples:
        >>> round(standard_error(0.9, 100), 4)
        0.03
    """
    return math.sqrt(accuracy * (1 - accuracy) / n)
