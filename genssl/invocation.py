"""The command line that is being carried out, so that a number can say how it was made."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_ARGUMENTS: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextmanager
def carrying_out(arguments: Sequence[str]) -> Iterator[None]:
    """What happens inside is done by `genssl` with these arguments; one command may carry out another."""
    token = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def command_line() -> str:
    """What a person types to do the same again; the Python program's own line outside of any command."""
    arguments = _ARGUMENTS.get()
    return shlex.join(sys.argv) if arguments is None else shlex.join(["genssl", *arguments])
