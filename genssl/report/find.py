"""Which runs and studies a page is about."""

from collections.abc import Sequence
from pathlib import Path

from genssl.errors import UserError
from genssl.places import ARMS, REPORT, root, shipped_root, takes_results
from genssl.report.disk import Found, Run, is_place, is_run, is_study


def gather(references: Sequence[str]) -> Found:
    """What the REFs mean; everything in `root()` without any.

    Args:
        references: a run (a method, a name or a path), a study's folder, or a folder of runs and studies.

    Raises:
        UserError: one of them means nothing, or nothing is there at all.
    """
    found = Found()
    if not references:
        found.add_place(root())
    for reference in references:
        _add(reference, found)
    if not found.runs and not found.studies:
        where = ", ".join(references) or f"{root()}/"
        raise UserError(
            f"no run and no study in {where}; `genssl train vae` makes one, or name a folder of runs"
        )
    return found


def usual_page(found: Found) -> Path:
    """Where the page goes: into the folder or run that it is about, if that is one and takes it."""
    about = [*found.places, *(run.folder for run in found.runs if not found.places)]
    folder = about[0] if len(about) == 1 else root()
    is_closed = folder.exists() and not takes_results(folder)
    return Path(REPORT) if is_closed or folder.resolve() == shipped_root().resolve() else folder / REPORT


def ranked(runs: Sequence[Run], method: str) -> list[Run]:
    """The runs of a method: finished ones first, then those stopped by time; one's own before shipped ones,
    the newest first.
    """
    own = [run for run in runs if run.method == method and not run.arm]
    states = ("unfinished", "stopped by time", "finished")
    return sorted(own, key=lambda run: (states.index(run.state), not run.shipped, run.written), reverse=True)


def _add(reference: str, found: Found) -> None:
    path = Path(reference)
    for folder in (root() / reference, root() / ARMS / reference, path.parent if path.is_file() else path):
        if is_run(folder) or is_study(folder):
            return found.add(folder)
    if is_place(path):
        return found.add_place(path)
    if path.is_dir():
        raise UserError(f"{path} holds no run and no study; `genssl runs list` names those of {root()}/")
    method = reference.lower().replace("-", "_")
    everything = Found()
    everything.add_place(root())
    own = [*(run.folder for run in ranked(everything.runs, method)), shipped_root() / method]
    if not is_run(own[0]):
        raise UserError(
            f"no run {reference!r} in {root()}/, and no such folder of runs; `genssl runs list` names them"
        )
    return found.add(own[0])
