"""Device, precision, random streams, and how rows are cut into batches."""

import contextlib
import hashlib
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
    """A generator at the start of the stream (seed, stream, counter)."""
    return torch.Generator(device=device).manual_seed(seed_of(seed, stream, *counter))


def generators(seed: int, stream: str, indices: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image: the numbers of image i depend on (seed, stream, i), not on its batch."""
    return [generator(seed, stream, i) for i in indices]


def to_float64(x: Tensor) -> Tensor:
    """A tensor in float64, on the CPU where its device (mps) has no such numbers."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def normal(shape: Sequence[int], source: Randomness, device: torch.device | str | None = None) -> Tensor:
    """Standard normal noise, float32, drawn where the generator lives and moved to `device`.

    With a sequence of generators, row i of the first axis comes from generator i.
    """
    if isinstance(source, Sequence):
        if len(source) != shape[0]:
            raise ValueError(f"{len(source)} generators for {shape[0]} rows")
        return torch.stack([normal(shape[1:], generator) for generator in source]).to(device)
    source_device = device if source is None else source.device
    return torch.randn(tuple(shape), generator=source, device=source_device).to(device)


def uniform(shape: Sequence[int], source: Randomness, device: torch.device | str | None = None) -> Tensor:
    """Uniform noise in [0, 1), float32; generators as in `normal`."""
    if isinstance(source, Sequence):
        if len(source) != shape[0]:
            raise ValueError(f"{len(source)} generators for {shape[0]} rows")
        return torch.stack([uniform(shape[1:], generator) for generator in source]).to(device)
    source_device = device if source is None else source.device
    return torch.rand(tuple(shape), generator=source, device=source_device).to(device)


def choose_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda, cuda:1 or mps into a device that works here.

    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _local(torch.device("cuda"))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from None
    if not _available(device):
        raise UserError(f"no device {name!r} on this machine; use --device {choose_device('auto')}")
    return _local(device)


def _local(device: torch.device) -> torch.device:
    """The GPU of this process under torchrun, which starts one process per GPU: that of its local rank."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or device.index is not None or local_rank is None:
        return device
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
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


Tick = Callable[[int, int], None]


def epoch_permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The permutation of an epoch: int64 (n,), a function of (seed, epoch, n) on every device.

    Drawn on the CPU, since each kind of device has its own random numbers.
    """
    return torch.randperm(n, generator=generator(seed, "order", epoch)).to(device)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n rows; the last one may be shorter."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
