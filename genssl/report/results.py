"""Evaluation results: one by itself, and one evaluation over runs.

Nothing here knows an evaluation by its name. Title, headline, units and notes stand beside the numbers, as
`EvalResult.to_json` writes them; a file of version 0.1, which has none, shows its first numbers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from genssl.report import format
from genssl.report.figures import Cell, Table
from genssl.report.format import NONE
from genssl.report.load import Contents, Record, Run, recorded

# What is said elsewhere: of the result itself, and of the run
PROVENANCE = {
    "evaluation", "title", "headline", "units", "notes", "command", "run", "method", "epoch",
    "weights_sha256",
}  # fmt: skip
ORIGIN = {"data": format.data_label, "part": format.text, "device": format.text}
MOST = 6  # numbers of a result without a headline
MOST_ROWS = 20  # of a table
ARROWS = {"lower": "↓", "higher": "↑"}
BOUND = re.compile(r"(?:(.+)[ _.])?(?:(low|high)|(standard_error)\w*)")
MISSING = Cell(NONE)
STALE = "measured on other weights than the run holds now"
CONDITIONS = {"part": "split"}  # what a condition is called


@dataclass
class Quantity:
    """A value with its standard error or interval; None where it has none."""

    value: Any
    error: Any = None
    low: Any = None
    high: Any = None

    def cell(self, name: str) -> Cell:
        """The value and below it what is known of its accuracy."""
        return Cell(*format.with_bounds(name, self.value, self.error, self.low, self.high))


def quantities(values: Record) -> dict[str, Quantity]:
    """Values by name, those of a record in the record under dotted names.

    "standard_error", "low" and "high" belong to the value before them, "train_low" to "train".
    """
    result: dict[str, Quantity] = {}
    last: Quantity | None = None
    for name, value in _flat(values):
        match = BOUND.fullmatch(name)
        owner = result.get(match[1] or "", last) if match else None
        if match is None or owner is None:
            last = result[name] = Quantity(value)
        else:
            setattr(owner, match[2] or "error", value)
    return result


def _flat(values: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(dict(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_table(value: Any) -> bool:
    """Whether a value is a table: a list of records."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) and row for row in value)


@dataclass(frozen=True)
class Result:
    """What an evaluation found, as it was written.

    Attributes:
        run: the name of the run.
        name: of the file, without its suffix.
        values: all that the file holds.
        state: what to know of the run's weights, e.g. that they are unfinished.
    """

    run: str
    name: str
    values: Record
    state: str = ""

    @property
    def evaluation(self) -> str:
        """The evaluation's name; of an older file the command's, or else the file's."""
        if isinstance(name := self.values.get("evaluation"), str) and name:
            return name
        words = format.text(self.values.get("command")).split()
        return next((word for word in words if f"{self.name}-".startswith(f"{word}-")), self.name)

    @property
    def variant(self) -> str:
        """The options in the file's name, e.g. "ddim 50"."""
        return self.name.removeprefix(self.evaluation).replace("-", " ").strip()

    @property
    def title(self) -> str:
        """A heading."""
        title = self.values.get("title")
        return title if isinstance(title, str) and title else format.heading(self.evaluation)

    @property
    def notes(self) -> list[str]:
        """Sentences that a reader needs to interpret the numbers."""
        return [note for note in _list(self.values.get("notes")) if isinstance(note, str)]

    @property
    def headline(self) -> list[str]:
        """The names of the main values; without any, tables with a better end, or else the first numbers."""
        if names := [name for name in _list(self.values.get("headline")) if isinstance(name, str)]:
            return names
        ranked = [name for name, rows in self.tables.items() if "better" in rows[0]]
        numbers = [name for name, item in self._quantities.items() if format.is_number(item.value)]
        return ranked or [name for name in numbers if name not in PROVENANCE][:MOST]

    @cached_property
    def tables(self) -> dict[str, list[Record]]:
        """The values that are tables, by name."""
        return {name: value for name, value in self.values.items() if is_table(value)}

    @cached_property
    def _quantities(self) -> dict[str, Quantity]:
        return quantities(self.values)

    def label(self, name: str) -> str:
        """A value's name as words, with its unit."""
        units = self.values.get("units")
        unit = units.get(name) if isinstance(units, dict) else None
        return format.label(name, unit if isinstance(unit, str) else "")

    @cached_property
    def main(self) -> dict[str, tuple[str, Cell]]:
        """Label and value of the headline by name; the rows of a table in it by what they measure."""
        shown: dict[str, tuple[str, Cell]] = {}
        for name in self.headline:
            if rows := self.tables.get(name):
                measured = next(iter(_columns(rows).values()), {})
                arrows = {_key(row): ARROWS.get(str(row.get("better")), "") for row in rows}
                shown |= {
                    key: (f"{self.label(key)} {arrows[key]}".strip(), measured[key]) for key in measured
                }
            elif name in self._quantities:
                shown[name] = (self.label(name), self._quantities[name].cell(name))
        return shown

    @property
    def cells(self) -> dict[str, Cell]:
        """The values of the headline by name."""
        return {name: cell for name, (_, cell) in self.main.items()}

    def references(self) -> dict[str, dict[str, Cell]]:
        """What the same numbers are without the run, by what was measured in its place.

        Those are further columns of a table in the headline, and other rows of a table that has a column of
        the headline.
        """
        result: dict[str, dict[str, Cell]] = {}
        main = self.cells
        for name, rows in self.tables.items():
            if name in self.headline:
                result |= dict(list(_columns(rows).items())[1:])
            for row in [] if name in self.headline else rows:
                cells = {key: item.cell(key) for key, item in quantities(row).items() if key in main}
                if cells and isinstance(_first(row), str) and any(main[key] != cells[key] for key in cells):
                    result[_key(row)] = cells
        return result

    def conditions(self, *, outcomes: bool = True) -> dict[str, str]:
        """What else the file says in a word or two: data, split, device, sizes, settings.

        Args:
            outcomes: also numbers that are not whole; else the beginnings of digests.
        """
        shown = {name: show(self.values.get(name)) for name, show in ORIGIN.items()}
        main = {name.split(".")[0] for name in self.headline}
        for name, value in self.values.items():
            is_bound = name not in self._quantities and not isinstance(value, dict)
            if name in PROVENANCE | ORIGIN.keys() | main or is_bound:
                continue
            if name.endswith("digest"):
                shown[name] = f"{value[:8]}…" if isinstance(value, str) and not outcomes else NONE
            elif outcomes or not isinstance(value, float):
                shown[name] = format.value_of(name, value)
        return {name: text for name, text in shown.items() if text != NONE}


def of_run(run: Run) -> list[Result]:
    """Every result of a run."""
    return [Result(run.name, name, values, state_of(run, values)) for name, values in run.evaluations.items()]


def described(result: Result) -> Record:
    """What stands beside a result's figure: numbers, conditions, tables, notes and command."""
    in_tables = {key for name in result.headline if name in result.tables for key in result.main}
    stale = [STALE] if "other weights" in result.state else []
    return {
        "numbers": [
            (label, cell.line) for name, (label, cell) in result.main.items() if name not in in_tables
        ],
        "conditions": in_words(result.conditions()),
        "tables": [table_of(name, rows) for name, rows in result.tables.items()],
        "notes": [*stale, *result.notes],
        "command": recorded(result.values),
    }


def state_of(run: Run, values: Record) -> str:
    """What to know of the weights that were measured: shipped, too few epochs, not those of the run now."""
    digest = values.get("weights_sha256")
    is_stale = run.info is not None and isinstance(digest, str) and digest != run.info.digest
    states = [
        "shipped weights" if run.shipped else "",
        "" if run.state == "finished" else f"{run.state}: {run.progress} epochs",
        "other weights" if is_stale else "",
    ]
    return ", ".join(filter(None, states))


def of_comparisons(contents: Contents) -> Iterator[Result]:
    """What comparisons measured of their runs: their tables with a row per run, by the evaluation's name."""
    for study in contents.studies:
        for name, rows in study.values.items():
            for row in rows if is_table(rows) and name not in {"runs", "rows"} else []:
                if isinstance(row.get("run"), str):
                    yield Result(row["run"], name, row)


def compare(contents: Contents) -> list[Table]:
    """A table an evaluation, with a row a result."""
    groups: dict[str, list[Result]] = {}
    for result in (item for run in contents.runs for item in of_run(run)):
        groups.setdefault(result.evaluation, []).append(result)
    for result in of_comparisons(contents):
        group = groups.setdefault(result.evaluation, [])
        if not any(other.run == result.run and other.cells == result.cells for other in group):
            group.append(result)
    with_numbers = ([result for result in group if result.main] for group in groups.values())
    return [_comparison(group) for group in with_numbers if group]


def _comparison(group: Sequence[Result]) -> Table:
    labels: dict[str, str] = {}
    for result in group:
        labels |= {name: label for name, (label, _) in result.main.items() if name not in labels}
    rows = [
        [
            Cell(result.run, ", ".join(filter(None, [result.variant, result.state]))),
            *(result.cells.get(name, MISSING) for name in labels),
        ]
        for result in group
    ]
    shared, varying = _split_conditions([result.conditions(outcomes=False) for result in group])
    names = list(varying[0])
    rows = [[*row, *map(Cell, rest.values())] for row, rest in zip(rows, varying, strict=True)]
    references = [[*row, *[MISSING] * len(names)] for row in _references(group, list(labels))]
    title = next((result.title for result in group if result.values.get("title")), group[0].title)
    columns = ["run", *labels.values(), *(format.label(CONDITIONS.get(name, name)) for name in names)]
    explained = {row[0].text for row in references}
    notes = [note for result in group for note in result.notes if note.split(":")[0] in explained]
    return Table(
        title, columns, [*rows, *references], in_words(shared), list(dict.fromkeys(notes)), len(references)
    )


def _split_conditions(
    all_conditions: Sequence[Mapping[str, str]],
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What all rows have in common, and what differs between those that have it.

    A digest is shown where what it is of has the same name in all rows, and is not the same.
    """
    names = list(dict.fromkeys(name for conditions in all_conditions for name in conditions))
    first = all_conditions[0]
    same = [n for n in names if all(other.get(n) == first.get(n) for other in all_conditions)]
    shared = {name: first[name] for name in same if not name.endswith("digest")}
    rest = [
        name
        for name in names
        if name not in same
        and sum(name in conditions for conditions in all_conditions) > 1
        and not (name.endswith("digest") and name.removesuffix("_digest") not in same)
    ]
    return shared, [{name: item.get(name, NONE) for name in rest} for item in all_conditions]


def in_words(conditions: Mapping[str, str]) -> str:
    """Conditions in a line."""
    named = {format.label(CONDITIONS.get(name, name)): text for name, text in conditions.items()}
    return "; ".join(f"{name}: {text}" for name, text in named.items())


def _references(group: Sequence[Result], names: Sequence[str]) -> list[list[Cell]]:
    """A row of each reference; one where several results agree in all that both have."""
    rows: list[tuple[str, list[Cell], list[str]]] = []
    for result in group:
        for name, cells in result.references().items():
            row = [cells.get(key, MISSING) for key in names]
            for i, (other, known, beside) in enumerate(rows):
                if other == name and all(
                    a == b or MISSING in (a, b) for a, b in zip(row, known, strict=True)
                ):
                    both = [a if b == MISSING else b for a, b in zip(row, known, strict=True)]
                    rows[i] = (name, both, [*beside, result.run])
                    break
            else:
                rows.append((name, row, [result.run]))
    everyone = [result.run for result in group]
    return [
        [Cell(name, "" if beside == everyone else f"beside {', '.join(beside)}"), *row]
        for name, row, beside in rows
    ]


def _columns(rows: Sequence[Record]) -> dict[str, dict[str, Cell]]:
    """The columns of numbers of a table whose first column names what is measured: cells by that name."""
    columns: dict[str, dict[str, Cell]] = {}
    for row in rows:
        key = _key(row)
        for name, item in list(quantities(row).items())[1:]:
            if item.value is None or format.is_number(item.value):
                columns.setdefault(name, {})[key] = item.cell(key)
    return columns


def table_of(name: str, rows: Sequence[Record]) -> Table:
    """A value that is a table, as it is; a long one in part."""
    known = [quantities(row) for row in rows[:MOST_ROWS]]
    names = list(dict.fromkeys(key for row in known for key in row))
    body = [[_cell(key, row[key]) if key in row else MISSING for key in names] for row in known]
    rest = f"{MOST_ROWS} of {len(rows)} rows; the JSON file has all" if len(rows) > MOST_ROWS else ""
    return Table(format.label(name), [format.label(key) for key in names], body, rest)


def _cell(name: str, quantity: Quantity) -> Cell:
    is_name = isinstance(quantity.value, str) and quantity.value.isidentifier()
    return Cell(format.label(quantity.value)) if is_name else quantity.cell(name)


def _first(row: Record) -> Any:
    return next(iter(row.values()))


def _key(row: Record) -> str:
    """What a row is of: its first value."""
    return format.text(_first(row))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
