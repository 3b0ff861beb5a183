"""Several processes that train one method: rank, shards, broadcasts and reductions.

Started by torchrun, or by `genssl train --gpus`. In a single process everything here costs nothing.
"""

import contextlib
import gc
import importlib
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from genssl.environment import RESTART_COUNTS
from genssl.errors import LOST_PROCESS, Echo, UserError

LAUNCHER = (
    "GENSSL_LAUNCHER"  # set by `genssl train --gpus`, which itself tells that a process was lost: a file
)
LOST = ("closed by peer", "connection reset", "connection refused", "broken pipe", "remote process")


def launched_world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restart_count() -> int:
    """How often the processes were started again, by torchrun or by `genssl train --gpus`."""
    return sum(int(os.environ.get(name, "0")) for name in RESTART_COUNTS)


def world_size() -> int:
    """How many processes have joined; 1 outside `joined`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes, draws and reports: that of rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def shard(n: int) -> slice:
    """This process's rows of n, in the order of the ranks: nothing is padded, nothing dropped."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return slice(n * rank // world_size(), n * (rank + 1) // world_size())


def init(device: torch.device) -> bool:
    """Join the processes that torchrun started; whether that was to be done.

    Tensors of the host travel by gloo, those of CUDA devices by NCCL.
    """
    if launched_world_size() == 1 or dist.is_initialized():
        return False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DistributedDataParallel imports it, and its functions take the group of that moment as a default:
    # imported after the group is made, it would keep the group and its threads until the interpreter ends
    importlib.import_module("torch.distributed.nn.functional")
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps its store over restarts: without a name of its own, an attempt may read the addresses of
    # processes that are dead
    store = dist.PrefixStore(f"genssl/{restart_count()}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return True


def shutdown() -> None:
    """Leave the other processes, and join the threads that talk to them.

    Gloo's threads end when the last reference to the group does, and a DistributedDataParallel holds one: it
    has to be gone before. A thread that still frees a tensor while the interpreter ends aborts the process.
    """
    # What only a cycle holds
    gc.collect()
    dist.destroy_process_group()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes for as long as the context is open; inside of another one, nothing.

    The method in training must not outlive the context (see `leave`): keep it in a function called inside.
    After an error the local variables of such functions are dropped here, from the error's traceback.

    Where another process is lost, one that uses NCCL ends without leaving, which would wait for the lost one.

    Raises:
        UserError: another process was lost; told once for all of them. In others than the first one, and
            where `genssl train --gpus` waits for all of them and tells it, an Echo.
    """
    if dist.is_initialized():
        yield
        return
    mine = False
    try:
        mine = init(device)
        yield
    except BaseException as error:
        if mine:
            traceback.clear_frames(error.__traceback__)
        if not _is_loss(error):
            raise
        mine = mine and device.type != "cuda"
        kind = UserError if is_main_process() and LAUNCHER not in os.environ else Echo
        raise kind(f"another process of this run has ended; {_advice()}", LOST_PROCESS) from error
    finally:
        if mine:
            shutdown()


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    return (
        launched_world_size() > 1
        and isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in LOST)
    )


def all_reduce_max(code: int) -> int:
    """The largest of all processes' codes: what one wants, all do. A host read; none of the device."""
    if world_size() == 1:
        return code
    largest = torch.tensor(code)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def broadcast(text: str) -> str:
    """The first process's text, in every process."""
    if world_size() == 1:
        return text
    content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    length = torch.tensor(len(content))
    dist.broadcast(length, 0)
    received = content if is_main_process() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(received, 0)
    return bytes(received.tolist()).decode().strip()


def broadcast_folder(path: Path) -> None:
    """Tell the other processes where the run is kept, and make a note for those that follow a restart."""
    broadcast(str(path))
    if note := _note():
        note.write_text(str(path), encoding="utf-8")


def receive_folder() -> Path:
    """The other side of `tell_folder`."""
    return Path(broadcast(""))


def noted_folder() -> Path | None:
    """Where the run is kept that these processes, or those before a restart, have begun; None if none is."""
    note = _note()
    return Path(note.read_text(encoding="utf-8")) if note and note.exists() else None


def _note() -> Path | None:
    """The launcher's file, else one for this start of torchrun; on several computers there is none."""
    if launcher := os.environ.get(LAUNCHER):
        return Path(launcher)
    start = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if start == "none" else Path(tempfile.gettempdir()) / f"genssl-{start}"


def _advice() -> str:
    folder = noted_folder()
    return f"`genssl train --resume {folder}` continues" if folder else "start the command again"


def all_reduce_mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes of named scalars that stay on the device; without gradient."""
    detached = {name: value.detach() for name, value in values.items()}
    if world_size() == 1:
        return detached
    together = torch.stack(
        [value.to(torch.promote_types(value.dtype, torch.float32)) for value in detached.values()]
    )
    dist.all_reduce(together)
    return dict(zip(detached, together / world_size(), strict=True))


class _AllReduceSum(torch.autograd.Function):
    """The sum over processes. Its adjoint is the sum over processes of the gradients."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        found = mine.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found)
        return found


def all_reduce_sum(mine: Tensor) -> Tensor:
    """The sum over processes of a tensor that has the same shape in each, with gradients."""
    found: Tensor = mine if world_size() == 1 else _AllReduceSum.apply(mine)
    return found


def all_gather(mine: Tensor, n: int | None = None) -> Tensor:
    """The rows of all processes in the order of their ranks, with gradients: (n, D).

    Each process adds its rows, surrounded by zeros, so that the result is the same to the bit whoever holds
    which row.

    Args:
        mine: (share of n, D), this process's rows.
        n: how many rows there are in all; `count()` times as many as here when None.
    """
    if world_size() == 1:
        return mine
    n = n or world_size() * len(mine)
    rows = shard(n)
    return all_reduce_sum(F.pad(mine, (0, 0, rows.start, n - rows.stop)))
