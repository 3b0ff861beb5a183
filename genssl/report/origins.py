"""Whose numbers the rows of a table are, and what they were measured on."""

from collections.abc import Iterator, Sequence

from genssl.report.commands import kind_of
from genssl.report.disk import Record, Run
from genssl.report.findings import epochs
from genssl.report.parts import Cell
from genssl.report.words import data_label, text


def evaluations(runs: Sequence[Run], kind: str) -> Iterator[tuple[Run, str, Record]]:
    """Every evaluation of this kind, variants included: run, name of the file, numbers."""
    for run in runs:
        for name, values in run.evaluations.items():
            if kind_of(name) == kind:
                yield run, name, values


def who(run: Run, name: str = "", kind: str = "") -> Cell:
    """The run, which variant of an evaluation it is, and whether the weights are those of the repository."""
    variant = name.removeprefix(kind).removeprefix("-")
    state = [
        "shipped weights" if run.shipped else "",
        "" if run.state == "finished" else f"{run.state}: {epochs(run)} epochs",
    ]
    return Cell(run.name, ", ".join(filter(None, [variant, *state])))


def origin(values: Record, **sizes: str) -> dict[str, str]:
    """What an evaluation was measured on, by name."""
    about = {"data": data_label(values.get("data")), "split": text(values.get("part"))}
    return {**about, **sizes, "device": text(values.get("device"))}
