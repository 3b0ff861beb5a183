"""The questions of the assignment (IFT6135, 2023, assignment 3) with their figures, in its order."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genssl.paths import runs_root
from genssl.report import format, studies
from genssl.report.answers.answer import answer
from genssl.report.answers.facts import Facts
from genssl.report.answers.language import Language
from genssl.report.answers.questions import QUESTIONS, Question
from genssl.report.figures import ReportFigure, embed
from genssl.report.load import Contents, Run, Study, ranked, recorded
from genssl.report.results import described, of_run

FURTHER_LABEL = "Further figure"  # of one that the assignment does not number


@dataclass(frozen=True)
class OfRun:
    """A figure that a run has.

    Attributes:
        number: 1 to 13; None: the assignment has no such figure.
        picture: its place in the run's folder; of an evaluation, the newest one is taken.
        command: what makes it, after training; empty: training does.
    """

    number: int | None
    question: str
    title: str
    method: str
    picture: str
    command: str = ""

    @property
    def evaluation(self) -> str:
        """The name of the evaluation whose numbers belong to it; empty: those of the training."""
        return Path(self.picture).stem if self.command else ""


@dataclass(frozen=True)
class OfStudy:
    """A figure that an ablation of SimSiam has.

    Attributes:
        command: what makes it.
        matches: whether an arm's changes are those that the assignment asks for.
    """

    number: int
    question: str
    title: str
    command: str
    matches: Callable[[Mapping[str, Any]], bool]


FIGURES = (
    OfRun(1, "1.3 a", "VAE: wall clock of training", "vae", "wall-clock.png"),
    OfRun(2, "1.3 b", "VAE: samples while training", "vae", "samples-over-epochs.png"),
    OfRun(
        3, "1.3 c", "VAE: reconstructions of test images while training", "vae",
        "reconstructions-over-epochs.png",
    ),
    OfRun(4, "1.3 d", "VAE: samples at the end", "vae", "eval/sample.png", "sample {} -n 64"),
    OfRun(
        5, "1.3 e", "VAE: mean latent code of each class", "vae", "eval/latent-profile.png",
        "latent-profile {}",
    ),
    OfRun(6, "1.3 f", "VAE: interpolation", "vae", "eval/interpolate.png", "interpolate {}"),
    OfRun(7, "2.2 a", "DDPM: wall clock of training", "ddpm", "wall-clock.png"),
    OfRun(8, "2.2 b", "DDPM: samples while training", "ddpm", "samples-over-epochs.png"),
    OfRun(
        9, "2.2 c", "DDPM: reconstructions from noise, and where images are lost", "ddpm",
        "eval/noise-levels.png", "reconstruct {} --sweep 16:256:16 --until 1000",
    ),
    OfRun(10, "2.2 d", "DDPM: samples at the end", "ddpm", "eval/sample.png", "sample {} -n 64"),
    OfStudy(
        11, "3.4", "SimSiam with and without the stop-gradient", "ablate simsiam --no-stopgrad",
        lambda changes: changes.get("stop_gradient") is False,
    ),
    OfStudy(
        12, "3.5 a", "SimSiam with the predictor as an identity", "ablate simsiam --predictor identity",
        lambda changes: changes.get("predictor") == "identity",
    ),
    OfStudy(
        13, "3.5 b", "SimSiam with another width of the projector", "ablate simsiam --proj-dim 4096",
        lambda changes: "projector_dim" in changes,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """All arms of an ablation, or all runs of a comparison, of these methods.

    Attributes:
        settings: that the ablation changes.
        command: what makes it.
    """

    question: str
    title: str
    kind: str
    methods: tuple[str, ...]
    command: str
    settings: tuple[str, ...] = ()


FURTHER = (
    Whole("2.2 d", "VAE and DDPM side by side", "compare", ("vae", "ddpm"), "compare vae ddpm"),
    Whole(
        "2.3 a", "DDPMs of other numbers of steps", "ablate", ("ddpm",),
        "ablate ddpm --timesteps 500 --timesteps 1500", ("timesteps",),
    ),
    Whole(
        "2.3 a", "Samples of DDPMs of other numbers of steps", "compare", ("ddpm",),
        "compare RUN RUN RUN",
    ),
    OfRun(
        None, "2.3 b", "Accuracy of the features by the share of labels", "ddpm", "eval/probe.png",
        "probe {} --beside vae",
    ),
    Whole(
        "3.5 c", "Barlow Twins with another width of the projector", "ablate", ("barlow_twins",),
        "ablate barlow-twins --proj-dim 4096", ("projector_dim",),
    ),
    Whole(
        "3.6", "Heavy views with and without DSSL", "ablate", ("dssl",), "ablate dssl --naive", ("naive",)
    ),
    Whole(
        "3.7", "VICReg with and without its terms", "ablate", ("vicreg",),
        "ablate vicreg --set variance=25 --set variance=0 --set covariance=1 --set covariance=0",
        ("variance",),
    ),
    Whole("3.8", "BYOL and SimSiam side by side", "compare", ("byol", "simsiam"), "compare byol simsiam"),
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A question of the page: what was measured, and the figures that show it.

    Attributes:
        answer: sentences computed from the numbers.
    """

    question: Question
    title: str
    answer: list[str]
    figures: list[ReportFigure]

    @property
    def has_content(self) -> bool:
        """Whether anything was measured or drawn for it."""
        return bool(self.answer) or any(figure.picture for figure in self.figures)


def sections(
    contents: Contents, numbered: Sequence[ReportFigure], language: Language
) -> tuple[list[Section], set[Path]]:
    """Every question with its answer and figures, and the pictures of those beyond the numbered thirteen.

    Args:
        contents: the runs and studies of the page.
        numbered: figures 1 to 13, as from `draw`.
        language: of the answers.
    """
    facts, shown = Facts(contents), set[Path]()
    further: dict[str, list[ReportFigure]] = {}
    for slot in FURTHER:
        figure, files = _of_run(slot, contents) if isinstance(slot, OfRun) else _of_whole(slot, facts)
        further.setdefault(slot.question, []).append(figure)
        shown |= files
    result = []
    for question in QUESTIONS:
        figures = [figure for figure in numbered if figure.question == question.number]
        figures += further.get(question.number, [])
        title = language.choose(question.english, question.french)
        result.append(Section(question, title, answer(question, facts, language), figures))
    return result, shown


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


def _figure(slot: OfRun | OfStudy, **content: Any) -> ReportFigure:
    anchor, label = f"figure-{slot.number}", f"Figure {slot.number}"
    if slot.number is None and isinstance(slot, OfRun):
        anchor, label = _anchor(slot.question, slot.method), FURTHER_LABEL
    return ReportFigure(anchor, slot.title, label, slot.question, **content)


def _anchor(question: str, name: str) -> str:
    return f"further-{question.replace(' ', '').replace('.', '-')}-{name}"


def _of_whole(slot: Whole, facts: Facts) -> tuple[ReportFigure, set[Path]]:
    """A study as it is, under the question's title."""
    study = facts.whole_study(slot.kind, slot.methods, slot.settings)
    empty = ReportFigure(
        _anchor(slot.question, slot.kind),
        slot.title,
        FURTHER_LABEL,
        slot.question,
        usual=[f"{_genssl(facts.contents)} {slot.command}"],
    )
    if study is None:
        return empty, set()
    first, *others = studies.draw(study, facts.contents)
    figure = replace(
        empty,
        source=f"study {study.folder.name}",
        pictures=[picture for figure in (first, *others) for picture in figure.pictures],
        numbers=first.numbers,
        tables=first.tables,
        notes=first.notes,
        command=first.command,
    )
    return figure, set(study.pictures.values())


def _of_run(slot: OfRun, contents: Contents) -> tuple[ReportFigure, set[Path]]:
    for run in ranked(contents.runs, slot.method):
        file = run.folder / (_newest_picture(run, slot.evaluation) if slot.command else slot.picture)
        label = FURTHER_LABEL if slot.number is None else f"Figure {slot.number}"
        alt = f"{label}: {slot.title}, of the run {run.name}"
        if not (pictures := embed(file, alt, contents.problems)):
            continue
        result = next((item for item in of_run(run) if slot.command and item.name == file.stem), None)
        trained = {"command": "" if slot.command else recorded(run.origin)}
        content: dict[str, Any] = described(result) if result else trained
        content["numbers"] = [*content.get("numbers", []), *_training(run, whole=not slot.command)]
        figure = _figure(
            slot,
            source=f"run {run.name}{'' if run.state == 'finished' else f', {run.state}'}",
            shipped=run.shipped or "",
            pictures=pictures,
            usual=[f"genssl {slot.command.format(_reference(run))}"] if slot.command else [],
            **content,
        )
        return figure, {file}
    return _figure(slot, usual=_missing(slot, contents)), set()


def _newest_picture(run: Run, name: str) -> str:
    """The newest picture of an evaluation, e.g. "eval/sample-ancestral.png"; "eval/sample.png" without any.

    A picture is an evaluation's if there are numbers of its name: others are drawn beside it.
    """
    pictures = [
        file
        for file in (run.folder / "eval").glob(f"{name}*.png")
        if file.stem == name or (file.stem in run.evaluations and file.stem.startswith(f"{name}-"))
    ]
    newest = max(pictures, key=lambda file: (file.stat().st_mtime_ns, file.stem == name), default=None)
    return f"eval/{newest.name if newest else f'{name}.png'}"


def _training(run: Run, *, whole: bool) -> list[tuple[str, str]]:
    """The training's numbers; beside those of an evaluation, no more than what was trained on."""
    epochs, data = run.progress, format.data_label(run.data)
    if not whole:
        return [("epochs trained", epochs), ("trained on", data)]
    speed = run.images_per_second
    pairs = [
        ("epochs", epochs),
        ("training time", format.seconds(run.seconds)),
        ("images a second", format.NONE if speed is None else f"{speed:,.0f}"),
        ("data", data),
        ("held out", run.held_out or format.NONE),
        ("device", format.text(run.origin.get("device"))),
    ]
    return [pair for pair in pairs if pair[1] != format.NONE]


def _missing(slot: OfRun, contents: Contents) -> list[str]:
    """What makes a picture that is not there: training, if need be, and the evaluation if it is one's."""
    runs = ranked(contents.runs, slot.method)
    current, program = runs[0] if runs else None, _genssl(contents)
    lines = []
    if current is None or not (slot.command or current.state == "unfinished"):
        lines = [f"{program} train {slot.method} --epochs 70"]
    elif current.state == "unfinished":
        lines = [f"genssl train --resume {_reference(current)}"]
    if slot.command:
        reference = _reference(current) if current else slot.method
        lines.append(f"{'genssl' if current else program} {slot.command.format(reference)}")
    return lines


def _reference(run: Run) -> str:
    """A REF that means this run."""
    return shlex.quote(run.name if run.folder.parent == runs_root() else str(run.folder))


def _genssl(contents: Contents) -> str:
    """The program, told to put new runs where the page looks for them."""
    if len(contents.folders) != 1 or contents.folders[0] == runs_root():
        return "genssl"
    return f"genssl --checkpoints {shlex.quote(str(contents.folders[0]))}"


def _of_study(slot: OfStudy, contents: Contents) -> tuple[ReportFigure, set[Path]]:
    for study in sorted(contents.studies, key=lambda study: study.written, reverse=True):
        if study.kind != "ablate" or study.values.get("method") != "simsiam":
            continue
        changed = [row for row in studies.arms(study) if slot.matches(studies.changes(row))]
        alone = [row for row in changed if len(studies.changes(row)) == 1] or changed
        file = studies.picture_of(study, alone)
        alt = f"Figure {slot.number}: {slot.title}, of the study {study.folder.name}"
        if changed and (pictures := embed(file, alt, contents.problems)):
            return _drawn(slot, study, alone, pictures), {file}
    return _figure(slot, usual=[f"{_genssl(contents)} {slot.command}"]), set()


def _drawn(slot: OfStudy, study: Study, arms: list[dict[str, Any]], pictures: list[Any]) -> ReportFigure:
    shown = [row for row in studies.arms(study) if row in arms or not studies.changes(row)]
    return _figure(
        slot,
        source=f"study {study.folder.name}",
        pictures=pictures,
        usual=[f"genssl {slot.command}"],
        **studies.described(study, shown, verdicts_of=arms),
    )
