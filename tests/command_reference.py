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
errors remain. `genssl --checkpoints DIR COMMAND`, or the variable `GENSSL_CHECKPOINTS`, keeps runs in another
folder.
"""


def commands(group: Any = None) -> Iterator[tuple[str, ...]]:
    """Every command as it is typed, the members of groups, and of their groups, in place of their group."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((name, *words) for words in commands(command))
        else:
            yield (name,)


def reference() -> str:
    """The page."""
    sections = [HEAD]
    for words in ((), *commands()):
        result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
        assert result.exit_code == 0, result.output
        usage = result.output.replace("Usage: root ", "Usage: genssl ").strip()
        sections.append(f"## {' '.join(('genssl', *words))}\n\n```\n{usage}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
