"""What an ablation or a comparison found."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genssl.report import words
from genssl.report.disk import Record, Study, data_name
from genssl.report.parts import Cell, Table
from genssl.report.words import NONE, decimals, number, percent, seconds

LONGEST_NAME = 60  # characters of an arm in the name of its picture
COLUMNS = {  # in this order, where a side has them
    "knn_accuracy_full": ("kNN accuracy", percent),
    "linear_test_accuracy": ("linear, test", percent),
    "linear_train_accuracy": ("linear, train", percent),
    "output_std": ("output std", decimals),
    "rankme": ("rank", number),
    "bits_per_dim": ("bits/dim", number),
    "loss": ("loss", number),
    "test_loss": ("test loss", number),
    "training_seconds": ("training", seconds),
    "sampling_seconds": ("sampling 64", seconds),
    "ancestral_seconds": ("16 by every step", seconds),
}


def arms(study: Study) -> list[Record]:
    """The rows of an ablation, or the sides of a comparison."""
    rows = study.values.get("rows" if study.kind == "ablate" else "runs")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def changes(row: Record) -> Mapping[str, Any]:
    """What an arm changes in the baseline."""
    found = row.get("changes")
    return found if isinstance(found, dict) else {}


def picture_of(study: Study, rows: Sequence[Record]) -> Path:
    """The picture of an arm alone beside the baseline, where there is one; else that of the whole study."""
    for row in rows if len(rows) == 1 else []:
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", str(row.get("arm")))[:LONGEST_NAME].strip("-.")
        if own := study.pictures.get(f"{study.kind}-{name}"):
            return own
    return study.pictures.get(study.kind, study.folder / f"{study.kind}.png")


def table(rows: Sequence[Record], kind: str) -> Table | None:
    """A row an arm, with the numbers that any of them has."""
    names = [name for name in COLUMNS if any(name in _numbers(row) for row in rows)]
    if not names:
        return None
    body = [[Cell(_name(row, kind), _state(row)), *(_cell(name, row) for name in names)] for row in rows]
    return Table("", ["", *(COLUMNS[name][0] for name in names)], body)


def origin(study: Study) -> list[tuple[str, str]]:
    """Data, sizes and device of a study."""
    rows = arms(study)
    told = {
        "data": {words.data_label(data_name(each.get("data"))) for each in _holders(study)},
        "epochs": {number(each.get("epochs")) for each in _holders(study)},
        "train images": {number(_mean(row, "train_images")) for row in rows},
        "test images": {number(_mean(row, "test_images")) for row in rows},
        "device": {words.text(run.get("device")) for row in rows for run in _runs(row)},
    }
    return [
        (name, ", ".join(sorted(each - {NONE, "?"}))) for name, each in told.items() if each - {NONE, "?"}
    ]


def verdicts(rows: Sequence[Record]) -> list[str]:
    """What the study says of each arm."""
    told = [(row.get("arm"), row.get("verdict")) for row in rows]
    return [f"{arm}: {verdict}" for arm, verdict in told if isinstance(verdict, str) and verdict]


def notes(study: Study) -> list[str]:
    """What the study says of itself."""
    found = study.values.get("notes")
    return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []


def _holders(study: Study) -> list[Record]:
    """What names the data: an ablation as a whole, each side of a comparison."""
    return [study.values] if study.kind == "ablate" else arms(study)


def _runs(row: Record) -> list[Record]:
    """The runs of an arm; a side of a comparison is its own run."""
    found = row.get("runs", [row])
    return [run for run in found if isinstance(run, dict)] if isinstance(found, list) else []


def _numbers(row: Record) -> Record:
    found = row.get("numbers")
    return found if isinstance(found, dict) else {}


def _mean(row: Record, name: str) -> Any:
    found = _numbers(row).get(name)
    return found.get("mean") if isinstance(found, dict) else found


def _cell(name: str, row: Record) -> Cell:
    show, found = COLUMNS[name][1], _numbers(row).get(name)
    spread = found.get("std") if isinstance(found, dict) else None
    over = f"{number(found.get('runs'))} seeds" if words.is_number(spread) and isinstance(found, dict) else ""
    scale = 100 if show is percent else 1
    told, error = words.with_error(_mean(row, name), spread if over else None, show, scale)
    if show is seconds:
        told, error = seconds(_mean(row, name)), f"± {seconds(spread)}"
    return Cell(told, f"{error}, {over}" if over else "")


def _name(row: Record, kind: str) -> str:
    return words.text(row.get("arm" if kind == "ablate" else "name"))


def _state(row: Record) -> str:
    return "collapsed" if any(run.get("collapsed") is True for run in _runs(row)) else ""
