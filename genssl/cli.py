"""The command line: registers the commands and turns errors into one line and an exit code."""

import os
import sys
import warnings
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from genssl import __version__
from genssl.commands import evaluating, generating, housekeeping, training
from genssl.errors import FAILED_RUN, INTERRUPTED, UserError, explain


class Program(TyperGroup):
    """A command group whose errors are for a person: one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a traceback appears only when GENSSL_DEBUG is set."""
        warnings.showwarning = _warn
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(_tell("interrupted", INTERRUPTED)) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Exception as error:
            if _is_typer_error(error) or os.environ.get("GENSSL_DEBUG"):
                raise
            told = explain(error) or _unexpected(error)
            raise typer.Exit(_tell(str(told), told.code)) from error


def _is_typer_error(error: Exception) -> bool:
    # Usage errors and exits are the parser's own, which prints them; it keeps its classes private
    return hasattr(error, "exit_code")


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
    if issubclass(category, UserWarning):  # the libraries' own deprecations are not for the user
        print(f"genssl: warning: {message}", file=sys.stderr)


def _tell(message: str, code: int) -> int:
    print(f"genssl: {message}", file=sys.stderr)
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, sample and measure small image models."""


for group in (training, generating, evaluating, housekeeping):
    group.register(app)


def main() -> None:
    """The entry point of `genssl`."""
    app()
