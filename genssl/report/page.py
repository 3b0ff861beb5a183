"""The page: everything that is found, in one file that needs no other."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from genssl import __version__, files
from genssl.environment import command_line, mark_page
from genssl.report import assignment, format, results, studies
from genssl.report.answers.language import Code, Language
from genssl.report.figures import Cell, ReportFigure, Table, embed
from genssl.report.load import Contents, Run, is_of_study, recorded
from genssl.report.results import Result
from genssl.run_info import parameters_text

Template = Literal["runs", "assignment"]
TITLE = "What was trained, and how good it is"
FRENCH_TITLE = "Ce qui a été entraîné, et ce que cela vaut"
HEADS = ("evaluation", "title", "command")
ORIGIN = ("device", "cores", "python", "system", "git")


def draw(contents: Contents, taken: set[Path]) -> list[tuple[str, list[ReportFigure]]]:
    """By whose they are: every picture that is not taken yet, and every result without a picture."""
    groups = [(run.name, _of_run(run, contents, taken)) for run in contents.runs]
    # What the assignment's figures have taken from an ablation shows it all
    rest = [item for item in contents.studies if not taken.intersection(item.pictures.values())]
    groups += [(study.folder.name, studies.draw(study, contents)) for study in rest]
    return [(name, figures) for name, figures in groups if figures]


def _of_run(run: Run, contents: Contents, taken: set[Path]) -> list[ReportFigure]:
    figures = [*_of_training(run, contents, taken), *_of_results(run, contents, taken)]
    return sorted(figures, key=lambda figure: bool(figure.tables))  # those with a table are wide


def _of_training(run: Run, contents: Contents, taken: set[Path]) -> Iterator[ReportFigure]:
    for file in sorted(run.folder.glob("*.png")):
        title = format.heading(file.stem)
        if file not in taken and (
            pictures := embed(file, f"{title}, of the run {run.name}", contents.problems)
        ):
            yield ReportFigure(
                f"{run.name}-{file.stem}", title, source=run.name, shipped=run.shipped or "",
                pictures=pictures,
            )  # fmt: skip


def _of_results(run: Run, contents: Contents, taken: set[Path]) -> Iterator[ReportFigure]:
    """A figure a result, with every picture that was drawn with it; then the pictures that belong to none."""
    pictures = sorted((run.folder / "eval").glob("*.png"), key=lambda file: file.stem)
    files = [file for file in pictures if not is_of_study(file)]
    owners = {file: _owner(file, run) for file in files}
    for result in results.of_run(run):
        drawn = [file for file, owner in owners.items() if owner == result.name]
        left = [file for file in drawn if file not in taken]
        if left or not drawn:
            # What is said beside a picture that is taken is not said again
            heads = {name: result.values[name] for name in HEADS if name in result.values}
            yield _figure(run, result if left == drawn else replace(result, values=heads), left, contents)
    for file in files:
        if owners[file] is None and file not in taken:
            yield _figure(run, Result(run.name, file.stem, {}), [file], contents)


def _owner(file: Path, run: Run) -> str | None:
    """The result that a picture was drawn with: knn-eval of knn-eval-neighbors."""
    names = [name for name in run.evaluations if f"{file.stem}-".startswith(f"{name}-")]
    return max(names, key=len, default=None)


def _figure(run: Run, result: Result, files: Sequence[Path], contents: Contents) -> ReportFigure:
    title = f"{result.title} ({result.variant})" if result.variant else result.title
    alts = [", ".join([title, *_further(file, result), f"of the run {run.name}"]) for file in files]
    pictures = [embed(file, alt, contents.problems) for file, alt in zip(files, alts, strict=True)]
    return ReportFigure(
        anchor=f"{run.name}-{result.name}",
        title=title,
        source=run.name,
        shipped=run.shipped or "",
        pictures=[picture for item in pictures for picture in item],
        **results.described(result),
    )


def _further(file: Path, result: Result) -> list[str]:
    further = file.stem.removeprefix(result.name).replace("-", " ").strip()
    return [further] if further else []


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Attributes:
        size: in bytes.
        figures: the assignment's thirteen; those without a picture are missing.
        sections: the assignment's questions, for its template.
        problems: what could not be read.
    """

    path: Path
    size: int
    runs: list[str]
    figures: list[ReportFigure]
    sections: list[assignment.Section]
    problems: list[str]


def write(contents: Contents, out: Path, template: Template = "runs", language: Code = "en") -> Written:
    """Write the page of what was found.

    Args:
        contents: as from `load.gather`.
        out: the file, or a folder to put report.html into.
        template: "assignment" shows all of the course's thirteen figures, with the commands that make those
            that are missing, by question and with answers; "runs" shows those that are there.
        language: of headings, labels and answers.
    """
    path = out / "report.html" if out.is_dir() else out
    said = Language(language)
    is_assignment = template == "assignment"
    figures, taken = assignment.draw(contents, with_missing=is_assignment)
    sections, further = assignment.sections(contents, figures, said) if is_assignment else ([], set())
    rest = draw(contents, taken | further)
    folder = _commands_folder(path)
    problems = list(dict.fromkeys(contents.problems))
    html = _render(
        folder,
        said,
        introduction=_introduction(contents, path, folder, said),
        title=contents.title or said.choose(TITLE, FRENCH_TITLE),
        notes=list(dict.fromkeys(contents.notes)),
        runs=[
            (run, _summary(run), recorded(run.origin), run.training.get("notes", [])) for run in contents.runs
        ],
        figures=figures,
        sections=sections,
        tables=results.compare(contents),
        others=rest,
        environment=_environment(contents.runs),
        problems=problems,
    )
    content = mark_page(html.encode(errors="backslashreplace"), {"command": command_line()})
    files.write_bytes(path, content)
    return Written(path, len(content), [run.name for run in contents.runs], figures, sections, problems)


def _introduction(contents: Contents, page: Path, folder: Path, language: Language) -> str:
    """When and from what the page was made, and where its commands are to be run."""
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    count = len(contents.runs)
    relation = Path(os.path.relpath(folder, page.resolve().parent)).as_posix()
    if language.code == "fr":
        where = "le dossier de cette page" if relation == "." else f"{relation}, vu du dossier de cette page"
        return (
            f"Fait le {made} par genssl {__version__} à partir de {count} "
            f"entraînement{'' if count == 1 else 's'}. Un nombre manquant est un tiret. Les réponses sont "
            "calculées à partir des nombres mesurés ; les notes des commandes restent en anglais. Les "
            f"commandes se lancent dans {where}."
        )
    where = "the folder of this page" if relation == "." else f"{relation}, seen from the folder of this page"
    return (
        f"Made on {made} by genssl {__version__} from {count} run{'' if count == 1 else 's'}. A missing "
        f"number is a hyphen. Commands are to be run in {where}."
    )


def _commands_folder(page: Path) -> Path:
    """What the paths in the page's commands are relative to: where it was made, or else its own folder."""
    folder, here = page.resolve().parent, Path.cwd().resolve()
    return here if folder.is_relative_to(here) else folder


def _render(commands_folder: Path, language: Language, **content: Any) -> str:
    """The template, filled; everything but the style sheet is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("genssl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["relative"] = partial(relative, folder=commands_folder)
    environment.filters["breakable"] = format.breakable
    environment.filters["words"] = language.words
    return environment.get_template("page.html").render(
        language=language.code, version=__version__, **content
    )


def relative(command: str, folder: Path) -> str:
    """The command with its absolute paths made relative to a folder, from which it does the same."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # what a person wrote by hand
        return command
    shown = [_relative(argument, folder) for argument in arguments]
    return command if shown == arguments else shlex.join(shown)


def _relative(argument: str, folder: Path) -> str:
    option = "=" in argument and not os.path.isabs(argument)
    name, equals, value = argument.partition("=") if option else ("", "", argument)
    if not os.path.isabs(value):
        return argument
    try:
        return f"{name}{equals}{Path(os.path.relpath(os.path.realpath(value), folder)).as_posix()}"
    except ValueError:  # another drive
        return argument


def _summary(run: Run) -> list[tuple[str, str]]:
    """A run in one line of names and values."""
    accuracy, held_out = _accuracy_at_the_end(run), run.held_out
    return [
        ("method", run.method),
        ("data", format.data_label(run.data)),
        ("epochs", run.progress),
        ("train images", _train_images(run)),
        *([("held out", held_out)] if held_out else []),
        ("training time", format.seconds(run.seconds)),
        ("device", format.text(run.origin.get("device"))),
        ("parameters", _parameters(run)),
        *([("kNN accuracy at the end", accuracy)] if accuracy else []),
    ]


def _train_images(run: Run) -> str:
    """As the weights record it; of an older run the limit, where it has one."""
    limit = run.config.get("limit")
    if "images" in run.training or not isinstance(limit, int):
        return format.number(run.training.get("images"))
    return f"at most {limit:,}"


def _parameters(run: Run) -> str:
    """How many are trained, and how many there are where some are not."""
    trained, total = run.training.get("parameters"), run.training.get("all_parameters")
    if not isinstance(trained, int) or not isinstance(total, int):
        return format.NONE
    return parameters_text(trained, total)


def _accuracy_at_the_end(run: Run) -> str:
    """Of nearest neighbors in the features, beside what needs no training; "" where it was not measured."""
    metrics = run.info.metrics if run.info is not None else {}
    names = ("knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels")
    current, untrained, pixels = (format.percent(metrics.get(name)) for name in names)
    if format.NONE in {current, untrained, pixels}:
        return ""
    images = ", validation images" if metrics.get("split") == "validation" else ""
    return f"{current} (untrained encoder {untrained}, raw pixels {pixels}{images})"


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
