"""What a page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genssl.report import words
from genssl.report.pictures import Picture


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a text, and a smaller one beneath it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        about: what all its rows have in common: data, split, images, device.
        floor: how many of the last rows are no models.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    about: str = ""
    notes: list[str] = field(default_factory=list)
    floor: int = 0


@dataclass(frozen=True)
class Plate:
    """A figure with everything that belongs to it.

    Attributes:
        anchor: its place in the page.
        label: e.g. "Figure 4".
        question: of the assignment.
        source: the run or study that it is of.
        shipped: what to say where that run holds the weights of the repository.
        numbers: names and values.
        command: what made it; empty where that is not known.
        usual: what makes such a figure; the commands to give where there is no picture.
    """

    anchor: str
    label: str
    title: str
    question: str = ""
    source: str = ""
    shipped: str = ""
    picture: Picture | None = None
    numbers: list[tuple[str, str]] = field(default_factory=list)
    table: Table | None = None
    notes: list[str] = field(default_factory=list)
    command: str = ""
    usual: list[str] = field(default_factory=list)


def with_origins(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    origins: Sequence[Mapping[str, str]],
    notes: Sequence[str] = (),
) -> Table:
    """A table whose rows were measured on something: in its caption where that is the same, else in columns.

    Args:
        origins: of each row, by name, all with the same names, e.g. data, split, images, device.
    """
    shared = {name: value for name, value in origins[0].items() if all(o[name] == value for o in origins)}
    varying = [name for name in origins[0] if name not in shared]
    body = [
        [*row, *(Cell(origin[name]) for name in varying)] for row, origin in zip(rows, origins, strict=True)
    ]
    about = "; ".join(f"{name}: {value}" for name, value in shared.items() if value != words.NONE)
    return Table(title, [*columns, *varying], body, about, list(dict.fromkeys(notes)))
