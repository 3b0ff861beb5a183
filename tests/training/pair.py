"""The same work in one process and in two: what tests of several processes are made of."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genssl import distributed

Work = Callable[[], dict[str, Tensor]]
TASKS = Path("/proc/self/task")


def in_processes(work: Work, folder: Path, count: int = 2) -> list[dict[str, Tensor]]:
    """What `work`, a function of a module, gives in each of `count` processes that have joined by gloo.

    And under "gloo_threads" how many of gloo's threads are left after they have parted.
    """
    start_processes(_work, work, folder, count=count)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(count)]


def start_processes(target: Callable[..., None], *arguments: object, count: int = 2) -> None:
    """Call `target`, a function of a module, in each of `count` processes as torchrun would, and wait."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        context.Process(target=_call, args=(target, arguments, rank, count, port), daemon=True)
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * count


def _call(
    target: Callable[..., None], arguments: tuple[object, ...], rank: int, count: int, port: int
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    target(*arguments)


def _work(work: Work, folder: Path) -> None:
    with distributed.process_group(torch.device("cpu")):
        found = {name: value.contiguous().clone() for name, value in work().items()}
    found["gloo_threads"] = torch.tensor(gloo_threads())
    save_file(found, folder / f"{os.environ['RANK']}.safetensors")


def gloo_threads() -> int:
    """How many of this process's threads carry out gloo's collectives or serve its connections."""
    names = [(thread / "comm").read_text() for thread in TASKS.iterdir()] if TASKS.exists() else []
    return sum("gloo" in name for name in names)
