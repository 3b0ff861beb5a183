"""The page: everything that is found, in one file that needs no other."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from genssl import __version__, files, marks
from genssl.invocation import command_line
from genssl.report import assignment, commands, findings, others, tables, words
from genssl.report.disk import Found, Run
from genssl.report.parts import Cell, Plate, Table

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
    figures: list[Plate]
    problems: list[str]


def write(found: Found, out: Path) -> Written:
    """Write the page of what was found.

    Args:
        found: as from `find.gather`.
        out: the file, or a folder to put report.html into.
    """
    path = out / "report.html" if out.is_dir() else out
    plates, taken = assignment.draw(found)
    rest = others.draw(found, taken)
    folder = _commands_folder(path)
    html = _render(
        folder,
        commands_folder=Path(os.path.relpath(folder, path.resolve().parent)).as_posix(),
        title=found.title or TITLE,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        notes=[*dict.fromkeys([*found.notes, *_data_notes(found)])],
        runs=[(run, _summary(run), _command(run)) for run in found.runs],
        figures=plates,
        tables=tables.make(found),
        others=rest,
        measures=[f"genssl {command}" for command in MEASURES],
        environment=_environment(found.runs),
        problems=list(dict.fromkeys(found.problems)),
    )
    content = marks.mark_page(html.encode(), {"command": command_line()})
    files.write_bytes(path, content)
    names = [run.name for run in found.runs]
    return Written(path, len(content), names, plates, list(dict.fromkeys(found.problems)))


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
    environment.filters["relative"] = lambda line: commands.relative(line, commands_folder_path)
    environment.filters["breakable"] = words.breakable
    return environment.get_template("page.html").render(**content)


def _summary(run: Run) -> list[tuple[str, str]]:
    """A run in one line of names and values."""
    parameters = run.weights.parameters if run.weights else None
    return [
        ("method", run.method),
        ("data", words.data_label(run.data)),
        ("epochs", findings.epochs(run)),
        ("train images", findings.train_images(run)),
        ("training time", findings.training_time(run)),
        ("device", words.text(run.origin.get("device"))),
        ("parameters", words.number(parameters)),
    ]


def _command(run: Run) -> str:
    return commands.recorded(run.origin)


def _data_notes(found: Found) -> list[str]:
    """What to say of data that are not the official sets."""
    named = [run.data for run in found.runs]
    named += [str(values.get("data")) for run in found.runs for values in run.evaluations.values()]
    named += [str(study.values.get("data")) for study in found.studies]
    told = dict.fromkeys(words.unofficial(name) for name in named)
    return [f"{note}: numbers do not compare with published ones" for note in told if note]


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
    told = ", ".join(f"{name} {words.text(version)}" for name, version in packages)
    return [*(Cell(words.text(run.origin.get(name))) for name in ORIGIN), Cell(told or words.NONE)]
