"""The command line: registers the commands and turns errors into one line and an exit code."""

import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from genssl import __version__, paths
from genssl.commands import (
    _console,
    assignment,
    data,
    downstream,
    evaluate,
    export,
    generate,
    inpaint,
    purify,
    report,
    runs,
    study,
    train,
)
from genssl.environment import launched_rank, launched_world_size, record_arguments, wrong_counts
from genssl.errors import (
    FAILED_RUN,
    INTERRUPTED,
    TERMINATED,
    WRONG_INPUT,
    Echo,
    UserError,
    explain,
    printable,
    shortened,
)
from genssl.files import expand_home

# Commands that make runs or read none; all others are refused a --checkpoints that does not exist
NEEDS_NO_RUNS = {"train", "ablate", "assignment", "demo", "data", "doctor"}

# The option names of version 0.1, accepted for one more version and hidden from the help. `export --part`
# (of a network) is another option, and keeps its name
RENAMED = {
    "--part": "--split",
    "--originals": "--memorization",
    "--no-originals": "--no-memorization",
    "--floors": "--baselines",
    "--no-floors": "--no-baselines",
    "--way": "--method",
    "--calls": "--nfe",
    "--go-on": "--auto-resume",
    "--repeats": "--draws",
}


class Terminated(KeyboardInterrupt):
    """A terminate signal outside a training loop, which catches it itself."""


class Program(TyperGroup):
    """A command group whose errors are for a person: one line on stderr and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program; a wrong command line is one line, too."""
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a name shows its code, instead of an error after the work
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
        try:
            _check_names(sys.argv[1:] if args is None else args)
            arguments = [*map(_expand, self.rename(sys.argv[1:] if args is None else list(args)))]
            with record_arguments(arguments):
                code = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except UserError as error:  # of the arguments; those of commands are caught in `invoke`
            code = _tell(str(error), error.code)
        except OSError as error:  # of writing the help or the version, which the parser does itself
            if os.environ.get("GENSSL_DEBUG"):
                raise
            code = _lost_output(error)
        except Exception as error:
            if not hasattr(
                error, "format_message"
            ):  # the parser's own errors; it keeps their classes private
                raise
            code = _usage(error)
        if standalone_mode:
            # All output is written: a signal from here on needs no message. Of several processes, one that
            # torchrun ends here, after an error in another, did not fail itself
            _on_terminate(signal.SIG_DFL if launched_world_size() == 1 else signal.SIG_IGN)
            sys.exit(_flushed(code if isinstance(code, int) else 0))
        return code

    def rename(self, arguments: list[str]) -> list[str]:
        """The arguments with the present names of their options; a note for each old one."""
        if next((word for word in arguments if word in self.commands), None) == "export":
            return arguments
        renamed = []
        for argument in arguments:
            name, separator, value = argument.partition("=")
            if name in RENAMED:
                _tell(f"note: {name} is deprecated; use {RENAMED[name]}", 0)
            renamed.append(RENAMED.get(name, name) + separator + value)
        return renamed

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a traceback appears only when GENSSL_DEBUG is set."""
        warnings.showwarning = _warn
        _on_terminate(_terminate)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            hint = "`genssl train --resume RUN` continues a training run, the same command all else"
            raise typer.Exit(_tell(f"stopped; {hint}", code)) from None
        except BrokenPipeError as error:
            raise typer.Exit(_lost_output(error)) from None
        except Exception as error:
            if hasattr(error, "exit_code") or os.environ.get("GENSSL_DEBUG"):
                raise
            failure = explain(error) or _unexpected(error)
            if not isinstance(failure, Echo):
                _tell(str(failure), failure.code)
            raise typer.Exit(failure.code) from error


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse at the start what would fail after the work, when it is to be written down.

    Raises:
        UserError: a name is not UTF-8, or a variable that torchrun sets is no number.
    """
    names = [*arguments, *(os.environ.get(name, "") for name in ("GENSSL_CACHE", "GENSSL_CHECKPOINTS"))]
    with contextlib.suppress(OSError):  # the folder was removed
        names.append(os.getcwd())
    for name in names:
        if "\0" in name or not _is_utf8(name):
            raise UserError(
                f"{name!r} cannot be recorded: it is not UTF-8, or holds a NUL; rename it, or link to it"
            )
    if wrong := wrong_counts():
        raise UserError(f"{', '.join(wrong)} in the environment is no whole number; unset it")


def _is_utf8(name: str) -> bool:
    """Whether the bytes of a name are UTF-8, also where the terminal's language knows no such letters."""
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return False
    return True


def _lost_output(error: OSError) -> int:
    """The exit code where stdout takes nothing more: its reader has ended, or its disk is full."""
    with contextlib.suppress(OSError):
        # What is left in the buffer would fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    return _tell(str(explain(error) or f"cannot write to stdout ({error.strerror})"), FAILED_RUN)


def _flushed(code: int) -> int:
    """The exit code, once all that was printed is written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _lost_output(error) or code
    return code


def _expand(argument: str) -> str:
    """An argument with ~ expanded where it begins a path, which shells do not do in --out=~/x.

    Raises:
        UserError: there is no such user.
    """
    name, separator, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if name.removeprefix("--") in {"set", "tag", "arm"} or not value.startswith("~"):
        return argument
    return name + separator + str(expand_home(value))


def _usage(error: Any) -> int:
    message = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        print(message, file=sys.stderr)
        return WRONG_INPUT
    command = error.ctx.command_path if getattr(error, "ctx", None) else "genssl"
    return _tell(
        f"{' '.join(message.split()).rstrip('.')}; `{command} -h` shows what there is", error.exit_code
    )


def _on_terminate(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _unexpected(error: Exception) -> UserError:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"unexpected error: {text}; set GENSSL_DEBUG=1 for the details and add `genssl doctor` to a report",
        FAILED_RUN,
    )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # The libraries' own deprecations are not for the user
    if issubclass(category, UserWarning) and launched_rank() == 0:
        print(f"genssl: warning: {printable(str(message))}", file=sys.stderr)


def _tell(message: str, code: int) -> int:
    """Say what happened, once: of several processes one speaks, but for what went wrong in another alone."""
    message = "\n".join(shortened(printable(line)) for line in message.split("\n"))
    # A stderr that takes nothing changes no exit code
    with contextlib.suppress(OSError):
        if launched_rank() == 0:
            print(f"genssl: {message}", file=sys.stderr)
        elif code == FAILED_RUN or (code == WRONG_INPUT and os.environ.get("LOCAL_RANK") == "0"):
            print(f"genssl: process {launched_rank()}: {message}", file=sys.stderr)
    return code


app = typer.Typer(
    cls=Program,
    name="genssl",
    help="Train, sample and measure small image models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"genssl {__version__}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the runs; default: ./checkpoints.")
    ] = None,
    is_quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no progress and no notes; warnings and errors remain.")
    ] = False,
) -> None:
    """Train, sample and measure small image models."""
    if is_quiet:
        context.with_resource(_console.quiet())
    expand_home(os.environ.get("GENSSL_CHECKPOINTS", ""))  # refused where there is no such user
    if checkpoints is not None:
        if context.invoked_subcommand not in NEEDS_NO_RUNS and not checkpoints.is_dir():
            raise UserError(f"no folder of runs {checkpoints}; name one that exists, or omit --checkpoints")
        context.with_resource(paths.use_runs_root(checkpoints))


for group in (
    train, generate, inpaint, evaluate, downstream, purify, export, study, assignment, report, runs, data,
):  # fmt: skip
    group.register(app)


def main() -> None:
    """The entry point of `genssl`."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own, which its programs inherit, may be missing here
    _open_streams()
    app()


def _open_streams() -> None:
    """Open to nothing what is closed of stdin, stdout and stderr.

    Else the next file that is opened has the number of one of them, and what is printed would go into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
