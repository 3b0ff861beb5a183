"""`assignment`, `demo`."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    data: Annotated[str, typer.Option(help="Data of VAE and DDPM: svhn, synthetic or a path.")] = "svhn",
    ssl_data: Annotated[str, typer.Option(help="Data of SimSiam: cifar10, synthetic or a path.")] = "cifar10",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1e6,
            help="Total time in minutes: epochs, images and networks are scaled to fit.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION", help="Answer only these questions, e.g. 2.3b or 3; repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION", help="Leave these questions out, e.g. 3.6; repeatable."),
    ] = None,
    language: _options.Language = "en",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the steps and their times; do nothing.")
    ] = False,
    seed: _options.Seed = 0,
    device: _options.Device = "auto",
) -> None:
    """Answer the questions of the course assignment in a report. The same command resumes it."""
    from genssl.data.registry import require
    from genssl.report.answers.questions import select
    from genssl.studies.plan import begin

    questions = select(only or [], skip or [])

    def make() -> "Plan":
        require(data)
        require(ssl_data)
        from genssl.studies.assignment import Asked
        from genssl.studies.assignment import assignment as plan_of

        return plan_of(Asked(data, ssl_data, budget, device, seed, questions), screen)

    asked: dict[str, Any] = {"command": "assignment", "data": data, "ssl_data": ssl_data, "budget": budget}
    asked |= {"device": device, "seed": seed, "questions": list(questions)}
    with TrainingScreen() as screen:
        plan = make() if dry_run else begin(out, asked, make)
    for note in plan.notes:
        echo(note)
    _show(plan, out)
    if not dry_run:
        with _alone(out):
            _carry_out(context, plan, out, ["--template", "assignment", "--language", language])


def _show(plan: "Plan", folder: Path) -> None:
    """The steps, the questions that each is for, and the time that it is expected to take."""
    times = [step.expected() for step in plan.steps]
    for i, (step, seconds) in enumerate(zip(plan.steps, times, strict=True), 1):
        time = "done before" if step.is_done(folder) else readable_seconds(seconds or 0)
        echo(f"{i:>3}  {time:>12}  {step.title}: {', '.join(step.questions)}")
    total = sum(seconds or 0 for seconds in times)
    count = "1 step" if len(times) == 1 else f"{len(times)} steps"
    echo(f"{count}, {readable_seconds(total)} together as far as a trial of a few steps can tell")


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
        _carry_out(context, plan, out, ["--template", "runs"])


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


def _carry_out(context: typer.Context, plan: "Plan", folder: Path, options: Sequence[str]) -> None:
    """Take the plan's steps, and write the report of what they made, with these options."""
    from genssl.studies.plan import carry_out

    start = time.monotonic()
    execute = _executor(context, folder)
    failed = carry_out(plan, folder, execute, echo)
    # resolved: whatever is called so among a person's own runs
    if execute(["report", str(folder.resolve()), *options]):
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
