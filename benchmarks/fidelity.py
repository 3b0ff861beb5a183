"""The Frechet distance, and precision to coverage, of 10,000 images against 10,000.

`python -m benchmarks.fidelity [--device cpu] [--rows 10000]`. The Frechet distance is in seconds: under 3 on
two cores. Precision, recall, density and coverage are beside the three bare products that they need (real
with real, samples with samples, one with the other), in the same chunks into memory that stands ready: within
twice their time. Features are 512-dimensional and float32.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.table import print_head, print_seconds, versions
from benchmarks.timing import in_turn
from genssl.metrics.fidelity import frechet_distance, prdc
from genssl.metrics.knn import QUERIES
from genssl.runtime import choose_device, describe, generator

ROWS, DIMENSIONS, K = 10_000, 512, 5
ROUNDS = 5


def features(rows: int, counter: int) -> Tensor:
    """Correlated features (rows, D) with a falling spectrum, as encoders have."""
    draw = generator(0, "benchmark", counter)
    spread = torch.linspace(2, 0.05, DIMENSIONS)
    mixing = torch.linalg.qr(torch.randn(DIMENSIONS, DIMENSIONS, generator=generator(0, "benchmark"))).Q
    drawn = torch.randn(rows, DIMENSIONS, generator=draw) * spread
    return drawn.matmul(mixing) + 0.1 * counter


def bare_products(real: Tensor, fake: Tensor) -> Callable[[], None]:
    """All three products, in the chunks of `prdc`."""
    space = real.new_empty(QUERIES * max(len(real), len(fake)))

    def products() -> None:
        for queries, bank in ((real, real), (fake, fake), (fake, real)):
            for part in queries.split(QUERIES):
                torch.mm(part, bank.T, out=space[: len(part) * len(bank)].view(len(part), len(bank)))

    return products


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The time of one call, the device's work included."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(device_name: str = "auto", rows: int = ROWS) -> None:
    device = choose_device(device_name)
    real, fake = (features(rows, counter).to(device) for counter in (1, 2))
    print(f"device: {describe(device)}; {versions('torch')}; {ROUNDS} rounds; {rows:,} x {DIMENSIONS} each")
    frechet_distance(real, fake)
    times = [seconds(lambda: frechet_distance(real, fake), device) for _ in range(ROUNDS)]
    print(f"Frechet distance: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    print_head("precision, recall, density, coverage", "products", "genssl / it")
    products = bare_products(real, fake)

    def bare() -> float:
        return rows / seconds(products, device)

    def ours() -> float:
        return rows / seconds(lambda: prdc(real, fake, K), device)

    pair = in_turn(bare, ours, ROUNDS)
    print_seconds("bare products", pair, rows)
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The Frechet distance, and precision to coverage.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    main(arguments.device, arguments.rows)
