"""The command line that is carried out, and the rank that torchrun gave this process. No torch."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_ARGUMENTS: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextmanager
def record_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """What happens inside is done by `genssl` with these arguments; one command may carry out another."""
    token = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def launched_rank() -> int:
    """Which of the processes of a run this one is; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def is_launched_by_torchrun() -> bool:
    """Whether this is one of the processes that torchrun, or a batch queue in its place, started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def restart_count() -> int:
    """How often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def arguments() -> tuple[str, ...]:
    """What is being carried out; the Python program's own arguments outside of any command."""
    found = _ARGUMENTS.get()
    return tuple(sys.argv[1:]) if found is None else found


def command_line() -> str:
    """What a person types to do the same again; the Python program's own line outside of any command."""
    found = _ARGUMENTS.get()
    return shlex.join(sys.argv) if found is None else shlex.join(["genssl", *found])
