"""The commands that make what a page shows, for where none was recorded or nothing is there yet."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genssl.places import root
from genssl.report.disk import Found, Run, Study
from genssl.report.find import ranked

TRAIN = "train {} --epochs 70"
EVALUATE = {
    "sample": "sample {} -n 64",
    "latent-profile": "latent-profile {}",
    "interpolate": "interpolate {}",
    "noise-levels": "reconstruct {} --sweep 16:256:16",
    "reconstruct": "reconstruct {}",
    "importance-ll": "importance-ll {}",
    "bits-per-dim": "bits-per-dim {}",
    "knn-eval": "knn-eval {}",
    "linear-eval": "linear-eval {}",
    "fidelity": "fidelity {}",
}
OPTIONS = {"timesteps": "--timesteps", "predictor": "--predictor", "projector_dim": "--proj-dim"}
SWITCHES = {"stop_gradient": "--no-stopgrad", "naive": "--naive"}


def kind_of(name: str) -> str:
    """The evaluation that a file is of: fidelity of fidelity-ddim-50."""
    kinds = [kind for kind in EVALUATE if name == kind or name.startswith(f"{kind}-")]
    return max(kinds, key=len, default=name)


def recorded(values: Mapping[str, Any]) -> str:
    """The command that the numbers say has made them; empty in older files."""
    command = values.get("command")
    return command if isinstance(command, str) else ""


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


def reference(run: Run) -> str:
    """A REF that means this run."""
    return shlex.quote(run.name if run.folder.parent == root() else str(run.folder))


def evaluation(run: Run, name: str) -> str:
    """The usual command of an evaluation; empty for one that this version does not know."""
    pattern = EVALUATE.get(kind_of(name))
    if pattern is None:
        return ""
    level = name.removeprefix("reconstruct-")
    noised = f" --t-prime {level}" if level != name and level.isdigit() else ""
    return f"genssl {pattern.format(reference(run))}{noised}"


def missing(found: Found, method: str, name: str | None) -> list[str]:
    """What makes a picture that is not there: training, if need be, and the evaluation if it is one's."""
    own = ranked(found.runs, method)
    if not own:
        patterns = [TRAIN, EVALUATE[name]] if name else [TRAIN]
        return [f"{_genssl(found)} {pattern.format(method)}" for pattern in patterns]
    run = own[0]
    if run.state == "unfinished":
        resume = f"genssl train --resume {reference(run)}"
        return [resume, evaluation(run, name)] if name else [resume]
    return [evaluation(run, name) if name else f"{_genssl(found)} {TRAIN.format(method)}"]


def ablation(found: Found, method: str, change: Mapping[str, Any]) -> str:
    """The command of a study of one change."""
    return " ".join([_genssl(found), "ablate", method, *map(_option, change.items())])


def study(made: Study) -> str:
    """The usual command of a study; empty where its numbers do not tell what it was of."""
    if made.kind == "compare":
        sides = made.values.get("runs")
        names = (
            [side.get("name") for side in sides if isinstance(side, dict)] if isinstance(sides, list) else []
        )
        return shlex.join(["genssl", "compare", *map(str, names)]) if names else ""
    rows, method = made.values.get("rows"), made.values.get("method")
    if not isinstance(rows, list) or not isinstance(method, str):
        return ""
    changes = [row.get("changes") for row in rows if isinstance(row, dict)]
    options = [" ".join(map(_option, each.items())) for each in changes if isinstance(each, dict) and each]
    return " ".join(["genssl ablate", shlex.quote(method), *options])


def _option(change: tuple[str, Any]) -> str:
    name, value = change
    if name in SWITCHES:
        return SWITCHES[name]
    if name in OPTIONS:
        return f"{OPTIONS[name]} {shlex.quote(str(value))}"
    return f"--set {shlex.quote(f'{name}={value}')}"


def _genssl(found: Found) -> str:
    """The program, told to put new runs where the page looks for them."""
    if len(found.places) != 1 or found.places[0] == root():
        return "genssl"
    return f"genssl --checkpoints {shlex.quote(str(found.places[0]))}"
