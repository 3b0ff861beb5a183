"""A plan: commands carried out one after the other in a folder of runs, and again from where it stopped."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from genssl import checkpoint, files
from genssl.errors import FAILED_RUN, INTERRUPTED, TERMINATED, WRONG_INPUT, UserError
from genssl.eval.names import file_name
from genssl.places import ABOUT

PLAN = "plan.json"  # in the folder: the plan, and how long each step took

Execute = Callable[[Sequence[str]], int]  # carries out `genssl` with these arguments; gives its exit code
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: what it does, for a person.
        arguments: what follows `genssl --checkpoints FOLDER`; the run's folder is added to a training's.
        makes: a file in the folder that is there once the step is done.
        trains: the run's folder in the folder, where the step is a training: it is resumed, and what
            follows needs it.
        how: options of how it is carried out, which a resumed training is given again.
        seconds: that it took, over all sittings but those that were killed; None: it was never begun.
    """

    title: str
    arguments: tuple[str, ...]
    makes: str
    trains: str | None = None
    how: tuple[str, ...] = ()
    seconds: float | None = None

    def is_done(self, folder: Path) -> bool:
        """Whether its file is there; a training's only once the run has finished."""
        if not (folder / self.makes).exists():
            return False
        return self.trains is None or checkpoint.inspect(folder / self.trains).finished

    def line(self, folder: Path) -> list[str]:
        """The arguments of `genssl`: a training that was begun is resumed."""
        words = list(self.arguments)
        if self.trains is not None:
            run = folder / self.trains
            begun = (run / checkpoint.CONFIG).exists()
            words = ["train", "--resume", str(run)] if begun else [*words, "--out", str(run)]
        return ["--checkpoints", str(folder), *words, *self.how]

    def is_begun(self, folder: Path) -> bool:
        """Whether it has left anything."""
        return any((folder / place).exists() for place in (self.makes, self.trains or self.makes))

    def on(self, device: str) -> Self:
        """The same on a device, as in --device."""
        return self if device == "auto" else replace(self, how=(*self.how, "--device", device))


def evaluation(title: str, command: str, method: str, *options: object) -> Step:
    """A step that measures the run of a method, and is done when its numbers are there.

    Args:
        title: what it does, for a person.
        command: as it is typed, e.g. "knn-eval".
        method: whose run.
        options: with their values, none the command's default; one that begins with --no- has none.
    """
    words = [str(option) for option in options]
    changed: dict[str, object] = {}
    remaining = iter(words)
    for word in remaining:
        name = word.lstrip("-").replace("-", "_")
        if name.startswith("no_"):
            changed[name.removeprefix("no_")] = False
        else:
            changed[name] = next(remaining)
    return Step(title, (command, method, *words), f"{method}/eval/{file_name(command, changed)}.json")


@dataclass(frozen=True)
class Plan:
    """Steps in their order.

    Attributes:
        title: of the report.
        notes: what its reader has to know first, e.g. what was made smaller.
        steps: the commands.
        asked: what the plan was made of; another call in the same folder must ask for the same.
    """

    title: str
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    asked: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep the plan in its folder."""
        files.write_json(folder / PLAN, asdict(self))
        minutes = sum(step.seconds or 0 for step in self.steps) / 60
        took = f"its steps took {minutes:.1f} minutes together; {PLAN} has each of them"
        files.write_json(folder / ABOUT, {"title": self.title, "notes": [*self.notes, took]})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The plan that a folder keeps."""
        kept = files.read_json(folder / PLAN)
        try:
            steps = tuple(map(_step, kept["steps"]))
            return cls(kept["title"], tuple(kept["notes"]), steps, kept["asked"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / PLAN} is no plan of this version; choose another --out") from error


def begin(folder: Path, asked: dict[str, Any], make: Callable[[], Plan]) -> Plan:
    """The plan of a folder: the one that it keeps, or a new one.

    Raises:
        UserError: the folder holds something else, or a plan of something else that was begun.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if (folder / PLAN).exists():
        plan = Plan.read(folder)
        if plan.asked == asked:
            return plan
        if any(step.is_begun(folder) for step in plan.steps):
            changed = ", ".join(name for name in asked if asked[name] != plan.asked.get(name))
            raise UserError(f"{folder} was begun with another {changed or 'plan'}; choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else; choose another --out")
    plan = replace(make(), asked=asked)
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder)
    return plan


def carry_out(plan: Plan, folder: Path, execute: Execute, tell: Tell) -> list[str]:
    """Take every step that is not done yet.

    A training that fails ends the plan; another step that fails is told, and the plan goes on without it.

    Returns:
        The titles of the steps that failed.

    Raises:
        UserError: it was stopped, or a training failed.
    """
    failed, steps = [], list(plan.steps)
    for place, step in enumerate(plan.steps):
        head = f"step {place + 1} of {len(steps)}: {step.title}"
        if step.is_done(folder):
            tell(f"{head}: done before")
            continue
        line = step.line(folder)
        tell(f"{head}\n  genssl {shlex.join(line)}")
        start = time.monotonic()
        code = execute(line)
        seconds = (step.seconds or 0) + time.monotonic() - start
        steps[place] = replace(step, seconds=round(seconds, 1))
        replace(plan, steps=tuple(steps)).write(folder)
        _check(step, code)
        if code:
            failed.append(step.title)
    return failed


def _step(kept: dict[str, Any]) -> Step:
    return Step(**{**kept, "arguments": tuple(kept["arguments"]), "how": tuple(kept["how"])})


def _check(step: Step, code: int) -> None:
    if code in {INTERRUPTED, TERMINATED}:
        raise UserError(f"stopped while it was to {step.title}; the same command goes on from there", code)
    if code and step.trains is not None:
        raise UserError(
            f"could not {step.title}: mend what the line above says, and the same command goes on from there",
            WRONG_INPUT if code == WRONG_INPUT else FAILED_RUN,
        )
