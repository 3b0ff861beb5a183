"""How good frozen features are: the tables of nearest neighbours and of linear classifiers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from genssl.report import words
from genssl.report.disk import Record, Run
from genssl.report.findings import notes_of
from genssl.report.origins import evaluations, origin, who
from genssl.report.parts import Cell, Table, with_origins
from genssl.report.words import number, percent, text

BESIDE = "beside "  # the runs that a reference was measured with


def neighbours(runs: Sequence[Run]) -> Table | None:
    """Accuracies of nearest neighbours, with those of what needs no training."""
    rows, origins, notes = [], [], []
    for run, name, values in evaluations(runs, "knn-eval"):
        origin = _measured_on(values)
        neighbors = Cell(number(values.get("k")))
        rows.append([who(run, name, "knn-eval"), _accuracy(values), neighbors])
        origins.append(origin)
        for baseline in _baselines(values):
            row = [Cell(text(baseline.get("what"))), _accuracy(baseline), neighbors]
            _add_reference(row, origin, run.name, rows, origins)
        notes += notes_of(run, values)
    for run, values, kept in _kept(runs, "knn_accuracy_full"):
        rows.append([_by_a_study(run), Cell(percent(kept["knn_accuracy_full"])), Cell(words.NONE)])
        origins.append(_kept_origin(run, values, kept))
        notes += notes_of(run, values)
    columns = ["features", "accuracy", "k"]
    return (
        with_origins("Nearest neighbours in frozen features", columns, rows, origins, notes) if rows else None
    )


def _add_reference(
    row: list[Cell],
    origin: dict[str, str],
    beside: str,
    rows: list[list[Cell]],
    origins: list[dict[str, str]],
) -> None:
    """Add a row of what needs no training, measured beside a run; once where it is the same for several."""
    for i, (other, other_origin) in enumerate(zip(rows, origins, strict=True)):
        same = other[0].text == row[0].text and other[1:] == row[1:] and other_origin == origin
        if same and other[0].small.startswith(BESIDE):
            rows[i] = [replace(other[0], small=f"{other[0].small}, {beside}"), *other[1:]]
            return
    rows.append([replace(row[0], small=f"{BESIDE}{beside}"), *row[1:]])
    origins.append(origin)


def linear(runs: Sequence[Run]) -> Table | None:
    """Accuracies of linear classifiers on frozen features."""
    rows, origins, notes = [], [], []
    for run, name, values in evaluations(runs, "linear-eval"):
        train = Cell(percent(values.get("train_accuracy")))
        rows.append([who(run, name, "linear-eval"), _accuracy(values), train])
        origins.append(_measured_on(values))
        notes += notes_of(run, values)
    for run, values, kept in _kept(runs, "linear_test_accuracy"):
        told = [Cell(percent(kept.get(f"linear_{part}_accuracy"))) for part in ("test", "train")]
        rows.append([_by_a_study(run), *told])
        origins.append(_kept_origin(run, values, kept))
        notes += notes_of(run, values)
    columns = ["features", "accuracy", "on train images"]
    return (
        with_origins("Linear classifiers on frozen features", columns, rows, origins, notes) if rows else None
    )


def _accuracy(values: Record) -> Cell:
    return Cell(*words.with_error(values.get("accuracy"), values.get("standard_error"), percent, 100))


def _by_a_study(run: Run) -> Cell:
    own = who(run)
    return replace(own, small=", ".join(filter(None, ["as a study measured it", own.small])))


def _measured_on(values: Record) -> dict[str, str]:
    images = {
        "train images": number(values.get("train_images")),
        "test images": number(values.get("test_images")),
    }
    return origin(values, **images)


def _baselines(values: Record) -> list[Record]:
    """What was classified beside the run's own features, which come first."""
    rows = values.get("compared")
    return [row for row in rows[1:] if isinstance(row, dict)] if isinstance(rows, list) else []


def _kept(runs: Sequence[Run], name: str) -> Iterator[tuple[Run, Record, Record]]:
    """What studies keep beside runs, where this number is among it: run, all of it, its measures."""
    for run in runs:
        values = run.evaluations.get("ablate", {})
        measures = values.get("measures")
        groups = measures.values() if isinstance(measures, dict) else []
        kept = {key: value for group in groups if isinstance(group, dict) for key, value in group.items()}
        if name in kept:
            yield run, values, kept


def _kept_origin(run: Run, values: Record, kept: Record) -> dict[str, str]:
    return _measured_on({**kept, "data": run.data, "part": "test", "device": values.get("device")})
