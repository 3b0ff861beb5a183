"""The nearest-neighbor vote: genssl's knn_predict against the matrix product inside it, and against peers.

10,000 queries over a bank of 50,000 features of 512 dimensions, 200 neighbors: CIFAR-10 and a ResNet-18. The
bare products and the peers get float32 features of unit length; ours makes them so itself. The bare products
write into memory that stands ready.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict as lightly_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from benchmarks.table import print_head, print_seconds, versions
from benchmarks.timing import in_turn
from genssl.metrics import knn
from genssl.runtime import choose_device, describe

BANK_ROWS, QUERY_ROWS, DIMENSIONS, CLASSES = 50_000, 10_000, 512, 10
K, TEMPERATURE = 200, 0.1
SEPARATION = 0.15  # of the classes' means, in standard deviations of a dimension: neighbors often disagree
ROUNDS = 3
AGREEMENT = 0.999  # the rest are votes that rounding decides


def features(rows: int, means: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features (rows, D) scattered around their classes' means (C, D), and labels (rows,)."""
    labels = torch.randint(0, CLASSES, (rows,), generator=source)
    noise = torch.randn(rows, DIMENSIONS, generator=source)
    return means[labels].add_(noise), labels


def product_in_chunks(bank: Tensor, queries: Tensor) -> Callable[[], None]:
    """Every cosine, in the chunks of `knn_predict`."""
    space = bank.new_empty(knn.QUERIES * knn.BANK)

    def product() -> None:
        for part in queries.split(knn.QUERIES):
            for rows in bank.split(knn.BANK):
                out = space[: len(part) * len(rows)].view(len(part), len(rows))
                torch.mm(part, rows.T, out=out)

    return product


def product_at_once(bank: Tensor, queries: Tensor) -> Callable[[], None]:
    """Every cosine by one call; 2 GB of them."""
    space = bank.new_empty(len(queries), len(bank))

    def product() -> None:
        torch.mm(queries, bank.T, out=space)

    return product


def lightly_vote(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """lightly's function, on as many queries at once as ours takes."""
    parts = [
        lightly_predict(part, bank.T, labels, CLASSES, K, TEMPERATURE)[:, 0]
        for part in queries.split(knn.QUERIES)
    ]
    return torch.cat(parts)


def vote_weights(distance: np.ndarray) -> np.ndarray:
    """exp(cos / temperature); between vectors of unit length, cos = 1 - d^2 / 2."""
    weights: np.ndarray = np.exp((1 - distance**2 / 2) / TEMPERATURE)
    return weights


def sklearn_vote(bank: Tensor, labels: Tensor, queries: Tensor) -> Callable[[], Tensor]:
    """scikit-learn's brute-force classifier, fitted beforehand."""
    classifier = KNeighborsClassifier(K, algorithm="brute", weights=vote_weights)
    classifier.fit(bank.numpy(), labels.numpy())
    return lambda: torch.from_numpy(classifier.predict(queries.numpy()))


def rate(action: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Queries a second, each time it is called."""

    def measure() -> float:
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return QUERY_ROWS / (time.perf_counter() - start)

    return measure


def check(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Both vote for the same classes, up to ties that rounding breaks."""
    share = (ours == theirs).double().mean().item()
    assert share >= AGREEMENT, f"{name} agrees on {share:.4f} of the queries"


def main(device_name: str = "auto") -> None:
    device = choose_device(device_name)
    source = torch.Generator().manual_seed(0)
    means = SEPARATION * torch.randn(CLASSES, DIMENSIONS, generator=source)
    bank, labels = (part.to(device) for part in features(BANK_ROWS, means, source))
    queries = features(QUERY_ROWS, means, source)[0].to(device)
    units, unit_queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)

    def ours() -> Tensor:
        return knn.knn_predict(bank, labels, queries, CLASSES, K, TEMPERATURE)

    print(
        f"device: {describe(device)}; {versions('torch', 'lightly', 'scikit-learn')}; {ROUNDS} rounds in turn"
    )
    print(f"{QUERY_ROWS:,} queries, {BANK_ROWS:,} x {DIMENSIONS}, k = {K}; seconds")
    print_head("instead of genssl's knn_predict", "it takes", "genssl / it")
    votes: dict[str, Callable[[], Tensor]] = {
        "lightly's knn_predict": lambda: lightly_vote(units, labels, unit_queries)
    }
    if device.type == "cpu":
        votes["scikit-learn, brute force"] = sklearn_vote(units, labels, unit_queries)
    for name, vote in votes.items():
        check(name, ours(), vote())
    products = {"bare product": product_in_chunks, "bare product, not in chunks": product_at_once}
    for name, product in products.items():
        pair = in_turn(rate(product(units, unit_queries), device), rate(ours, device), ROUNDS)
        print_seconds(name, pair, QUERY_ROWS)
    for name, vote in votes.items():
        print_seconds(name, in_turn(rate(vote, device), rate(ours, device), ROUNDS), QUERY_ROWS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The nearest-neighbor vote beside the matrix product.")
    parser.add_argument("--device", default="auto")
    main(parser.parse_args().device)
