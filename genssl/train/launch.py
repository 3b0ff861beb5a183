"""`genssl train --gpus N`: one command line in several processes of this computer, through torchrun."""

import logging
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from genssl import processes
from genssl.errors import FAILED_RUN, LOST_PROCESS, Echo, UserError
from genssl.runtime import choose_device

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
        os.environ[processes.LAUNCHER] = str(Path(folder) / "run")
        try:
            for restart in range(max_restarts + 1):
                os.environ[processes.RESTARTS] = str(restart)
                failure = _attempt(arguments, count, device)
                if failure is None:
                    return
                if isinstance(failure, Echo) or restart == max_restarts:
                    raise failure
                tell(f"{failure}; starting again, {restart + 1} of {max_restarts}")
        finally:
            del os.environ[processes.LAUNCHER], os.environ[processes.RESTARTS]


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
    folder = processes.noted_folder()
    again = "start the command again"
    if folder:
        words = ["genssl", "train", "--resume", str(folder), "--gpus", str(count)]
        again = f"`{shlex.join(words + ([] if device == 'auto' else ['--device', device]))}` continues"
    return UserError(f"{cause}; {again}", FAILED_RUN)
