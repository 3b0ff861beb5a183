"""`report`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genssl.commands import _options, _outputs
from genssl.commands._console import echo
from genssl.environment import command_of
from genssl.errors import UserError
from genssl.paths import REPORT

if TYPE_CHECKING:
    from genssl.report.page import Written


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF", help="Runs, or folders of runs and studies; default: all in checkpoints/."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; default: report.html in the folder of the runs.")
    ] = None,
    template: Annotated[
        Literal["runs", "assignment"],
        typer.Option(
            help="runs, or assignment: the course's questions with answers; commands of missing figures."
        ),
    ] = "runs",
    language: _options.Language = "en",
    as_json: _options.Json = False,
) -> None:
    """Write one HTML page of runs and studies: figures, tables, and the commands that made them."""
    from genssl.report import load, page

    gathered = load.gather(runs or [])
    written = page.write(gathered, _page(out, load.usual_page(gathered)), template, language)
    for problem in written.problems:
        echo(f"warning: {problem}")
    if as_json:
        print(json.dumps(_record(written), indent=2))
        return
    size = f"{written.size / 1e6:.1f} MB; {len(written.runs)} runs"
    if template == "assignment":
        drawn = [figure for figure in written.figures if figure.picture]
        size += f", {len(drawn)} of the assignment's {len(written.figures)} figures"
    echo(f"report: {written.path} ({size})")


def _page(out: Path | None, usual: Path) -> Path:
    """What --out means: a page, or a folder for it; else `usual`, perhaps numbered.

    In a folder of runs the report of another command is replaced: it is about the same runs.

    Raises:
        UserError: --out is no page, or something else is there.
    """
    if out is None:
        is_report = usual.parent != Path() and usual.exists() and command_of(usual) is not None
        return usual if is_report else _outputs.unused(usual)
    if out.suffix.lower() in {".html", ".htm"} and not out.is_dir():
        return _outputs.claim(out)
    if out.is_dir() or not out.suffix:
        return _outputs.claim(out / REPORT)
    raise UserError(f"the report is a page, and --out {out} is none; name it {out.with_suffix('.html')}")


def _record(written: "Written") -> dict[str, Any]:
    figures = [
        {
            "figure": int(figure.label.removeprefix("Figure ")),
            "title": figure.title,
            "of": figure.source or None,
            "drawn": figure.picture is not None,
            "commands": [figure.command] if figure.command else figure.usual,
        }
        for figure in written.figures
    ]
    record = {"report": str(written.path), "bytes": written.size, "runs": written.runs}
    return {**record, "figures": figures, "problems": written.problems}
