"""The reference of all commands, from their --help: `make docs` writes docs/commands.md, a test holds it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from genssl.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """# Commands

What `genssl COMMAND --help` prints. This page is generated: `make docs` writes it again.

A REF is a method (its newest finished run, else the weights that ship), a run's name in `checkpoints/`, or a
path. Every evaluation writes a picture and a JSON of its numbers beside the run, under a name with the
options that matter (`eval/reconstruct-n4.png`); `--out` gets the picture alone. Nothing is replaced that the
same command line did not make. `genssl --quiet COMMAND` shows no progress and no notes; tables, warnings and
errors remain.
"""


def commands() -> Iterator[tuple[str, ...]]:
    """Every command as it is typed, the members of groups after their group."""
    program: Any = typer.main.get_command(app)
    for name, command in program.commands.items():
        members = getattr(command, "commands", None)
        if members is None:
            yield (name,)
        else:
            yield from ((name, member) for member in members)


def reference() -> str:
    """The page."""
    sections = [HEAD]
    for words in commands():
        result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
        assert result.exit_code == 0, result.output
        usage = result.output.replace("Usage: root ", "Usage: genssl ").strip()
        sections.append(f"## genssl {' '.join(words)}\n\n```\n{usage}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
