"""The tables of a report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genssl.report import format
from genssl.report.captions import epochs, kind_of, notes_of
from genssl.report.figures import Cell, Table, with_origins
from genssl.report.format import NONE, data_label, decimals, number, percent, seconds, text
from genssl.report.load import Contents, Record, Run, Study, data_name


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
    details = {"data": data_label(values.get("data")), "split": text(values.get("part"))}
    return {**details, **sizes, "device": text(values.get("device"))}


BESIDE = "beside "  # the runs that a reference was measured with


def neighbors(runs: Sequence[Run]) -> Table | None:
    """Accuracies of nearest neighbors, with those of what needs no training."""
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
    for run, values, saved in _kept(runs, "knn_accuracy_full"):
        rows.append([_by_a_study(run), Cell(percent(saved["knn_accuracy_full"])), Cell(format.NONE)])
        origins.append(_kept_origin(run, values, saved))
        notes += notes_of(run, values)
    columns = ["features", "accuracy", "k"]
    return (
        with_origins("Nearest neighbors in frozen features", columns, rows, origins, notes) if rows else None
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
    for run, values, saved in _kept(runs, "linear_test_accuracy"):
        message = [Cell(percent(saved.get(f"linear_{part}_accuracy"))) for part in ("test", "train")]
        rows.append([_by_a_study(run), *message])
        origins.append(_kept_origin(run, values, saved))
        notes += notes_of(run, values)
    columns = ["features", "accuracy", "on train images"]
    return (
        with_origins("Linear classifiers on frozen features", columns, rows, origins, notes) if rows else None
    )


def _accuracy(values: Record) -> Cell:
    return Cell(*format.with_error(values.get("accuracy"), values.get("standard_error"), percent, 100))


def _by_a_study(run: Run) -> Cell:
    current = who(run)
    return replace(current, small=", ".join(filter(None, ["as a study measured it", current.small])))


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
        saved = {key: value for group in groups if isinstance(group, dict) for key, value in group.items()}
        if name in saved:
            yield run, values, saved


def _kept_origin(run: Run, values: Record, saved: Record) -> dict[str, str]:
    return _measured_on({**saved, "data": run.data, "part": "test", "device": values.get("device")})


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
    "validation_loss": ("validation loss", number),
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
    result = row.get("changes")
    return result if isinstance(result, dict) else {}


def picture_of(study: Study, rows: Sequence[Record]) -> Path:
    """The picture of an arm alone beside the baseline, where there is one; else that of the whole study."""
    for row in rows if len(rows) == 1 else []:
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", str(row.get("arm")))[:LONGEST_NAME].strip("-.")
        if current := study.pictures.get(f"{study.kind}-{name}"):
            return current
    return study.pictures.get(study.kind, study.folder / f"{study.kind}.png")


def table(rows: Sequence[Record], kind: str) -> Table | None:
    """A row an arm, with the numbers that any of them has."""
    names = [name for name in COLUMNS if any(name in _numbers(row) for row in rows)]
    if not names:
        return None
    body = [[Cell(_name(row, kind), _state(row)), *(_cell(name, row) for name in names)] for row in rows]
    return Table("", ["", *(COLUMNS[name][0] for name in names)], body)


def study_origin(study: Study) -> list[tuple[str, str]]:
    """Data, sizes and device of a study."""
    rows = arms(study)
    message = {
        "data": {format.data_label(data_name(item.get("data"))) for item in _holders(study)},
        "epochs": {number(item.get("epochs")) for item in _holders(study)},
        "train images": {number(_mean(row, "train_images")) for row in rows},
        "test images": {number(_mean(row, "test_images")) for row in rows},
        "device": {format.text(run.get("device")) for row in rows for run in _runs(row)},
    }
    return [
        (name, ", ".join(sorted(item - {NONE, "?"}))) for name, item in message.items() if item - {NONE, "?"}
    ]


def verdicts(rows: Sequence[Record]) -> list[str]:
    """What the study says of each arm."""
    message = [(row.get("arm"), row.get("verdict")) for row in rows]
    return [f"{arm}: {verdict}" for arm, verdict in message if isinstance(verdict, str) and verdict]


def notes(study: Study) -> list[str]:
    """What the study says of itself."""
    result = study.values.get("notes")
    return [note for note in result if isinstance(note, str)] if isinstance(result, list) else []


def _holders(study: Study) -> list[Record]:
    """What names the data: an ablation as a whole, each side of a comparison."""
    return [study.values] if study.kind == "ablate" else arms(study)


def _runs(row: Record) -> list[Record]:
    """The runs of an arm; a side of a comparison is its own run."""
    result = row.get("runs", [row])
    return [run for run in result if isinstance(run, dict)] if isinstance(result, list) else []


def _numbers(row: Record) -> Record:
    result = row.get("numbers")
    return result if isinstance(result, dict) else {}


def _mean(row: Record, name: str) -> Any:
    result = _numbers(row).get(name)
    return result.get("mean") if isinstance(result, dict) else result


def _cell(name: str, row: Record) -> Cell:
    show, result = COLUMNS[name][1], _numbers(row).get(name)
    spread = result.get("std") if isinstance(result, dict) else None
    over = (
        f"{number(result.get('runs'))} seeds" if format.is_number(spread) and isinstance(result, dict) else ""
    )
    scale = 100 if show is percent else 1
    message, error = format.with_error(_mean(row, name), spread if over else None, show, scale)
    if show is seconds:
        message, error = seconds(_mean(row, name)), f"± {seconds(spread)}"
    return Cell(message, f"{error}, {over}" if over else "")


def _name(row: Record, kind: str) -> str:
    return format.text(row.get("arm" if kind == "ablate" else "name"))


def _state(row: Record) -> str:
    return "collapsed" if any(run.get("collapsed") is True for run in _runs(row)) else ""


KINDS = {"fidelity", "importance-ll", "bits-per-dim", "knn-eval", "linear-eval"}  # of evaluations
COMPARABLE = ("data_digest", "part", "samples", "real_images", "features_digest", "features", "neighbors")
SHARES = {"precision", "recall", "coverage", "authenticity"}
ARROWS = {"lower": "↓", "higher": "↑"}


def make(contents: Contents) -> list[Table]:
    """Those for which there are numbers."""
    runs = contents.runs
    made = [*fidelity(contents), vae_likelihood(runs), ddpm_likelihood(runs), neighbors(runs), linear(runs)]
    return [table for table in made if table is not None]


def fidelity(contents: Contents) -> list[Table]:
    """A table for each set of conditions under which distances compare, with the floor below."""
    groups: dict[str, list[Measured]] = {}
    seen = set[str]()
    for item in _fidelities(contents):
        conditions = repr([item.values.get(name) for name in COMPARABLE])
        same = repr([item.who.text, conditions, measures_of(item.values)])
        if measures_of(item.values) and same not in seen:
            seen.add(same)
            groups.setdefault(conditions, []).append(item)
    return [_fidelity_table(group) for group in groups.values()]


@dataclass(frozen=True)
class Measured:
    """The fidelity of one run.

    Attributes:
        name: of the evaluation.
    """

    who: Cell
    name: str
    values: Record
    notes: list[str]


def _fidelities(contents: Contents) -> Iterator[Measured]:
    """Those that runs have, then those that comparisons have."""
    for run, name, values in evaluations(contents.runs, "fidelity"):
        yield Measured(who(run), name, values, notes_of(run, values))
    for study in contents.studies:
        rows = study.values.get("fidelity")
        for values in rows if isinstance(rows, list) else []:
            if isinstance(values, dict):
                yield Measured(Cell(text(values.get("run"))), "fidelity", values, [])


def _fidelity_table(group: Sequence[Measured]) -> Table:
    better = {name: row.get("better") for item in group for name, row in measures_of(item.values).items()}
    heads = [f"{format.of_name(name)} {ARROWS.get(str(better[name]), '')}".strip() for name in better]
    rows, origins, floors = [], [], list[list[Cell]]()
    for item in group:
        values, measures = item.values, measures_of(item.values)
        current = [_measured(measures.get(name), name, "samples") for name in better]
        rows.append([item.who, _sampling(item.name, values), *current])
        origins.append(origin(values, samples=number(values.get("samples")), features=_features(values)))
        floor = [_measured(measures.get(name), name, "floor") for name in better]
        _add_floor(floor, floors)
    rows += [[Cell("real images"), Cell("the floor"), *floor] for floor in floors]
    origins += [origins[0] for _ in floors]
    notes = [note for item in group for note in item.notes]
    title = "Fidelity: generated images against real ones"
    table = with_origins(title, ["run", "sampling", *heads], rows, origins, notes)
    return replace(table, floor=len(floors))


def _add_floor(row: list[Cell], rows: list[list[Cell]]) -> None:
    """Add a row of what real images reach; once where two agree in all that both have."""
    missing = Cell(format.NONE)
    for i, other in enumerate(rows):
        if all(a.text == b.text or missing in (a, b) for a, b in zip(row, other, strict=True)):
            rows[i] = [b if a == missing else a for a, b in zip(row, other, strict=True)]
            return
    rows.append(row)


def measures_of(values: Record) -> dict[str, Record]:
    """A row of numbers a measure, by its name."""
    rows = values.get("measures")
    result = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {str(row["measure"]): row for row in result if "measure" in row}


def _measured(row: Record | None, name: str, whose: str) -> Cell:
    if row is None:
        return Cell(format.NONE)
    ends = ("low", "high") if whose == "samples" else ("floor_low", "floor_high")
    low, high = (row.get(end) for end in ends)
    show, scale = (percent, 100.0) if name in SHARES else (number, 1.0)
    return Cell(*format.with_interval(row.get(whose), low, high, show, scale))


def _sampling(name: str, values: Record) -> Cell:
    """Which prior or sampler, its steps, and how long it took; the file's name where that is not said."""
    how = values.get("sampling")
    message = how if isinstance(how, dict) else {}
    # "network_calls_an_image" is the old name, in results of version 0.1
    calls = message.get("nfe", message.get("network_calls_an_image"))
    parts = [f"{message['prior']} prior" if "prior" in message else "", str(message.get("sampler", ""))]
    parts += [
        f"eta {message['eta']}" if "eta" in message else "",
        f"{message['variance']} variance" if "variance" in message else "",
    ]
    parts.append(f"{number(calls)} calls an image" if format.is_number(calls) else "")
    spent = message.get("seconds")
    return Cell(", ".join(filter(None, parts)) or name, seconds(spent) if format.is_number(spent) else "")


def _features(values: Record) -> str:
    digest = values.get("features_digest")
    short = f" ({digest[:8]}…)" if isinstance(digest, str) else ""
    return f"{text(values.get('features'))}{short}"


def vae_likelihood(runs: Sequence[Run]) -> Table | None:
    """Importance-sampled log-likelihoods of VAEs."""
    result = list(evaluations(runs, "importance-ll"))
    columns = ["run", "log p(x), nats", "ELBO, nats", "bits/dim", "K", "ESS, mean", "ESS, median"]
    rows = [
        [
            who(run, name, "importance-ll"),
            Cell(*format.with_error(values.get("log_p_nats"), values.get("standard_error_nats"), _tenths)),
            Cell(decimals(values.get("elbo_nats"), 1)),
            Cell(number(values.get("bits_per_dim"))),
            Cell(number(values.get("k"))),
            Cell(number(values.get("effective_sample_size_mean"), 3)),
            Cell(number(values.get("effective_sample_size_median"), 3)),
        ]
        for run, name, values in result
    ]
    return _of_images("Likelihood of VAEs, by K importance samples an image", columns, rows, result)


def ddpm_likelihood(runs: Sequence[Run]) -> Table | None:
    """Variational bounds of DDPMs."""
    result = list(evaluations(runs, "bits-per-dim"))
    columns = ["run", "bits/dim, at most", "prior", "denoising", "decoder", "evaluations an image"]
    terms = ("prior_bits_per_dim", "denoising_bits_per_dim", "decoder_bits_per_dim", "evaluations_per_image")
    rows = [
        [
            who(run, name, "bits-per-dim"),
            Cell(*format.with_error(values.get("bits_per_dim"), values.get("standard_error"))),
            *(Cell(number(values.get(term), 3)) for term in terms),
        ]
        for run, name, values in result
    ]
    return _of_images("Likelihood of DDPMs, by the variational bound", columns, rows, result)


def _tenths(value: object) -> str:
    return decimals(value, 1)


def _of_images(
    title: str, columns: list[str], rows: list[list[Cell]], result: Sequence[tuple[Run, str, Record]]
) -> Table | None:
    origins = [origin(values, images=number(values.get("images"))) for _, _, values in result]
    notes = [note for run, _, values in result for note in notes_of(run, values)]
    return with_origins(title, columns, rows, origins, notes) if rows else None
