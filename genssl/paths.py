"""The folders of runs. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

MODEL = "model.safetensors"  # of a run
CONFIG = "config.json"  # of a run
REPORT = "report.html"  # of a folder of runs
ABOUT = "about.json"  # in such a folder: what its report says first
LABEL = "SHIPPED.txt"  # in a run's folder: it is a copy of the weights that come with genssl
LONGEST_STUDY = 200  # characters of the name of a study's folder
ARMS = "arms"  # the folder of ablations' runs: a method's name does not mean one of these
# A folder that has one of these is a run's, a study's, a plan's, or one of runs
MARKS = (MODEL, CONFIG, ABOUT, "ablate.json", "compare.json", "plan.json")
_ROOT: ContextVar[Path | None] = ContextVar("root", default=None)


def runs_root() -> Path:
    """The folder of runs: that of `use_runs_root`, else GENSSL_CHECKPOINTS, else ./checkpoints."""
    return _ROOT.get() or Path(os.path.expanduser(os.environ.get("GENSSL_CHECKPOINTS", "checkpoints")))


@contextmanager
def use_runs_root(folder: Path) -> Iterator[None]:
    """Inside, the folder of runs is `folder`."""
    token = _ROOT.set(folder)
    try:
        yield
    finally:
        _ROOT.reset(token)


def shipped_root() -> Path:
    """The folder of the shipped weights: in the installed package, else in the repository."""
    installed = Path(__file__).parent / "shipped"
    return installed if installed.exists() else Path(__file__).parent.parent / "checkpoints" / "shipped"


def is_shipped(folder: Path) -> bool:
    """Whether a run is one of those that come with genssl."""
    return folder.resolve().parent == shipped_root().resolve()


def is_writable_run(folder: Path) -> bool:
    """Whether results may be written to a run's folder: not to one that comes with genssl."""
    return not is_shipped(folder) and os.access(folder, os.W_OK)


def target_outside(file: Path) -> Path | None:
    """Where a file of a run or a study really is, if symbolic links lead out of its folder; else None.

    Folders come from other people, too: what such a link leads to is neither shown nor replaced.
    """
    for folder in (file.parent.parent, file.parent):
        if any(os.path.lexists(folder / name) for name in MARKS):
            target = Path(os.path.realpath(file))
            return None if target.is_relative_to(os.path.realpath(folder)) else target
    return None


def parents(*, arms: bool = False) -> list[Path]:
    """The folders that runs lie in: `runs_root()`, and with `arms` those of ablations, too."""
    return [runs_root(), runs_root() / ARMS] if arms else [runs_root()]
