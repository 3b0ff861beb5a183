"""Several processes that train one method: rank, shards, broadcasts and reductions.

Started by torchrun, or by `genssl train --gpus`. In a single process everything here costs nothing.
"""

import atexit
import contextlib
import gc
import importlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from genssl.environment import launched_world_size, restart_count
from genssl.errors import LOST_PROCESS, Echo, UserError

# The process id of `genssl train --gpus`, which reports the loss of a process itself
LAUNCHER = "GENSSL_LAUNCHER"
WATCH_EVERY = 0.5  # seconds
LOST = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "remote process",
    "timed out",
)


def world_size() -> int:
    """Number of processes in the group; 1 outside of one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 outside of a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes, draws and reports: that of rank 0, or the only one."""
    return rank() == 0


def shard(n: int) -> slice:
    """This process's rows of n, in the order of the ranks: nothing is padded, nothing dropped."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def init(device: torch.device) -> bool:
    """Join the processes that torchrun started; whether there was a group to join.

    Tensors of the host travel by gloo, those of CUDA devices by NCCL.
    """
    if launched_world_size() == 1 or dist.is_initialized():
        return False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DistributedDataParallel imports it, and its functions take the group of that moment as a default:
    # imported after the group is made, it would keep the group and its threads until the interpreter ends
    importlib.import_module("torch.distributed.nn.functional")
    store, number, size = next(rendezvous("env://"))
    # torchrun keeps its store over restarts: without a prefix, an attempt may read the addresses of
    # processes that are dead
    store = dist.PrefixStore(f"genssl/{restart_count()}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size)
    return True


def shutdown() -> None:
    """Leave the other processes, and join the threads that talk to them.

    Gloo's threads end when the last reference to the group does, and a DistributedDataParallel holds one: it
    has to be gone before. A thread that still frees a tensor while the interpreter ends aborts the process.
    """
    # What only a cycle holds
    gc.collect()
    dist.destroy_process_group()


def shutdown_at_exit(device: torch.device) -> None:
    """Leave the other processes when this one ends, however it does.

    One that uses NCCL just ends: after an error, leaving would wait for others that wait for this one.
    """
    if device.type != "cuda":
        atexit.register(shutdown)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes for as long as the context is open; inside of another one, nothing.

    The method in training must not outlive the context (see `shutdown`): keep it in a function called
    inside. After an error the local variables of such functions are dropped here, from the traceback.

    After an error, one that uses NCCL ends without leaving: that would wait for the others, which are lost or
    wait for this one.

    Raises:
        UserError: another process was lost; said once for all of them. In others than the first one, and
            under `genssl train --gpus`, which says it, an Echo.
    """
    if dist.is_initialized():
        yield
        return
    joined = False
    try:
        _end_with_launcher()  # before they meet, which they never do where it is killed meanwhile
        joined = init(device)
        yield
    except BaseException as error:
        if joined:
            traceback.clear_frames(error.__traceback__)
            joined = device.type != "cuda"
        if not _is_loss(error):
            raise
        kind = UserError if is_main_process() and LAUNCHER not in os.environ else Echo
        message = "another process of this run has ended; `genssl train --resume RUN` continues it"
        raise kind(message, LOST_PROCESS) from error
    finally:
        if joined:
            shutdown()


def _end_with_launcher() -> None:
    """Watch for the end of `genssl train --gpus`, which a kill takes without its processes: stop as it would.

    They save, as at any terminate signal, and let the run be continued.
    """
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher.isdecimal():
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(WATCH_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    return (
        launched_world_size() > 1
        and isinstance(error, RuntimeError)
        and any(word in str(error).lower() for word in LOST)
    )


def all_reduce_max(code: int) -> int:
    """The largest of all processes' codes. A read by the host of the host; none of the device."""
    if world_size() == 1:
        return code
    largest = torch.tensor(code)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def broadcast(text: str) -> str:
    """The first process's text, in every process."""
    if world_size() == 1:
        return text
    texts = [text]
    dist.broadcast_object_list(texts, src=0, device=torch.device("cpu"))
    return texts[0]


def all_reduce_mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes of named scalars that stay on the device; without gradient."""
    detached = {name: value.detach() for name, value in values.items()}
    if world_size() == 1:
        return detached
    stacked = torch.stack(
        [value.to(torch.promote_types(value.dtype, torch.float32)) for value in detached.values()]
    )
    dist.all_reduce(stacked)
    return dict(zip(detached, stacked / world_size(), strict=True))


class _AllReduceSum(torch.autograd.Function):
    """The sum over processes, whose adjoint is the sum over processes of the gradients.

    torch 2.14 deprecates its own, torch.distributed.nn.functional.all_reduce, and refuses to compile it; what
    it names instead is private.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradients[0])


def all_reduce_sum(local: Tensor) -> Tensor:
    """The sum over processes of a tensor that has the same shape in each, with gradients."""
    total: Tensor = local if world_size() == 1 else _AllReduceSum.apply(local)
    return total


def all_gather(local: Tensor, n: int | None = None) -> Tensor:
    """The rows of all processes in the order of their ranks, with gradients: (n, ...).

    Each process adds its rows, surrounded by zeros, so that the result is the same to the bit whoever holds
    which row, and shards need not be equal.

    Args:
        local: (shard of n, ...), this process's rows.
        n: how many rows there are in all; as many in each process as here when None.
    """
    if world_size() == 1:
        return local
    n = n or world_size() * len(local)
    rows = shard(n)
    padding = (0, 0) * (local.ndim - 1) + (rows.start, n - rows.stop)
    return all_reduce_sum(F.pad(local, padding))
