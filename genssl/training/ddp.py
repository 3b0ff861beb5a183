"""Several processes: batch norms over the global batch, averaged gradients, and `genssl train --gpus N`."""

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from genssl import distributed
from genssl.errors import FAILED_RUN, LOST_PROCESS, TERMINATED, Echo, UserError
from genssl.models.method import Method
from genssl.runtime import choose_device


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes on the CPU, which torch's SyncBatchNorm refuses.

    Every process has as many images, so that n is the same in each.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), normalized over all but the channels, and over the processes."""
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        n = distributed.world_size() * x.numel() / x.shape[1]
        # bf16 sums are too coarse
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = distributed.all_reduce_sum(wide.sum(axes)) / n  # (C,)
        centered = wide - mean.view(shape)
        variance = distributed.all_reduce_sum(centered.square().sum(axes)) / n
        self._update_running(mean.detach(), variance.detach() * n / (n - 1))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        running: list[Any] = [self.running_mean, self.running_var]
        for statistic, value in zip(running, (mean, variance), strict=True):
            statistic.lerp_(value.to(statistic.dtype), self.momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def convert_batch_norm(method: Method, device: torch.device) -> Method:
    """The method with batch norms over all processes' images; untouched where there is one process."""
    if distributed.world_size() == 1:
        return method
    _check_norms(method)
    if device.type == "cuda":
        converted: Method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return converted
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            # The same module, so that optimizers keep its parameters
            module.__class__ = GlobalBatchNorm
    return method


def _check_norms(method: Method) -> None:
    """Refuse batch norms that do more than normalize: a batch norm over the processes would not do it.

    Raises:
        UserError: there are such norms, as in some networks of timm.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, GlobalBatchNorm)
    norms = {type(module) for module in method.modules() if isinstance(module, _BatchNorm)}
    if others := sorted(kind.__name__ for kind in norms.difference(plain)):
        raise UserError(
            f"the encoder has {', '.join(others)}, which several processes cannot share; "
            "train it in one process, or choose another encoder"
        )


def wrap_ddp(objective: nn.Module) -> nn.Module:
    """The objective with gradients averaged over the processes; untouched where there is one."""
    if distributed.world_size() == 1:
        return objective
    # Buffers are the same everywhere without being sent: every statistic is over the global batch
    return DistributedDataParallel(objective, broadcast_buffers=False)


def check_batch_divides(batch_size: int) -> None:
    """Refuse a global batch that has no equal shares: means of unequal ones are not the batch's mean.

    Raises:
        UserError: with the nearest sizes that have.
    """
    local, rest = divmod(batch_size, distributed.world_size())
    if rest:
        sizes = [size * distributed.world_size() for size in (local, local + 1) if size > 0]
        raise UserError(
            f"a batch of {batch_size} images has no equal shares for {distributed.world_size()} processes; "
            f"use --batch-size {' or '.join(map(str, sizes))}"
        )


def launch(arguments: Sequence[str], count: int, device: str, max_restarts: int) -> None:
    """Carry out `genssl ARGUMENTS` in `count` processes under torchrun, and wait for them.

    When a process dies, torchrun ends the others, and starts all of them again up to `max_restarts` times;
    they go on from the last saved state.

    Args:
        arguments: those of the command, as typed.
        count: number of processes.
        device: --device.
        max_restarts: as for torchrun.

    Raises:
        UserError: there are fewer GPUs, or a process was killed.
        Echo: a process failed or was stopped, and has said so itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    _check_devices(count, device)
    # What happens is said once, by the failing process or here; torch's loggers have levels of their own
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
    os.environ[distributed.LAUNCHER] = str(os.getpid())
    options = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={max_restarts}"]
    logs = tempfile.TemporaryDirectory(prefix="genssl-")  # torchrun makes one in any case, and leaves it
    try:
        run(parse_args([*options, "--log-dir", logs.name, "-m", "genssl", *arguments]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise _launch_error(codes, count, arguments) from error
    except SignalException as stop:
        raise Echo("stopped", 128 + stop.sigval) from stop
    finally:
        logging.disable(logging.NOTSET)
        logs.cleanup()
        del os.environ[distributed.LAUNCHER]


def _cores() -> int:
    """Those that this process may use, which a batch queue may have limited."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity())
    return int(psutil.cpu_count() or 1)


def _check_devices(count: int, device: str) -> None:
    kind = choose_device(device)
    if kind.type == "cpu" and device == "auto":
        raise UserError(f"no GPU on this machine; --device cpu runs --gpus {count} on the CPU")
    if kind.type == "cuda" and (kind.index is not None or count > torch.cuda.device_count()):
        raise UserError(
            f"--gpus {count} takes GPUs 0 to {count - 1}, and this machine has {torch.cuda.device_count()}; "
            "use --device cuda and no more than there are"
        )
    if kind.type == "mps" and count > 1:
        raise UserError("one computer has one such GPU; --device cpu runs several processes")


def _launch_error(codes: dict[int, int], count: int, arguments: Sequence[str]) -> UserError:
    """What the exit codes of the processes that failed, by rank, mean for a person.

    After a failure torchrun sends SIGTERM to the others, which end by the signal or save and exit with 143,
    and the others may have noticed the loss themselves: none of these is the cause.
    """
    consequences = {LOST_PROCESS, TERMINATED}
    reported = [code for _, code in sorted(codes.items()) if code > 0 and code not in consequences]
    if reported:
        return Echo("a process failed, and has said so", reported[0])
    killed = {rank: code for rank, code in codes.items() if code < 0}
    if not killed and TERMINATED in codes.values():
        return Echo("stopped", TERMINATED)
    cause = "a process ended"
    if killed:
        rank, code = min(killed.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[0]))
        cause = f"process {rank} of {count} was killed ({signal.Signals(-code).name})"
    continues = any(word.startswith(("--auto-resume", "--resume")) for word in arguments)
    again = "the same command" if continues else "the same command with --auto-resume"
    return UserError(f"{cause}; {again} continues the run", FAILED_RUN)
