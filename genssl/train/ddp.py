"""Several processes: batch norms over the global batch, averaged gradients, and `genssl train --gpus N`."""

import logging
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from genssl import distributed
from genssl.environment import RESTART_COUNTS
from genssl.errors import FAILED_RUN, LOST_PROCESS, Echo, UserError
from genssl.models.method import Method
from genssl.runtime import choose_device


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, on any device: torch's SyncBatchNorm refuses the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), normalised over all but the channels, and over the processes."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        n = distributed.world_size() * x.numel() / x.shape[1]  # every process has as many images
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = distributed.all_reduce_sum(wide.sum(axes)) / n  # (C,)
            centred = wide - mean.view(shape)
            variance = distributed.all_reduce_sum(centred.square().sum(axes)) / n
            self._remember(mean, variance * n / (n - 1))
            found = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def convert_batch_norm(method: Method, device: torch.device) -> Method:
    """The method with batch norms over all processes' images; untouched where there is one process."""
    if distributed.world_size() == 1:
        return method
    if device.type == "cuda":
        converted: Method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return converted
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _to_global(child))
    return method


def _to_global(norm: _BatchNorm) -> GlobalBatchNorm:
    """The same norm, weights and statistics, over all processes."""
    found = GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    found.__dict__.update(norm.__dict__)  # parameters and buffers are shared, so that optimisers keep theirs
    return found


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
    each, rest = divmod(batch_size, distributed.world_size())
    if rest:
        sizes = [size * distributed.world_size() for size in (each, each + 1) if size > 0]
        raise UserError(
            f"a batch of {batch_size} images has no equal shares for {distributed.world_size()} processes; "
            f"use --batch-size {' or '.join(map(str, sizes))}"
        )


Tell = Callable[[str], None]


def launch(arguments: Sequence[str], count: int, device: str, max_restarts: int, tell: Tell) -> None:
    """Carry out `genssl ARGUMENTS` in `count` processes, and wait for them.

    A process that is killed ends the others. Up to `max_restarts` times all are started again, and go on
    from the last saved state; not after an error that would come again.

    Args:
        arguments: of the command, as a person typed them.
        count: how many processes.
        device: what --device says.
        max_restarts: how often.
        tell: told of each restart.

    Raises:
        UserError: there are not so many GPUs, or a process was killed.
        Echo: a process failed or was stopped, and has said so itself.
    """
    _check_devices(count, device)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what happens is said once, here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[distributed.LAUNCHER] = str(Path(folder) / "run")
        try:
            for restart in range(max_restarts + 1):
                os.environ[RESTART_COUNTS[1]] = str(restart)
                failure = _attempt(arguments, count, device)
                if failure is None:
                    return
                if isinstance(failure, Echo) or restart == max_restarts:
                    raise failure
                tell(f"{failure}; starting again, {restart + 1} of {max_restarts}")
        finally:
            del os.environ[distributed.LAUNCHER], os.environ[RESTART_COUNTS[1]]


def _attempt(arguments: Sequence[str], count: int, device: str) -> UserError | None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(["--standalone", f"--nproc-per-node={count}", "-m", "genssl", *arguments]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return _explained(codes, count, device)
    except SignalException as stop:
        return Echo("stopped", 128 + stop.sigval)
    return None


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


def _explained(codes: dict[int, int], count: int, device: str) -> UserError:
    """What the exit codes of the processes that did not end well, by rank, mean for a person.

    Negative ones are signals: torchrun's own, which ends the others after a failure, or the cause.
    """
    own = [code for _, code in sorted(codes.items()) if code > 0 and code != LOST_PROCESS]
    if own:
        return Echo("a process failed, and has said so", own[0])
    killed = {rank: code for rank, code in codes.items() if code < 0}
    cause = "a process ended"
    if killed:
        rank, code = min(killed.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[0]))
        cause = f"process {rank} of {count} was killed ({signal.Signals(-code).name})"
    folder = distributed.noted_folder()
    again = "start the command again"
    if folder:
        words = ["genssl", "train", "--resume", str(folder), "--gpus", str(count)]
        again = f"`{shlex.join(words + ([] if device == 'auto' else ['--device', device]))}` continues"
    return UserError(f"{cause}; {again}", FAILED_RUN)
