"""`runs`, `doctor`."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genssl.commands import _options
from genssl.commands._console import agreed, echo, is_terminal, show_rows, show_values
from genssl.errors import FAILED_RUN, UserError
from genssl.eval.result import flatten
from genssl.run_info import progress_of

if TYPE_CHECKING:
    from genssl.run_info import RunInfo

runs_app = typer.Typer(no_args_is_help=True, help="Trained runs.")
NO_WEIGHTS = "no weights yet, damaged, or a link elsewhere"
Runs = Annotated[list[str], typer.Argument(metavar="REF...", help="Names or paths of runs, or methods.")]
Folders = Annotated[list[str], typer.Argument(metavar="REF...", help="Names or paths of runs.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(runs_app, name="runs")
    app.command()(doctor)


@runs_app.command("list")
def runs_list(
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Sort by a setting or a number, the least first; e.g. knn_accuracy."
        ),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="With --sort: the largest first.")] = False,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="List runs with data=cifar10, epochs>10 or loss<0.1 alone; repeatable.",
        ),
    ] = None,
    arms: Annotated[bool, typer.Option("--arms", help="Also list the runs of ablations.")] = False,
    as_json: _options.Json = False,
) -> None:
    """List the runs in checkpoints/, newest last."""
    from genssl import paths, runs

    chosen = [runs.condition(text) for text in conditions or []]
    infos = runs.select(runs.known(arms=arms), chosen, sort, descending)
    shown = list(dict.fromkeys([*(one.key for one in chosen), *([sort] if sort else [])]))
    rows = [_row(info, shown) for info in infos]
    if not chosen:
        known = {info.name for info in runs.known()}
        odd = [name for name in runs.folders() if name not in known]
        rows += [{**_row(None, shown), "run": name, "state": NO_WEIGHTS} for name in odd]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        show_rows(f"runs in {paths.runs_root()}/", rows)
    elif chosen:
        echo(f"no run in {paths.runs_root()}/ meets these conditions")
    else:
        echo(f"no runs in {paths.runs_root()}/ yet; `genssl train vae --data synthetic` makes one")


def _row(info: "RunInfo | None", keys: Sequence[str]) -> dict[str, object]:
    from genssl.runs import value_of

    row = {
        "run": info and info.name,
        "method": info and info.config.method,
        "data": info and info.config.data,
        "epoch": info and progress_of(info.epochs_trained, info.config.epochs),
        "state": info and info.state,
        "loss": info and info.metrics.get("loss"),
    }
    return row | {key: info and value_of(info, key) for key in keys if key not in row}


@runs_app.command("compare")
def runs_compare(references: Runs, as_json: _options.Json = False) -> None:
    """Show the settings in which runs differ, and their last numbers, side by side."""
    from genssl import run_info, runs

    infos = [run_info.inspect(folder) for folder in runs.find_several(references)]
    tables = {
        "settings that differ": _differing([info.config.model_dump() for info in infos]),
        "numbers": _side_by_side([dict(flatten(info.metrics)) for info in infos]),
    }
    names = _distinct([info.name for info in infos])
    shown = {
        title: [{"": name} | dict(zip(names, values, strict=True)) for name, values in table.items()]
        for title, table in tables.items()
    }
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    for title, rows in shown.items():
        if rows:
            show_rows(title, rows)
        else:
            echo(f"{title}: none")


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as the heads of columns; of two runs of one name the second one is numbered."""
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _side_by_side(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _differing(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    table = _side_by_side(records)
    return {name: values for name, values in table.items() if any(value != values[0] for value in values)}


@runs_app.command("remove")
def runs_remove(references: Folders, yes: _options.Yes = False) -> None:
    """Delete runs with all their files; a terminal is asked first."""
    from genssl import runs

    folders = [runs.removable(reference) for reference in references]
    names = ", ".join(str(folder) for folder in folders)
    if not yes:
        if not (sys.stdin.isatty() and is_terminal()):
            raise UserError(f"{names}: nobody can be asked here; --yes removes without asking")
        echo(f"removes {names}, with all files")
        if not agreed("Remove?"):
            raise UserError("nothing was removed", FAILED_RUN)
    for folder in folders:
        runs.remove(folder)
        echo(f"removed {folder}")


@runs_app.command("show")
def runs_show(run: _options.Run, as_json: _options.Json = False) -> None:
    """Show the settings, the numbers and the origin of a run."""
    from genssl import files, paths, run_info, runs

    info = run_info.inspect(runs.find(run))
    origin = info.folder / run_info.ENVIRONMENT
    # In the hub's cache it is a link out of the folder, which is not followed
    is_shown = origin.exists() and paths.target_outside(origin) is None
    details = {
        "run": str(info.folder),
        "epoch": info.epochs_trained,
        "epochs": info.config.epochs,
        "state": info.state,
        "finished": info.state == "finished",
        "weights_sha256": info.digest,
        "settings": info.config.model_dump(),
        "numbers": info.metrics,
        "origin": files.read_record(origin) if is_shown else {},
    }
    if as_json:
        print(json.dumps(details, indent=2))
    else:
        show_values(info.name, details)


@runs_app.command("verify")
def runs_verify(run: _options.Run) -> None:
    """Check the files of a run, and the SHA-256 of its tensors and metadata."""
    from genssl import run_info, runs

    path = runs.find(run)
    problems = run_info.verify(path)
    if problems:
        raise UserError("; ".join(problems), FAILED_RUN)
    echo(f"{path} is sound")


def doctor(
    with_torch: Annotated[
        bool, typer.Option("--torch", help="Also import torch and show the default device.")
    ] = False,
    as_json: _options.Json = False,
) -> None:
    """Show versions and hardware, for a bug report."""
    from genssl.eval.doctor import collect

    details = collect(with_torch=with_torch)
    if as_json:
        print(json.dumps(details, indent=2))
    else:
        show_values("genssl doctor", details)
