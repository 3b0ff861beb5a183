"""The tables of a page: fidelity, likelihood, nearest neighbours, linear classifiers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from genssl.report import words
from genssl.report.accuracies import linear, neighbours
from genssl.report.disk import Found, Record, Run
from genssl.report.findings import notes_of
from genssl.report.origins import evaluations, origin, who
from genssl.report.parts import Cell, Table, with_origins
from genssl.report.words import decimals, number, percent, seconds, text

KINDS = {"fidelity", "importance-ll", "bits-per-dim", "knn-eval", "linear-eval"}  # of evaluations
COMPARABLE = ("data_digest", "part", "samples", "real_images", "features_digest", "features", "neighbours")
SHARES = {"precision", "recall", "coverage", "authenticity"}
ARROWS = {"lower": "↓", "higher": "↑"}


def make(found: Found) -> list[Table]:
    """Those for which there are numbers."""
    runs = found.runs
    made = [*fidelity(found), vae_likelihood(runs), ddpm_likelihood(runs), neighbours(runs), linear(runs)]
    return [table for table in made if table is not None]


def fidelity(found: Found) -> list[Table]:
    """A table for each set of conditions under which distances compare, with the floor below."""
    groups: dict[str, list[Measured]] = {}
    seen = set[str]()
    for each in _fidelities(found):
        conditions = repr([each.values.get(name) for name in COMPARABLE])
        same = repr([each.who.text, conditions, measures_of(each.values)])
        if measures_of(each.values) and same not in seen:
            seen.add(same)
            groups.setdefault(conditions, []).append(each)
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


def _fidelities(found: Found) -> Iterator[Measured]:
    """Those that runs have, then those that comparisons have."""
    for run, name, values in evaluations(found.runs, "fidelity"):
        yield Measured(who(run), name, values, notes_of(run, values))
    for study in found.studies:
        rows = study.values.get("fidelity")
        for values in rows if isinstance(rows, list) else []:
            if isinstance(values, dict):
                yield Measured(Cell(text(values.get("run"))), "fidelity", values, [])


def _fidelity_table(group: Sequence[Measured]) -> Table:
    better = {name: row.get("better") for each in group for name, row in measures_of(each.values).items()}
    heads = [f"{words.of_name(name)} {ARROWS.get(str(better[name]), '')}".strip() for name in better]
    rows, origins, floors = [], [], list[list[Cell]]()
    for each in group:
        values, measures = each.values, measures_of(each.values)
        own = [_measured(measures.get(name), name, "samples") for name in better]
        rows.append([each.who, _sampling(each.name, values), *own])
        origins.append(origin(values, samples=number(values.get("samples")), features=_features(values)))
        floor = [_measured(measures.get(name), name, "floor") for name in better]
        _add_floor(floor, floors)
    rows += [[Cell("real images"), Cell("the floor"), *floor] for floor in floors]
    origins += [origins[0] for _ in floors]
    notes = [note for each in group for note in each.notes]
    title = "Fidelity: generated images against real ones"
    table = with_origins(title, ["run", "sampling", *heads], rows, origins, notes)
    return replace(table, floor=len(floors))


def _add_floor(row: list[Cell], rows: list[list[Cell]]) -> None:
    """Add a row of what real images reach; once where two agree in all that both have."""
    missing = Cell(words.NONE)
    for i, other in enumerate(rows):
        if all(a.text == b.text or missing in (a, b) for a, b in zip(row, other, strict=True)):
            rows[i] = [b if a == missing else a for a, b in zip(row, other, strict=True)]
            return
    rows.append(row)


def measures_of(values: Record) -> dict[str, Record]:
    """A row of numbers a measure, by its name."""
    rows = values.get("measures")
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {str(row["measure"]): row for row in found if "measure" in row}


def _measured(row: Record | None, name: str, whose: str) -> Cell:
    if row is None:
        return Cell(words.NONE)
    ends = ("low", "high") if whose == "samples" else ("floor_low", "floor_high")
    low, high = (row.get(end) for end in ends)
    show, scale = (percent, 100.0) if name in SHARES else (number, 1.0)
    return Cell(*words.with_interval(row.get(whose), low, high, show, scale))


def _sampling(name: str, values: Record) -> Cell:
    """Which prior or sampler, its steps, and how long it took; the file's name where that is not said."""
    how = values.get("sampling")
    told = how if isinstance(how, dict) else {}
    calls = told.get("network_calls_an_image")
    parts = [f"{told['prior']} prior" if "prior" in told else "", str(told.get("sampler", ""))]
    parts += [
        f"eta {told['eta']}" if "eta" in told else "",
        f"{told['variance']} variance" if "variance" in told else "",
    ]
    parts.append(f"{number(calls)} calls an image" if words.is_number(calls) else "")
    spent = told.get("seconds")
    return Cell(", ".join(filter(None, parts)) or name, seconds(spent) if words.is_number(spent) else "")


def _features(values: Record) -> str:
    digest = values.get("features_digest")
    short = f" ({digest[:8]}…)" if isinstance(digest, str) else ""
    return f"{text(values.get('features'))}{short}"


def vae_likelihood(runs: Sequence[Run]) -> Table | None:
    """Importance-sampled log-likelihoods of VAEs."""
    found = list(evaluations(runs, "importance-ll"))
    columns = ["run", "log p(x), nats", "ELBO, nats", "bits/dim", "K", "ESS, mean", "ESS, median"]
    rows = [
        [
            who(run, name, "importance-ll"),
            Cell(*words.with_error(values.get("log_p_nats"), values.get("standard_error_nats"), _tenths)),
            Cell(decimals(values.get("elbo_nats"), 1)),
            Cell(number(values.get("bits_per_dim"))),
            Cell(number(values.get("k"))),
            Cell(number(values.get("effective_sample_size_mean"), 3)),
            Cell(number(values.get("effective_sample_size_median"), 3)),
        ]
        for run, name, values in found
    ]
    return _of_images("Likelihood of VAEs, by K importance samples an image", columns, rows, found)


def ddpm_likelihood(runs: Sequence[Run]) -> Table | None:
    """Variational bounds of DDPMs."""
    found = list(evaluations(runs, "bits-per-dim"))
    columns = ["run", "bits/dim, at most", "prior", "denoising", "decoder", "evaluations an image"]
    terms = ("prior_bits_per_dim", "denoising_bits_per_dim", "decoder_bits_per_dim", "evaluations_per_image")
    rows = [
        [
            who(run, name, "bits-per-dim"),
            Cell(*words.with_error(values.get("bits_per_dim"), values.get("standard_error"))),
            *(Cell(number(values.get(term), 3)) for term in terms),
        ]
        for run, name, values in found
    ]
    return _of_images("Likelihood of DDPMs, by the variational bound", columns, rows, found)


def _tenths(value: object) -> str:
    return decimals(value, 1)


def _of_images(
    title: str, columns: list[str], rows: list[list[Cell]], found: Sequence[tuple[Run, str, Record]]
) -> Table | None:
    origins = [origin(values, images=number(values.get("images"))) for _, _, values in found]
    notes = [note for run, _, values in found for note in notes_of(run, values)]
    return with_origins(title, columns, rows, origins, notes) if rows else None
