"""Device, precision, random streams, and how rows are cut into batches."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from genssl.errors import UserError

Randomness = torch.Generator | Sequence[torch.Generator] | None
Precision = Literal["auto", "fp32", "bf16"]


def seed_of(seed: int, stream: str, *counter: int) -> int:
    """The key of a random stream: a stable 63-bit hash of (seed, stream, counter).

    The same on every machine and in every version, so that a run resumed at a step continues bit for bit
    without saved generator state.
    """
    text = "|".join([str(seed), stream, *map(str, counter)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, stream: str, *counter: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the start of the stream (seed, stream, counter).

    Examples:
        >>> draws = [torch.rand(1, generator=generator(0, "order", epoch)) for epoch in (0, 0, 1)]
        >>> torch.equal(draws[0], draws[1]), torch.equal(draws[0], draws[2])
        (True, False)
    """
    return torch.Generator(device=device).manual_seed(seed_of(seed, stream, *counter))


def generators(seed: int, stream: str, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image: the numbers of image i depend on (seed, stream, i), not on its batch.

    Examples:
        >>> many, one = generators(0, "sample", range(8)), generators(0, "sample", [5])
        >>> torch.equal(normal((8, 3), many)[5:6], normal((1, 3), one))
        True
    """
    return [generator(seed, stream, i) for i in indices]


def to_float64(x: Tensor) -> Tensor:
    """A tensor in float64, on the CPU where its device (mps) has no such numbers."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def normal(shape: Sequence[int], source: Randomness, device: torch.device | str | None = None) -> Tensor:
    """Standard normal noise, float32, drawn where the generator lives and moved to `device`.

    With a sequence of generators, row i of the first axis comes from generator i.

    Examples:
        >>> normal((2, 3), generator(0, "sample")).shape
        torch.Size([2, 3])
    """
    if isinstance(source, Sequence):
        _check_rows(shape, source)
        return torch.stack([normal(shape[1:], generator) for generator in source]).to(device)
    source_device = device if source is None else source.device
    return torch.randn(tuple(shape), generator=source, device=source_device).to(device)


def uniform(shape: Sequence[int], source: Randomness, device: torch.device | str | None = None) -> Tensor:
    """Uniform noise in [0, 1), float32; generators as in `normal`.

    Examples:
        >>> noise = uniform((2, 3), generator(0, "sample"))
        >>> noise.shape, bool((noise < 1).all())
        (torch.Size([2, 3]), True)
    """
    if isinstance(source, Sequence):
        _check_rows(shape, source)
        return torch.stack([uniform(shape[1:], generator) for generator in source]).to(device)
    source_device = device if source is None else source.device
    return torch.rand(tuple(shape), generator=source, device=source_device).to(device)


def _check_rows(shape: Sequence[int], generators: Sequence[torch.Generator]) -> None:
    if len(generators) != shape[0]:
        raise ValueError(f"{len(generators)} generators for {shape[0]} rows")


# Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
# Counters at once: on a CPU what its cache holds; elsewhere several calls ahead, since launches cost more
PORTION_CPU, PORTION = 2**15, 2**22


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random words for each counter of four words, under a key of two.

    Words are int64 in [0, 2^32), of shapes that broadcast. There is no state: any part of any stream is drawn
    at once, alike on every device.
    """
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0, k1 = ((word + i * step) & WORD for word, step in zip(key, KEY_STEPS, strict=True))
        # int64 keeps all 64 bits of a product of two words; its lower word is masked when it is next used
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & WORD, p1, ((p0 >> 32) ^ c3 ^ k1) & WORD, p0
    return c0, c1 & WORD, c2, c3 & WORD


def _box_muller(radius: Tensor, angle: Tensor) -> list[Tensor]:
    """Two standard normal numbers, float32, from each two words (Box and Muller 1958)."""
    # One is added, since zero has no logarithm
    length = ((radius + 1).float() * 2**-32).log_().mul_(-2).sqrt_()
    turn = angle.float() * (2 * math.pi * 2**-32)
    return [length * turn.cos(), length * turn.sin()]


class StepNoise:
    """Standard normal noise for the steps of a sampler: each call draws anew, whatever the time.

    Row i depends on generator i and the number of calls before alone. A generator gives a key, once, and
    Philox the numbers, for all rows together on the device: a loop over images at each step would keep a
    GPU waiting.

    Args:
        shape: of the noise, (B, ...).
        generators: one per row.
        device: to draw on.
    """

    def __init__(
        self, shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str
    ) -> None:
        _check_rows(shape, generators)
        keys = [torch.randint(WORD + 1, (2,), generator=source) for source in generators]
        self.keys = torch.stack(keys, 1)[..., None].to(device)  # (2, B, 1)
        self.shape, self.numbers, self.calls = tuple(shape), math.prod(shape[1:]), 0
        counters = -(-self.numbers // 4)  # four numbers each
        portion = PORTION_CPU if self.keys.device.type == "cpu" else PORTION
        self.rows = max(1, portion // counters)
        self.ahead = max(1, self.rows // len(generators))
        self.counters = torch.arange(counters, device=device)

    def __call__(self, _time: int = 0) -> Tensor:
        """Fresh noise."""
        i = self.calls % self.ahead
        if i == 0:
            self.drawn = self._draw()
        self.calls += 1
        return self.drawn[i]

    def _draw(self) -> Tensor:
        """The noise of this call and of those ahead, (ahead, B, ...)."""
        calls = torch.arange(self.calls, self.calls + self.ahead, device=self.keys.device)[:, None, None]
        zero = torch.zeros_like(calls)
        parts = []
        for key in self.keys.split(self.rows, 1):
            words = philox((self.counters, calls, zero, zero), key)  # each (ahead, rows, counters)
            normals = torch.cat([*_box_muller(*words[:2]), *_box_muller(*words[2:])], -1)
            parts.append(normals[..., : self.numbers])
        return torch.cat(parts, 1).view(-1, *self.shape)


def step_noise(
    shape: Sequence[int], source: Randomness, device: torch.device | str
) -> Callable[[int], Tensor]:
    """Time -> fresh standard normal noise, for a sampler; row by row with a sequence of generators."""
    if isinstance(source, Sequence):
        return StepNoise(shape, source, device)
    return lambda _: normal(shape, source, device)


def choose_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda, cuda:1 or mps into a device that works here.

    A GPU with a number becomes the current one: what asks for "cuda" afterwards, as the thread that pins
    batches in memory does, means it and makes no context on the first.

    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    device = _named(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _named(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return _local(torch.device("cuda"))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None
    if not _available(device):
        raise UserError(f"no device {name!r} on this machine; use --device {_named('auto')}")
    return _local(device)


def _local(device: torch.device) -> torch.device:
    """The GPU of this process under torchrun, which starts one process per GPU: that of its local rank."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or local_rank is None:
        return device
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None:
        if processes > 1:
            raise UserError(
                f"{processes} processes were started, each for a GPU of its own; use --device cuda"
            )
        return device
    gpus = torch.cuda.device_count()
    # Raised in every process, so that none waits for another
    if max(processes, int(local_rank) + 1) > gpus:
        raise UserError(f"{processes} processes were started for {gpus} GPUs; start one for each")
    return torch.device("cuda", int(local_rank))


def _available(device: torch.device) -> bool:
    match device.type:
        case "cpu":
            return True
        case "cuda":
            return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
        case "mps":
            return torch.backends.mps.is_available()
    return False


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve "auto": bf16 where the hardware multiplies it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products have hardware: CUDA from Ampere on, CPUs with avx512_bf16 or amx."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(
    device: torch.device, precision: Literal["fp32", "bf16"]
) -> contextlib.AbstractContextManager[None]:
    """Autocast to bf16, or nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """No gradients, and float32 products in float32: on CUDA, convolutions would round to TF32 by default.

    Also a decorator.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolution.fp32_precision
    matmul.fp32_precision = convolution.fp32_precision = "ieee"
    try:
        with torch.inference_mode():
            yield
    finally:
        # Exactly as before: a compiled graph is compiled again where this state has changed
        matmul.fp32_precision, convolution.fp32_precision = before


def describe(device: torch.device) -> str:
    """The device's name, and the threads of a CPU, to write beside a measurement."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({cpu_name()}, {torch.get_num_threads()} threads)"
    return str(device)


def cpu_name() -> str:
    """The processor's model name, where the system has it."""
    import platform
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


Tick = Callable[[int, int], None]  # called with how much is done, and how much there is


class Counter:
    """Counts what is done of a total, and reports the progress.

    Examples:
        >>> count = Counter(10, tick=print)
        >>> count.add(4)
        4 10
    """

    def __init__(self, total: int, tick: Tick) -> None:
        self.total, self._tick, self.done = total, tick, 0

    def add(self, n: int = 1) -> None:
        """Count `n` more; what is beyond the total is not reported."""
        self.done += n
        self._tick(min(self.done, self.total), self.total)


def epoch_permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The permutation of an epoch: int64 (n,), a function of (seed, epoch, n) on every device.

    Drawn on the CPU, since each kind of device has its own random numbers.
    """
    return torch.randperm(n, generator=generator(seed, "order", epoch)).to(device)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows; the last one may be shorter."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
