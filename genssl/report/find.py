"""Which runs and studies a page is about."""

from collections.abc import Sequence
from pathlib import Path

from genssl.errors import UserError
from genssl.places import ARMS, root
from genssl.report.disk import Found, Run, is_place, is_run, is_study

PAGE = "report.html"


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
    """Where the page goes: into the folder that it is about, if that is one."""
    return (found.places[0] if len(found.places) == 1 else root()) / PAGE


def ranked(runs: Sequence[Run], method: str) -> list[Run]:
    """The runs of a method: finished ones first, one's own before shipped ones, the newest first."""
    own = [run for run in runs if run.method == method and not run.arm]
    return sorted(own, key=lambda run: (run.finished, not run.shipped, run.written), reverse=True)


def _add(reference: str, found: Found) -> None:
    for folder in (root() / reference, root() / ARMS / reference, Path(reference)):
        if is_run(folder) or is_study(folder):
            return found.add(folder)
    if is_place(Path(reference)):
        return found.add_place(Path(reference))
    everything = Found()
    everything.add_place(root())
    own = ranked(everything.runs, reference.lower().replace("-", "_"))
    if not own:
        raise UserError(
            f"no run {reference!r} in {root()}/, and no such folder of runs; `genssl runs list` names them"
        )
    return found.add(own[0].folder)
