"""What a result depends on besides its settings: command line, processes, versions. No torch."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "genssl", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "safetensors", "pydantic",
    "typer", "rich", "filelock", "psutil",
)  # fmt: skip
SOURCE = Path(__file__).parent
# What torchrun, or a batch queue in its place, tells each process
COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
_ARGUMENTS: ContextVar[tuple[str, ...] | None] = ContextVar("arguments", default=None)


@contextmanager
def record_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, `genssl` runs with these arguments; one command may run another."""
    token = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def wrong_counts() -> list[str]:
    """The variables of COUNTS that are no whole numbers, as NAME=value."""
    given = {name: os.environ[name] for name in COUNTS if name in os.environ}
    return [f"{name}={value}" for name, value in given.items() if not _is_whole(value)]


def _is_whole(text: str) -> bool:
    # int() refuses thousands of digits
    return text.strip().isascii() and text.strip().isdigit() and len(text) < 20


def _count(name: str, default: int) -> int:
    """A variable of COUNTS; `default` where it is wrong, which the command line refuses at its start."""
    value = os.environ.get(name, "")
    return int(value) if _is_whole(value) else default


def launched_world_size() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return _count("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Rank that torchrun gave this process; 0 where there is one process."""
    return _count("RANK", 0) if launched_world_size() > 1 else 0


def is_launched_by_torchrun() -> bool:
    """Whether this is one of the processes that torchrun, or a batch queue in its place, started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or launched_world_size() > 1


def restart_count() -> int:
    """How often torchrun has started the processes again."""
    return _count("TORCHELASTIC_RESTART_COUNT", 0)


def arguments() -> tuple[str, ...]:
    """Arguments of the running command; those of the Python program outside of any."""
    recorded = _ARGUMENTS.get()
    return tuple(sys.argv[1:]) if recorded is None else recorded


def command_line() -> str:
    """The running command as typed; the Python program's line outside of any."""
    recorded = _ARGUMENTS.get()
    return shlex.join(sys.argv) if recorded is None else shlex.join(["genssl", *recorded])


def system() -> dict[str, Any]:
    """Versions of Python, the system and the packages, and the number of CPU cores."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_revision(source: Path = SOURCE) -> str | None:
    """Revision of the checkout that this package runs from, with + when it was changed.

    None where the package was installed or unpacked, be it within somebody's repository.
    """
    try:
        root = Path(_git(source, "rev-parse", "--show-toplevel"))
        if (root / "genssl").resolve() != source.resolve():
            return None
        # Fails for a file that git does not track
        _git(source, "ls-files", "--error-unmatch", "__init__.py")
        return _git(source, "describe", "--always", "--dirty=+", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=5, check=True
    )
    return done.stdout.strip()
