"""The page: everything that is found, in one file that needs no other."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from genssl import __version__, files
from genssl.environment import command_line
from genssl.report import assignment, captions, format, tables
from genssl.report.figures import Cell, ReportFigure, Table, embed
from genssl.report.load import Contents, Record, Run, Study

Template = Literal["runs", "assignment"]
OF_TRAINING = ("curves", "wall-clock", "samples-over-epochs", "reconstructions-over-epochs")
TITLES = {
    "curves": "training curves",
    "wall-clock": "wall clock of training",
    "samples-over-epochs": "samples while training",
    "reconstructions-over-epochs": "reconstructions while training",
    "sample": "samples",
    "latent-profile": "mean latent code of each class",
    "interpolate": "interpolation",
    "noise-levels": "reconstructions from noise",
    "reconstruct": "reconstructions of test images",
    "importance-ll": "log-likelihood over the number of importance samples",
    "bits-per-dim": "bits/dim by noise level",
    "knn-eval": "nearest neighbors: confusion of classes",
    "linear-eval": "linear classifier",
    "fidelity": "samples beside their nearest training images",
    "ablate-samples": "samples, as a study took them",
}
KEPT = {"ablate", "compare-fidelity", "compare-samples"}  # by studies, whose own figures show them
GRIDS = {"sample", "interpolate", "reconstruct", "ablate-samples", "fidelity", *OF_TRAINING[2:]}


def draw(contents: Contents, taken: set[Path]) -> list[tuple[str, list[ReportFigure]]]:
    """By whose they are: every picture that is not taken yet."""
    groups = [(run.name, _of_run(run, contents, taken)) for run in contents.runs]
    groups += [(study.folder.name, _of_study(study, contents, taken)) for study in contents.studies]
    return [(name, plates) for name, plates in groups if plates]


def _of_run(run: Run, contents: Contents, taken: set[Path]) -> list[ReportFigure]:
    files = [run.folder / f"{name}.png" for name in OF_TRAINING]
    files += sorted((run.folder / "eval").glob("*.png"))
    plates = [_of_file(file, run, contents) for file in files if file not in taken and file.stem not in KEPT]
    # Numbers without a picture have a place, too; what studies keep is in the tables
    alone = [name for name in run.evaluations if not (run.folder / "eval" / f"{name}.png").exists()]
    plates += [_plate(name, run, contents, None) for name in alone if name not in KEPT]
    return [figure for figure in plates if figure is not None]


def _of_file(file: Path, run: Run, contents: Contents) -> ReportFigure | None:
    return _plate(file.stem, run, contents, file) if file.is_file() else None


def _plate(name: str, run: Run, contents: Contents, file: Path | None) -> ReportFigure | None:
    """A picture of a run, with its numbers and its command; None where it cannot be read."""
    kind = name if name in TITLES else captions.kind_of(name)
    title = TITLES.get(kind, format.of_name(kind))
    variant = name.removeprefix(kind).removeprefix("-").replace("-", " ")
    title = f"{title} ({variant})" if variant else title
    alt = f"{title}, of the run {run.name}"
    picture = embed(file, alt, contents.problems, grid=kind in GRIDS) if file else None
    values = run.evaluations.get(name, {})
    if picture is None and (file is not None or not values):
        return None
    of_training = name in OF_TRAINING
    made = captions.recorded(values or _first_of(run, name))
    usual = "" if made or of_training else captions.evaluation(run, name)
    return ReportFigure(
        anchor=f"{run.name}-{name}",
        label="",
        title=title,
        source=run.name,
        shipped=run.shipped or "",
        picture=picture,
        numbers=[]
        if of_training
        else captions.of_evaluation(name, values),  # those of runs come first of all
        notes=[] if kind in tables.KINDS else captions.notes_of(run, values),
        command=made,
        usual=[usual] if usual else [],
    )


def _first_of(run: Run, name: str) -> Record:
    """The numbers of the evaluation whose further picture this is: knn-eval of knn-eval-neighbors."""
    owners = [item for item in run.evaluations if name.startswith(f"{item}-")]
    return run.evaluations[max(owners, key=len)] if owners else {}


def _of_study(study: Study, contents: Contents, taken: set[Path]) -> list[ReportFigure]:
    """All its sides in one figure, and what a comparison draws beside it.

    Of an ablation that the assignment's figures have taken from, they show it all.
    """
    if taken.intersection(study.pictures.values()):
        return []
    main = study.pictures.get(study.kind)
    plates = [_whole(study, contents, main)]
    for name, file in study.pictures.items():
        if study.kind == "compare" and file != main:
            title = format.of_name(name.removeprefix(f"{study.kind}-"))
            picture = embed(file, f"{title}, of {study.folder.name}", contents.problems)
            if picture is not None:
                anchor = f"{study.folder.name}-{name}"
                plates.append(ReportFigure(anchor, "", title, source=study.folder.name, picture=picture))
    return plates


def _whole(study: Study, contents: Contents, file: Path | None) -> ReportFigure:
    alt = f"{study.kind}: all sides of {study.folder.name}"
    made = captions.recorded(study.values)
    usual = "" if made else captions.study(study)
    return ReportFigure(
        anchor=study.folder.name,
        label="",
        title="an ablation" if study.kind == "ablate" else "a comparison",
        source=study.folder.name,
        picture=embed(file, alt, contents.problems) if file else None,
        numbers=tables.study_origin(study),
        table=tables.table(tables.arms(study), study.kind),
        notes=[*tables.verdicts(tables.arms(study)), *tables.notes(study)],
        command=made,
        usual=[usual] if usual else [],
    )


TITLE = "What was trained, and how good it is"
MEASURES = (
    "fidelity vae",
    "importance-ll vae",
    "bits-per-dim ddpm",
    "knn-eval simsiam",
    "linear-eval simsiam",
)
ORIGIN = ("device", "cores", "python", "system", "git")


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Attributes:
        size: in bytes.
        figures: the assignment's thirteen; those without a picture are missing.
        problems: what could not be read.
    """

    path: Path
    size: int
    runs: list[str]
    figures: list[ReportFigure]
    problems: list[str]


def write(contents: Contents, out: Path, template: Template = "runs") -> Written:
    """Write the page of what was found.

    Args:
        contents: as from `load.gather`.
        out: the file, or a folder to put report.html into.
        template: "assignment" shows all of the course's thirteen figures, with the commands that make those
            that are missing; "runs" shows those that are there.
    """
    path = out / "report.html" if out.is_dir() else out
    plates, taken = assignment.draw(contents, with_missing=template == "assignment")
    rest = draw(contents, taken)
    folder = _commands_folder(path)
    html = _render(
        folder,
        commands_folder=Path(os.path.relpath(folder, path.resolve().parent)).as_posix(),
        title=contents.title or TITLE,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        notes=[
            *dict.fromkeys(contents.notes),
            *(note for run in contents.runs for note in captions.training_notes(run)),
        ],
        runs=[(run, _summary(run), _command(run)) for run in contents.runs],
        figures=plates,
        tables=tables.make(contents),
        others=rest,
        measures=[f"genssl {command}" for command in MEASURES],
        environment=_environment(contents.runs),
        problems=list(dict.fromkeys(contents.problems)),
    )
    content = files.mark_page(html.encode(), {"command": command_line()})
    files.write_bytes(path, content)
    names = [run.name for run in contents.runs]
    return Written(path, len(content), names, plates, list(dict.fromkeys(contents.problems)))


def _commands_folder(page: Path) -> Path:
    """What the paths in the page's commands are relative to: where it was made, or else its own folder."""
    folder, here = page.resolve().parent, Path.cwd().resolve()
    return here if folder.is_relative_to(here) else folder


def _render(commands_folder_path: Path, **content: Any) -> str:
    """The template, filled; everything but the style sheet is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("genssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["relative"] = lambda line: captions.relative(line, commands_folder_path)
    environment.filters["breakable"] = format.breakable
    return environment.get_template("page.html").render(**content)


def _summary(run: Run) -> list[tuple[str, str]]:
    """A run in one line of names and values."""
    accuracy, held_out = captions.accuracy_at_the_end(run), captions.held_out(run)
    return [
        ("method", run.method),
        ("data", format.data_label(run.data)),
        ("epochs", captions.epochs(run)),
        ("train images", captions.train_images(run)),
        *([] if held_out == format.NONE else [("held out", held_out)]),
        ("training time", captions.training_time(run)),
        ("device", format.text(run.origin.get("device"))),
        ("parameters", captions.parameters(run)),
        *([] if accuracy == format.NONE else [("kNN accuracy at the end", accuracy)]),
    ]


def _command(run: Run) -> str:
    return captions.recorded(run.origin)


def _environment(runs: list[Run]) -> Table | None:
    """What the runs were trained with: a row for those that share it."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.origin:
            shared = {name: value for name, value in run.origin.items() if name != "command"}
            groups.setdefault(repr(shared), []).append(run)
    rows = [[Cell(", ".join(run.name for run in group)), *_versions(group[0])] for group in groups.values()]
    return Table("", ["runs", *ORIGIN, "packages"], rows) if rows else None


def _versions(run: Run) -> list[Cell]:
    versions = run.origin.get("versions")
    packages = versions.items() if isinstance(versions, dict) else []
    message = ", ".join(f"{name} {format.text(version)}" for name, version in packages)
    return [*(Cell(format.text(run.origin.get(name))) for name in ORIGIN), Cell(message or format.NONE)]
