"""`genssl train --gpus N`: one command line in several processes of this computer, through torchrun."""

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from genssl import processes
from genssl.errors import FAILED_RUN, Echo, UserError
from genssl.runtime import choose_device

TOLD_BY_WORKERS = range(1, 256)  # exit codes; a process that was killed has the signal's number, negative


def launch(arguments: Sequence[str], count: int, device: str, max_restarts: int = 0) -> None:
    """Carry out `genssl ARGUMENTS` in `count` processes, and wait for them.

    A process that dies ends the others. Up to `max_restarts` times all are started again, and go on from
    the last saved state.

    Args:
        arguments: of the command, as a person typed them.
        count: how many processes.
        device: what --device says.
        max_restarts: how often.

    Raises:
        UserError: there are not so many GPUs, or a process was killed.
        Echo: a process failed or was stopped, and has said so itself.
    """
    _check_devices(count, device)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what happens is said once, here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[processes.LAUNCHER] = note = str(Path(folder) / "run")
        words = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={max_restarts}"]
        try:
            run(parse_args([*words, "-m", "genssl", *arguments]))
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise _explained(codes, Path(note), count) from error
        except SignalException as stop:
            raise Echo("stopped", 128 + stop.sigval) from stop
        finally:
            del os.environ[processes.LAUNCHER]


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


def _explained(codes: dict[int, int], note: Path, count: int) -> UserError:
    """What the exit codes of failed processes, by rank, mean for a person."""
    killed = {rank: code for rank, code in codes.items() if code not in TOLD_BY_WORKERS}
    if not killed:
        return Echo("a process failed", max(codes.values(), default=FAILED_RUN))
    # torchrun ends the others with SIGTERM, so that one which ended otherwise is the cause
    rank, code = min(killed.items(), key=lambda item: (item[1] == -signal.SIGTERM, item[0]))
    cause = f"was killed ({signal.Signals(-code).name})" if code < 0 else "ended"
    again = "start the command again"
    if note.exists():
        again = f"`genssl train --resume {note.read_text()} --gpus {count}` continues"
    return UserError(f"process {rank} of {count} {cause}; {again}", FAILED_RUN)
