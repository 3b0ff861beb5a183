"""Ablations and comparisons: their tables, pictures and sentences."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genssl.report import format
from genssl.report.figures import Cell, ReportFigure, Table, embed
from genssl.report.format import NONE, number
from genssl.report.load import Contents, Record, Study, recorded

RANKING = "ablate-ranking"  # the stem of a sweep's picture
LONGEST_NAME = 60  # characters of an arm in the name of its picture
COLUMNS = {  # in this order, where a side has them
    "knn_accuracy_full": "kNN accuracy",
    "linear_test_accuracy": "linear, test",
    "linear_train_accuracy": "linear, train",
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "output_std": "output std",
    "rankme": "rank",
    "output_scale": "scale",
    "bits_per_dim": "bits/dim",
    "loss": "loss",
    "test_loss": "test loss",
    "validation_loss": "validation loss",
    "training_seconds": "training",
    "sampling_seconds": "sampling 64",
    "ancestral_seconds": "16 by every step",
}


def draw(study: Study, contents: Contents) -> list[ReportFigure]:
    """All its sides in one figure, and what a comparison draws beside it."""
    name, main = study.folder.name, study.pictures.get(study.kind)
    whole = ReportFigure(
        anchor=name,
        title="an ablation" if study.kind == "ablate" else "a comparison",
        pictures=embed(main, f"{study.kind}: all sides of {name}", contents.problems) if main else [],
        **described(study, ranked(study)),
    )
    figures = [whole]
    for stem, file in study.pictures.items():
        if file != main and (study.kind == "compare" or stem == RANKING):
            title = format.label(stem.removeprefix(f"{study.kind}-"))
            pictures = embed(file, f"{title}, of {name}", contents.problems)
            figures += [ReportFigure(f"{name}-{stem}", title, pictures=pictures)] if pictures else []
    return figures


def described(study: Study, rows: Sequence[Record], verdicts_of: Sequence[Record] | None = None) -> Record:
    """What stands beside a figure of some of a study's rows: numbers, table, notes and command."""
    return {
        "numbers": origin(study),
        "tables": [made] if (made := table(rows, study.kind)) else [],
        "notes": [*verdicts(rows if verdicts_of is None else verdicts_of), *notes(study)],
        "command": recorded(study.values),
    }


def arms(study: Study) -> list[Record]:
    """The rows of an ablation, or the sides of a comparison."""
    rows = study.values.get("rows" if study.kind == "ablate" else "runs")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def ranked(study: Study) -> list[Record]:
    """The arms of an ablation from the best to the worst by its metric; sides of a comparison as they are."""
    names = _record(study.values.get("ranking")).get("arms")
    order = [_record(item).get("arm") for item in names] if isinstance(names, list) else []
    known = [row for row in arms(study) if row.get("arm") in order]
    known.sort(key=lambda row: order.index(row.get("arm")))
    return known + [row for row in arms(study) if row.get("arm") not in order]


def changes(row: Record) -> Mapping[str, Any]:
    """What an arm changes in the baseline."""
    return _record(row.get("changes"))


def picture_of(study: Study, rows: Sequence[Record]) -> Path:
    """The picture of an arm alone beside the baseline, where there is one; else that of the whole study."""
    for row in rows if len(rows) == 1 else []:
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", str(row.get("arm")))[:LONGEST_NAME].strip("-.")
        if current := study.pictures.get(f"{study.kind}-{name}"):
            return current
    return study.pictures.get(study.kind, study.folder / f"{study.kind}.png")


def table(rows: Sequence[Record], kind: str) -> Table | None:
    """A row per arm, with the numbers that any of them has."""
    names = [name for name in COLUMNS if any(name in _record(row.get("numbers")) for row in rows)]
    if not names:
        return None
    who = "arm" if kind == "ablate" else "name"
    body = [
        [Cell(format.text(row.get(who)), _state(row)), *(_cell(name, row) for name in names)] for row in rows
    ]
    return Table("", ["", *(COLUMNS[name] for name in names)], body)


def origin(study: Study) -> list[tuple[str, str]]:
    """Data, sizes and device of a study."""
    rows = arms(study)
    holders = [study.values] if study.kind == "ablate" else rows  # what names the data
    values = {
        "data": {format.data_label(item.get("data")) for item in holders},
        "epochs": {number(item.get("epochs")) for item in holders},
        "train images": {number(_mean(row, "train_images")) for row in rows},
        "test images": {number(_mean(row, "test_images")) for row in rows},
        "device": {format.text(run.get("device")) for row in rows for run in _runs(row)},
    }
    known = {name: sorted(texts - {NONE, "?"}) for name, texts in values.items()}
    return [(name, ", ".join(texts)) for name, texts in known.items() if texts]


def verdicts(rows: Sequence[Record]) -> list[str]:
    """What the study says of each arm."""
    message = [(row.get("arm"), row.get("verdict")) for row in rows]
    return [f"{arm}: {verdict}" for arm, verdict in message if isinstance(verdict, str) and verdict]


def notes(study: Study) -> list[str]:
    """What the study says of itself."""
    result = study.values.get("notes")
    return [note for note in result if isinstance(note, str)] if isinstance(result, list) else []


def _record(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _runs(row: Record) -> list[Record]:
    """The runs of an arm; a side of a comparison is its own run."""
    result = row.get("runs", [row])
    return [run for run in result if isinstance(run, dict)] if isinstance(result, list) else []


def _mean(row: Record, name: str) -> Any:
    result = _record(row.get("numbers")).get(name)
    return result.get("mean") if isinstance(result, dict) else result


def _cell(name: str, row: Record) -> Cell:
    """A number; of several seeds their mean, and below it the standard deviation."""
    value, measured = _mean(row, name), _record(_record(row.get("numbers")).get(name))
    spread, seeds = measured.get("std"), f"{number(measured.get('runs'))} seeds"
    if not format.is_number(spread):
        return Cell(format.value_of(name, value))
    if name.endswith("seconds"):
        return Cell(format.seconds(value), f"± {format.seconds(spread)}, {seeds}")
    text, error = format.with_bounds(name, value, spread)
    return Cell(text, f"{error}, {seeds}")


def _state(row: Record) -> str:
    return "collapsed" if any(run.get("collapsed") is True for run in _runs(row)) else ""
