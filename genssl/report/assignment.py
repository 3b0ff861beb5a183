"""Figures 1 to 13 of the assignment (IFT6135, 2023, assignment 3), in its order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genssl.report import captions, tables
from genssl.report.figures import ReportFigure, embed
from genssl.report.load import Contents, Run, Study, ranked


@dataclass(frozen=True)
class OfRun:
    """A figure that a run has.

    Attributes:
        picture: its place in the run's folder; of an evaluation, the newest one is taken.
        evaluation: whose numbers belong to it; None: those of the training.
        grid: it is a grid of images.
    """

    number: int
    question: str
    title: str
    method: str
    picture: str
    evaluation: str | None = None
    grid: bool = False


@dataclass(frozen=True)
class OfStudy:
    """A figure that an ablation of SimSiam has.

    Attributes:
        usual: the change that the assignment asks for.
        matches: whether an arm's changes are it.
    """

    number: int
    question: str
    title: str
    usual: Mapping[str, Any]
    matches: Callable[[Mapping[str, Any]], bool]


FIGURES = (
    OfRun(1, "1.3 a", "VAE: wall clock of training", "vae", "wall-clock.png"),
    OfRun(2, "1.3 b", "VAE: samples while training", "vae", "samples-over-epochs.png", grid=True),
    OfRun(
        3, "1.3 c", "VAE: reconstructions of test images while training", "vae",
        "reconstructions-over-epochs.png", grid=True,
    ),
    OfRun(4, "1.3 d", "VAE: samples at the end", "vae", "eval/sample.png", "sample", True),
    OfRun(
        5, "1.3 e", "VAE: mean latent code of each class", "vae", "eval/latent-profile.png", "latent-profile"
    ),
    OfRun(6, "1.3 f", "VAE: interpolation", "vae", "eval/interpolate.png", "interpolate", True),
    OfRun(7, "2.2 a", "DDPM: wall clock of training", "ddpm", "wall-clock.png"),
    OfRun(8, "2.2 b", "DDPM: samples while training", "ddpm", "samples-over-epochs.png", grid=True),
    OfRun(
        9, "2.2 c", "DDPM: reconstructions from noise, and where images are lost", "ddpm",
        "eval/noise-levels.png", "noise-levels",
    ),
    OfRun(10, "2.2 d", "DDPM: samples at the end", "ddpm", "eval/sample.png", "sample", True),
    OfStudy(
        11, "3.4", "SimSiam with and without the stop-gradient",
        {"stop_gradient": False}, lambda changes: changes.get("stop_gradient") is False,
    ),
    OfStudy(
        12, "3.5 a", "SimSiam with the predictor as an identity",
        {"predictor": "identity"}, lambda changes: changes.get("predictor") == "identity",
    ),
    OfStudy(
        13, "3.5 b", "SimSiam with another width of the projector",
        {"projector_dim": 4096}, lambda changes: "projector_dim" in changes,
    ),
)  # fmt: skip


def draw(contents: Contents, *, with_missing: bool) -> tuple[list[ReportFigure], set[Path]]:
    """The assignment's figures in its order, and the pictures that they show.

    Args:
        contents: the runs and studies of the page.
        with_missing: also the figures that nothing was made for yet, with the commands that make them.
    """
    figures, shown = [], set[Path]()
    for slot in FIGURES:
        figure, files = _of_run(slot, contents) if isinstance(slot, OfRun) else _of_study(slot, contents)
        if with_missing or figure.picture is not None:
            figures.append(figure)
            shown |= files
    return figures, shown


def _of_run(figure: OfRun, contents: Contents) -> tuple[ReportFigure, set[Path]]:
    label = f"Figure {figure.number}"
    for run in ranked(contents.runs, figure.method):
        alt = f"{label}: {figure.title}, of the run {run.name}"
        name = _newest_picture(run, figure.evaluation) if figure.evaluation else ""
        file = run.folder / (f"eval/{name}.png" if figure.evaluation else figure.picture)
        picture = embed(file, alt, contents.problems, grid=figure.grid)
        if picture is None:
            continue
        values = run.evaluations.get(name, {})
        current = captions.of_evaluation(name, values) if figure.evaluation else []
        made = captions.recorded(values) if figure.evaluation else captions.recorded(run.origin)
        panel = ReportFigure(
            anchor=f"figure-{figure.number}",
            label=label,
            title=figure.title,
            question=figure.question,
            source=f"run {run.name}{'' if run.state == 'finished' else f', {run.state}'}",
            shipped=run.shipped or "",
            picture=picture,
            numbers=[*current, *_of_run_itself(run, figure)],
            notes=captions.notes_of(run, values),
            command=made,
            usual=[captions.evaluation(run, name)] if figure.evaluation and not made else [],
        )
        return panel, {file}
    usual = captions.missing(contents, figure.method, figure.evaluation)
    return _missing(figure, usual), set()


def _newest_picture(run: Run, kind: str) -> str:
    """The name of the newest picture of an evaluation, e.g. "sample-ancestral"; `kind` without any.

    A picture is an evaluation's if there are numbers of its name: others are drawn beside it.
    """
    pictures = [
        file
        for file in (run.folder / "eval").glob(f"{kind}*.png")
        if file.stem == kind or (file.stem in run.evaluations and captions.kind_of(file.stem) == kind)
    ]
    newest = max(pictures, key=lambda file: (file.stat().st_mtime_ns, file.stem == kind), default=None)
    return newest.stem if newest else kind


def _of_run_itself(run: Run, figure: OfRun) -> list[captions.Pair]:
    """The training's numbers; beside an evaluation's, no more than what was trained on."""
    if figure.evaluation is None:
        return captions.of_training(run)
    trained = {"epochs": "epochs trained", "data": "trained on"}
    return [(trained[name], value) for name, value in captions.of_training(run) if name in trained]


def _of_study(figure: OfStudy, contents: Contents) -> tuple[ReportFigure, set[Path]]:
    for study in sorted(contents.studies, key=lambda study: study.written, reverse=True):
        if study.kind != "ablate" or study.values.get("method") != "simsiam":
            continue
        changed = [row for row in tables.arms(study) if figure.matches(tables.changes(row))]
        if changed:
            panel, file = _drawn(figure, study, changed, contents)
            if panel.picture is not None:
                return panel, {file}
    return _missing(figure, [captions.ablation(contents, "simsiam", figure.usual)]), set()


def _drawn(
    figure: OfStudy, study: Study, changed: list[dict[str, Any]], contents: Contents
) -> tuple[ReportFigure, Path]:
    alone = [row for row in changed if len(tables.changes(row)) == 1] or changed
    file = tables.picture_of(study, alone)
    label = f"Figure {figure.number}"
    shown = [row for row in tables.arms(study) if row in alone or not tables.changes(row)]
    made = captions.recorded(study.values)
    panel = ReportFigure(
        anchor=f"figure-{figure.number}",
        label=label,
        title=figure.title,
        question=figure.question,
        source=f"study {study.folder.name}",
        picture=embed(file, f"{label}: {figure.title}, of the study {study.folder.name}", contents.problems),
        numbers=tables.study_origin(study),
        table=tables.table(shown, study.kind),
        notes=[*tables.verdicts(alone), *tables.notes(study)],
        command=made,
        usual=[] if made else [captions.study(study)],
    )
    return panel, file


def _missing(figure: OfRun | OfStudy, usual: list[str]) -> ReportFigure:
    anchor, label = f"figure-{figure.number}", f"Figure {figure.number}"
    return ReportFigure(anchor, label, figure.title, figure.question, usual=usual)
