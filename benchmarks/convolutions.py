"""How near SimSiam's training is to the speed of its convolutions alone.

    python -m benchmarks.convolutions [--rounds 5]       # writes docs/results/convolutions.json

Measured in turn: an epoch of lightly's loop, tuned; the same of genssl; and the convolutions of these steps
by themselves, forward and backward for both views, each with inputs of its shape, in the same precision and
channels_last. No program that calls these convolutions one after the other is faster than they are. Beside
them stands the throughput of a matrix product, which no convolution reaches.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import simsiam
from benchmarks.table import versions
from benchmarks.timing import SIDES, all_in_turn
from genssl import files
from genssl.models.build import build
from genssl.models.siamese import Siamese
from genssl.runtime import choose_device, choose_precision, describe, generator

RESULT = Path("docs/results/convolutions.json")
VIEWS = 2
PRODUCT = 2048  # side of the matrices
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Call:
    """One convolution of a network, on its own: forward and backward with random numbers."""

    def __init__(self, layer: nn.Conv2d, image: Tensor, dtype: torch.dtype, *, is_first: bool) -> None:
        source = generator(0, "convolutions", device=image.device)
        layout: Any = {"device": image.device, "memory_format": torch.channels_last}
        x = torch.randn(image.shape, generator=source, device=image.device)
        # The images get no gradient
        self.x = x.to(dtype=dtype, **layout).requires_grad_(not is_first)
        self.weight = layer.weight.detach().to(dtype=dtype, **layout).requires_grad_()
        self.settings = (layer.stride, layer.padding)
        y = self.forward()
        self.gradient = torch.randn(y.shape, generator=source, device=image.device).to(dtype=dtype, **layout)
        # Forward, for the weights, and for the inputs
        self.multiply_adds = y.numel() * layer.weight[0].numel() * (2 if is_first else 3)

    def forward(self) -> Tensor:
        stride, padding = self.settings
        return torch.nn.functional.conv2d(self.x, self.weight, None, stride, padding)

    def run(self) -> None:
        self.x.grad = self.weight.grad = None
        self.forward().backward(self.gradient)


def convolutions(batch: int, device: torch.device, dtype: torch.dtype) -> list[Call]:
    """All convolutions of the encoder for one view of a batch, in their order."""
    method = build(simsiam.settings(batch)).to(device)
    assert isinstance(method, Siamese)
    calls: list[Call] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        calls.append(Call(layer, inputs[0].detach(), dtype, is_first=not calls))

    hooks = [m.register_forward_hook(note) for m in method.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        method.encoder(torch.zeros(batch, 3, 32, 32, device=device))
    for hook in hooks:
        hook.remove()
    return calls


def convolutions_side(calls: list[Call], batch: int, device: torch.device) -> Callable[[], float]:
    """Images per second of the convolutions alone, over as many steps as the others take."""
    steps = simsiam.STEPS[batch] * (simsiam.GPU_TIMES if device.type == "cuda" else 1)

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(steps * VIEWS):
            for call in calls:
                call.run()
        wait(device)
        return steps * batch / (time.perf_counter() - start)

    return measure


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a matrix product: the best of several."""
    a = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    best = 0.0
    for _ in range(5):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        wait(device)
        best = max(best, PRODUCT**3 / (time.perf_counter() - start))
    return best


def wait(device: torch.device) -> None:
    """Wait for a GPU; a CPU has finished when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(batch: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """The three rates at a batch size, and what they say of each other."""
    precision = choose_precision("auto", device)
    calls = convolutions(batch, device, TYPES[precision])
    sides = simsiam.sides(batch, device)
    measured = {name: sides[name] for name in SIDES[1:]}
    rates = all_in_turn({**measured, "alone": convolutions_side(calls, batch, device)}, rounds)
    tuned, ours, alone = (rates[name] for name in (*SIDES[1:], "alone"))
    median = {name: statistics.median(values) for name, values in rates.items()}
    per_image = VIEWS * sum(call.multiply_adds for call in calls) / batch
    return {
        "batch": batch,
        "precision": precision,
        **{f"{name}_images_per_second": value for name, value in median.items()},
        "share_of_a_step": statistics.median(a / b for a, b in zip(ours, alone, strict=True)),
        "share_of_the_peers_step": statistics.median(a / b for a, b in zip(tuned, alone, strict=True)),
        # What a program would gain over the tuned peer that spends no time on anything else
        "bound_of_the_ratio": statistics.median(b / a for a, b in zip(tuned, alone, strict=True)),
        "ratio_to_peer_tuned": statistics.median(a / b for a, b in zip(ours, tuned, strict=True)),
        "convolution_multiply_adds_per_second": per_image * median["alone"],
        "product_multiply_adds_per_second": product_rate(device, TYPES[precision]),
    }


def main() -> None:
    """Measure at both batch sizes and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    rows = [row(batch, device, asked.rounds) for batch in simsiam.STEPS]
    about = {"device": describe(device), "threads": torch.get_num_threads()}
    result = {**about, "versions": versions("torch", "lightly"), "rounds": asked.rounds, "rows": rows}
    files.write_json(asked.out, result)
    for each in rows:
        print(each)


if __name__ == "__main__":
    main()
