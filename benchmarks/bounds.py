"""What published peaks allow: arithmetic over counted costs, and its tables. No torch, no measurement.

Every step is bounded twice. `fused`: only products cost a launch, what is kept for the backward pass is
written, read, and has a gradient that is written and read, and the state is read and written once; no program
is faster. Otherwise as dispatched: every operator is launched, reads its inputs and writes its outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LAUNCH = 5e-6  # seconds, assumed: to launch an operator
HOP = 3e-6  # seconds, assumed: of a small message between two GPUs
MACHINE = 8  # GPUs
LARGEST = 2**20  # batch that is looked at


@dataclass(frozen=True)
class Cost:
    """What a case costs: an image where nothing else is said, of all its views together."""

    name: str
    batch: int  # default
    run_images: int  # of a default run
    parameters: int  # trained
    forward: int  # multiply-adds
    step: int  # multiply-adds, forward and backward
    undivided: int  # of `step`: on every process for the whole batch
    state_bytes: int  # weights, gradients, optimizer, average, the guard's copies
    gradient_bytes: int
    kept_bytes: dict[str, int]  # for the backward pass, by precision
    traffic_bytes: dict[str, int]  # every operator's inputs and outputs, by precision
    step_traffic_bytes: dict[str, int]  # of a step, whatever its batch
    operators: int  # of a step in bf16
    products: int  # those that multiply matrices or convolve
    norm_calls: tuple[int, int]  # batch norms of a step: forward, and those with a backward pass
    norm_bytes: int  # their statistics, both ways, of a step
    feature_bytes: int  # gathered of both views, each way
    random_bytes: int


@dataclass(frozen=True)
class Device:
    """Published peaks; bytes and multiply-adds a second. `precision` is what `auto` chooses there."""

    name: str
    multiply_adds: float
    memory: float
    capacity: float  # bytes
    link: float  # to the other GPUs of the machine, one way
    precision: str = "bf16"


H200 = Device("H200", 989e12 / 2, 4.8e12, 141e9, 450e9)
A100 = Device("A100 80 GB", 312e12 / 2, 2.0e12, 80e9, 300e9)
T4 = Device("T4", 8.1e12 / 2, 320e9, 16e9, 16e9, "fp32")
FAST, SLOW = 400e9, 12.5e9  # bytes a second out of a machine: 400 Gbit/s a GPU, 100 Gbit/s in all


def step_seconds(
    cost: Cost, device: Device, batch: int, gpus: int = 1, *, fused: bool, network: float = FAST
) -> float:
    """A lower bound of a step's seconds: what can overlap overlaps wholly, what is waited for is added.

    Args:
        cost: of the case.
        device: each of the GPUs.
        batch: images of a step, of all GPUs together.
        gpus: a power of two; more than MACHINE are several machines.
        fused: which of the two bounds.
        network: bytes a second out of a machine.
    """
    share, messages = batch / gpus, _waiting(cost, device, batch, gpus, network)
    products = cost.undivided * batch + (cost.step - cost.undivided) * share
    launch = LAUNCH * (cost.products if fused else cost.operators)
    reduce = 2 * (gpus - 1) / gpus * cost.gradient_bytes / _bandwidth(device, gpus, network)
    moved = _moved(cost, device, share, fused) + 2 * cost.random_bytes * (batch - share)
    return max(products / device.multiply_adds, moved / device.memory, launch, reduce) + messages


def _moved(cost: Cost, device: Device, images: float, fused: bool) -> float:
    if fused:
        return 4 * cost.kept_bytes[device.precision] * images + 2 * cost.state_bytes
    return cost.traffic_bytes[device.precision] * images + cost.step_traffic_bytes[device.precision]


def _waiting(cost: Cost, device: Device, batch: int, gpus: int, network: float) -> float:
    """SyncBatchNorm's and the gathered features' messages, which the next operator waits for."""
    hops = math.log2(gpus)
    ahead, back = cost.norm_calls
    sent = cost.norm_bytes + 2 * cost.feature_bytes * batch * (gpus - 1) / gpus
    return HOP * hops * (ahead + 2 * back) + (gpus > 1) * sent / _bandwidth(device, gpus, network)


def _bandwidth(device: Device, gpus: int, network: float) -> float:
    return device.link if gpus <= MACHINE else min(device.link, network)


def rate(cost: Cost, device: Device, batch: int, gpus: int = 1, *, fused: bool) -> float:
    """An upper bound of images a second."""
    return batch / step_seconds(cost, device, batch, gpus, fused=fused)


def gain(cost: Cost, device: Device, batch: int, gpus: int, *, fused: bool, network: float = FAST) -> float:
    """The bound of one GPU over that of `gpus`, for the same batch."""
    alone = step_seconds(cost, device, batch, fused=fused)
    return alone / step_seconds(cost, device, batch, gpus, fused=fused, network=network)


def smallest_batch(pays: Callable[[int], bool]) -> str:
    """The first power of two that pays."""
    batch = next((2**k for k in range(1, 21) if pays(2**k)), 0)
    return f"{batch:,}" if batch else f"> {LARGEST:,}"


def launch_bound_below(cost: Cost, device: Device, *, fused: bool) -> int:
    """The batch up to which one GPU's step is no longer than its launches."""
    launch = LAUNCH * (cost.products if fused else cost.operators)
    busy = [batch for batch in range(1, 8192) if step_seconds(cost, device, batch, fused=fused) > launch]
    return busy[0] if busy else 8192


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def counts(costs: Sequence[Cost]) -> str:
    """What was counted."""
    head = ["case", "trained, M", "forward, M", "step, M", "state, MB", "kept, KB bf16", "kept, KB fp32"]
    head += ["traffic, MB", "a step besides, MB", "operators", "products"]
    return table(head, [_counted(cost) for cost in costs])


def _counted(cost: Cost) -> list[str]:
    sizes = [cost.parameters / 1e6, cost.forward / 1e6, cost.step / 1e6, cost.state_bytes / 1e6]
    kept = [cost.kept_bytes[precision] / 1e3 for precision in ("bf16", "fp32")]
    moved = [cost.traffic_bytes["bf16"] / 1e6, cost.step_traffic_bytes["bf16"] / 1e6]
    numbers = [_short(value) for value in sizes + kept + moved]
    return [cost.name, *numbers, str(cost.operators), str(cost.products)]


def _short(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def messages(costs: Sequence[Cost]) -> str:
    """What crosses between processes in a step."""
    head = ["case", "batch", "gradients, MB", "of them an image, KB", "norm messages", "their KB"]
    head += ["features each way, MB", "random numbers, KB an image"]
    return table(head, [_sent(cost) for cost in costs])


def _sent(cost: Cost) -> list[str]:
    gradients = [cost.gradient_bytes / 1e6, cost.gradient_bytes / 1e3 / cost.batch]
    rest = [cost.norm_bytes / 1e3, cost.feature_bytes * cost.batch / 1e6, cost.random_bytes / 1e3]
    numbers = [_short(value) for value in gradients + rest]
    return [cost.name, str(cost.batch), *numbers[:2], str(sum(cost.norm_calls)), *numbers[2:]]


def alone(costs: Sequence[Cost]) -> str:
    """One GPU: an H200 in detail, others by the images a second that they allow."""
    head = ["case", "compute, us", "memory, us", "launches, ms", "launch-bound below", "thousand images/s"]
    head += ["default run, min", "A100", "T4"]  # the last two: thousand images a second
    return table(head, [_alone(cost) for cost in costs])


def _alone(cost: Cost) -> list[str]:
    memory = [_moved(cost, H200, 1, fused) - _moved(cost, H200, 0, fused) for fused in (True, False)]
    launches = [LAUNCH * count * 1e3 for count in (cost.products, cost.operators)]
    edges = [1.0 * launch_bound_below(cost, H200, fused=fused) for fused in (True, False)]
    rates = [[rate(cost, on, cost.batch, fused=f) for f in (True, False)] for on in (H200, A100, T4)]
    minutes = [cost.run_images / each / 60 for each in rates[0]]
    pairs: list[list[float]] = [
        [1e6 * each / H200.memory for each in memory],
        launches,
        edges,
        [r / 1e3 for r in rates[0]],
    ]
    pairs += [minutes, *([r / 1e3 for r in each] for each in rates[1:])]
    compute = _short(1e6 * cost.step / H200.multiply_adds)
    return [cost.name, compute, *(" / ".join(map(_short, pair)) for pair in pairs)]


def together(costs: Sequence[Cost]) -> str:
    """Several H200: how many times one of them, for the same batch, and from which batch on it pays."""
    head = ["case", "batch", "fits one", "8 GPUs", "64 GPUs", "8 GPUs, batch x 8", "4 x on 8 from"]
    head += ["32 x on 64 from", "the same at 100 Gbit/s"]
    return table(head, [_together(cost) for cost in costs])


def _together(cost: Cost) -> list[str]:
    def gains(batch: int, gpus: int) -> str:
        return " / ".join(f"{gain(cost, H200, batch, gpus, fused=fused):.1f}" for fused in (True, False))

    def half(gpus: int, network: float) -> str:
        def pays(fused: bool) -> str:
            return smallest_batch(
                lambda b: gain(cost, H200, b, gpus, fused=fused, network=network) >= gpus / 2
            )

        return f"{pays(True)} / {pays(False)}"

    strong = [gains(cost.batch, 8), gains(cost.batch, 64), gains(8 * cost.batch, 8)]
    fits = (H200.capacity - cost.state_bytes) / cost.kept_bytes[H200.precision]
    return [cost.name, str(cost.batch), _short(fits), *strong, half(8, FAST), half(64, FAST), half(64, SLOW)]


def tables(costs: Sequence[Cost]) -> dict[str, str]:
    """Every table by what stands above it; pairs are fused / as dispatched."""
    return {
        "counted": counts(costs),
        "between processes, a step": messages(costs),
        "one GPU": alone(costs),
        "several H200": together(costs),
    }
