"""`assignment`, `demo`."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genssl.commands import _options
from genssl.commands._console import TrainingScreen, echo, readable_seconds
from genssl.errors import FAILED_RUN, UserError
from genssl.paths import REPORT

if TYPE_CHECKING:
    from genssl.studies.plan import Execute, Plan

LOG = "log.txt"  # in the plan's folder: the tables that its commands print


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(assignment)
    app.command()(demo)


def assignment(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Output folder; an unfinished one is continued.")],
    data: Annotated[str, typer.Option(help="Data of the VAE and the DDPM: svhn or a path.")] = "svhn",
    ssl_data: Annotated[str, typer.Option(help="Data of SimSiam: cifar10 or a path.")] = "cifar10",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1e6,
            help="Total time in minutes: epochs, images and networks are scaled to fit.",
        ),
    ] = None,
    seed: _options.Seed = 0,
    device: _options.Device = "auto",
) -> None:
    """Make figures 1 to 13 of the course assignment, and a report. The same command resumes it."""
    from genssl.data.registry import require
    from genssl.studies.plan import begin

    def make() -> "Plan":
        require(data)
        require(ssl_data)
        from genssl.studies.assignment import assignment as plan_of

        return plan_of(data, ssl_data, budget, device, seed, screen)

    asked = {"command": "assignment", "data": data, "ssl_data": ssl_data, "budget": budget}
    asked |= {"device": device, "seed": seed}
    with TrainingScreen() as screen:
        plan = begin(out, asked, make)
    for note in plan.notes:
        echo(note)
    with _alone(out):
        _carry_out(context, plan, out, "assignment")


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.01, max=1e6, help="Training time in minutes.")] = 2.0,
    seed: _options.Seed = 0,
    device: _options.Device = "auto",
) -> None:
    """Train a VAE on rendered digits, evaluate the shipped weights, and write a report."""
    from genssl.studies import demo as study
    from genssl.studies.plan import begin

    asked = {"command": "demo", "minutes": minutes, "device": device, "seed": seed}
    plan = begin(out, asked, lambda: study.demo(minutes, device, seed))
    with _alone(out):
        study.bring_shipped(out)
        _carry_out(context, plan, out, "runs")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from carrying out the plan of this folder at the same time."""
    from genssl import files

    message = f"another process is at work in {folder}; wait for it, or choose another --out"
    lock = files.FolderLock(folder, message)
    files.sweep(folder)
    try:
        yield
    finally:
        lock.release()


def _carry_out(context: typer.Context, plan: "Plan", folder: Path, template: str) -> None:
    """Take the plan's steps, and write the report of what they made."""
    from genssl.studies.plan import carry_out

    start = time.monotonic()
    execute = _executor(context, folder)
    failed = carry_out(plan, folder, execute, echo)
    if execute(
        ["report", str(folder.resolve()), "--template", template]
    ):  # whatever is called so among a person's own runs
        raise UserError(f"could not write the report of {folder}; the line above says why", FAILED_RUN)
    echo(f"done in {readable_seconds(time.monotonic() - start)}; look at {folder / REPORT}")
    if failed:
        raise UserError(
            f"could not {', '.join(failed)}: mend what was said above, and the same command tries again",
            FAILED_RUN,
        )


def _executor(context: typer.Context, folder: Path) -> "Execute":
    """Carries out a command in this process; the tables that it prints go to a log."""
    program = context.find_root().command

    def execute(arguments: Sequence[str]) -> int:
        with (folder / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            code = program.main(list(arguments), prog_name="genssl", standalone_mode=False)
        return code if isinstance(code, int) else 0

    return execute
