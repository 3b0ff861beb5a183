"""A plan: commands carried out one after the other in a folder of runs, within a budget of minutes."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from genssl import config as configs
from genssl import files, run_info
from genssl.errors import FAILED_RUN, INTERRUPTED, TERMINATED, WRONG_INPUT, UserError
from genssl.eval.names import file_name
from genssl.paths import ABOUT
from genssl.training.events import Listener
from genssl.training.options import Options

LEAST_TRAINING = 10.0  # seconds that a training is given at least
PRIOR = 10.0  # seconds at the expected speed, counted before anything was measured


@dataclass(frozen=True)
class Size:
    """An option of an evaluation that says how many images it takes.

    Attributes:
        option: e.g. --limit.
        full: images where there is time enough.
        least: images below which the result means little.
    """

    option: str
    full: int
    least: int

    def at(self, share: float) -> int:
        """Images for a share of the time that all of them take."""
        return min(self.full, max(self.least, round(self.full * share)))


@dataclass(frozen=True)
class Cost:
    """What a step is expected to take.

    Attributes:
        fixed: seconds whatever its size.
        scalable: further seconds at full size; of a training, none.
        planned_seconds: further seconds in the first planning.
        sizes: options that make an evaluation smaller.
        has_clock: a training, which --max-minutes ends.
        group: trainings of one group are compared: a later one has no more time than an earlier one.
        trainings: how many a step with a clock makes, all of the same length.
    """

    fixed: float
    scalable: float = 0.0
    planned_seconds: float = 0.0
    sizes: tuple[Size, ...] = ()
    has_clock: bool = False
    group: str = ""
    trainings: int = 1

    def least(self) -> float:
        """Seconds beyond `fixed` that it takes at its smallest."""
        if self.has_clock:
            return self.trainings * LEAST_TRAINING
        return self.scalable * max((size.least / size.full for size in self.sizes), default=1.0)

    def smallest(self) -> float:
        """Seconds that it takes at its smallest."""
        return self.fixed + self.least()

    def most(self) -> float:
        """Seconds beyond `fixed` that it takes at its full size."""
        return max(self.least(), self.planned_seconds) if self.has_clock else self.scalable

    def with_share(self, share: float) -> Self:
        """An evaluation that is planned with this share of what its full size takes beyond its smallest."""
        if self.has_clock:
            return self
        return replace(self, planned_seconds=self.least() + share * (self.scalable - self.least()))


def divide(costs: Sequence[Cost], left: float) -> tuple[float, float]:
    """How a plan fits into `left` seconds: (share of the planned trainings, share of full evaluations).

    Evaluations become smaller first, and then trainings shorter; both shares are 0 to 1.
    """
    free = left - sum(cost.smallest() for cost in costs)
    trainings = sum(cost.most() - cost.least() for cost in costs if cost.has_clock)
    evaluations = sum(cost.most() - cost.least() for cost in costs if not cost.has_clock)
    if free < trainings:
        return max(0.0, free) / max(1e-9, trainings), 0.0
    return 1.0, min(1.0, (free - trainings) / max(1e-9, evaluations))


def seconds_for(costs: Sequence[Cost], left: float, pace: float) -> float:
    """Seconds beyond `fixed` for the first of the steps that are left.

    Args:
        costs: of all steps that are left, the next one first.
        left: seconds until the end of the budget; may be negative.
        pace: seconds that a step takes for each second that it was expected to take.
    """

    def extra(cost: Cost) -> float:
        return max(0.0, cost.planned_seconds - cost.least()) * (1.0 if cost.has_clock else pace)

    # a clock goes by seconds, however slow the machine is
    smallest = [pace * cost.fixed + cost.least() * (1.0 if cost.has_clock else pace) for cost in costs]
    free = max(0.0, left - sum(smallest))
    share = extra(costs[0]) / max(1e-9, sum(map(extra, costs)))
    return smallest[0] - pace * costs[0].fixed + free * share


def pace_of(expected: Sequence[float], measured: Sequence[float]) -> float:
    """Seconds taken for each second expected, over the steps so far."""
    return (PRIOR + sum(measured)) / (PRIOR + sum(expected))


def with_option(words: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """A command line in which `option` has this value."""
    if option not in words:
        return (*words, option, value)
    i = words.index(option) + 1
    return (*words[:i], value, *words[i + 1 :])


FEWEST = 10  # epochs: below, images are left out rather than epochs
SMALLEST = 500  # images
OVERHEAD = 0.15  # of a training's time goes to pictures, test losses and saved states


@dataclass(frozen=True)
class Length:
    """How long to train.

    Attributes:
        epochs: passes.
        images: in the train split.
        limit: train on so many of them only; None: on all.
        full_epochs: that it would be without a budget.
        seconds: that it is expected to take.
        images_per_second: of training, in the trial.
    """

    epochs: int
    images: int
    limit: int | None
    full_epochs: int
    seconds: float
    images_per_second: float

    def within(self, seconds: float) -> "Length":
        """The same training made to fit into another time."""
        return fit(self.images_per_second, self.images, self.full_epochs, seconds)

    def share(self) -> float:
        """The images that are looked at, beside those of all epochs on all images."""
        return self.epochs * (self.limit or self.images) / (self.full_epochs * self.images)


def fit(images_per_second: float, images: int, full_epochs: int, seconds: float) -> Length:
    """The longest training of `seconds`: fewer epochs first, and no fewer than FEWEST; then fewer images."""
    pace = images_per_second * (1 - OVERHEAD)
    looked_at = pace * seconds
    epochs = int(min(full_epochs, looked_at / images))
    if epochs >= min(FEWEST, full_epochs):
        return Length(epochs, images, None, full_epochs, epochs * images / pace, images_per_second)
    epochs = min(FEWEST, full_epochs)
    limit = min(images, max(SMALLEST, int(looked_at / epochs)))
    return Length(epochs, images, limit, full_epochs, epochs * limit / pace, images_per_second)


def length_for(
    method: str, settings: Mapping[str, Any], seconds: float, options: Options, listen: Listener
) -> Length:
    """How long to train `method` with `settings`, whose epochs are all that it would be given."""
    from genssl.training.estimate import estimate

    config = configs.make(method, settings)
    trial = estimate(config, options, listen)
    return fit(trial.images_per_second, trial.images, config.epochs, seconds)


PLAN = "plan.json"  # in the folder: the plan, and how long each step took
REPORT_SECONDS = 3.0  # of a budget, for the report at its end
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
        cost: what it is expected to take.
        questions: of the assignment, that it is for.
        clock: seconds of training that it was given last, all its trainings together.
        expected_seconds: seconds without `clock` that its last size was expected to take.
        measured_seconds: seconds without `clock` that it took; None: not known.
    """

    title: str
    arguments: tuple[str, ...]
    makes: str
    trains: str | None = None
    how: tuple[str, ...] = ()
    seconds: float | None = None
    cost: Cost | None = None
    questions: tuple[str, ...] = ()
    clock: float | None = None
    expected_seconds: float | None = None
    measured_seconds: float | None = None

    def is_done(self, folder: Path) -> bool:
        """Whether its file is there; a training's only once the run has finished."""
        if not (folder / self.makes).exists():
            return False
        return self.trains is None or run_info.inspect(folder / self.trains).finished

    def line(self, folder: Path) -> list[str]:
        """The arguments of `genssl`: a training that was begun is resumed."""
        words = list(self.arguments)
        if self.trains is not None:
            run = folder / self.trains
            begun = (run / run_info.CONFIG).exists()
            words = ["train", "--resume", str(run)] if begun else [*words, "--out", str(run)]
        return ["--checkpoints", str(folder), *words, *self.how]

    def is_begun(self, folder: Path) -> bool:
        """Whether it has left anything."""
        return any((folder / position).exists() for position in (self.makes, self.trains or self.makes))

    def fit(self, seconds: float, pace: float) -> Self:
        """The same in so many seconds beyond its fixed ones: by its clock, or on fewer images."""
        if self.cost is None:
            return self
        if self.cost.has_clock:
            minutes = seconds / 60 / self.cost.trainings
            how = with_option(self.how, "--max-minutes", f"{minutes:.3f}")
            return replace(self, how=how, clock=seconds, expected_seconds=self.cost.fixed)
        words, share = self.arguments, 1.0
        for size in self.cost.sizes:
            images = size.at(seconds / max(1e-9, self.cost.scalable * pace))
            share = images / size.full
            # without the option the command takes all that there is
            if images < size.full or size.option in words:
                words = with_option(words, size.option, str(images))
        # The options of an evaluation are in the names of its files
        makes = numbers_of(words) if "/eval/" in self.makes else self.makes
        expected = self.cost.fixed + share * self.cost.scalable
        return replace(self, arguments=words, makes=makes, expected_seconds=expected)

    def with_cost(self, cost: Cost) -> Self:
        """The same with what it is expected to take."""
        return replace(self, cost=cost)

    def expected(self) -> float | None:
        """Seconds that the plan expects it to take; None where that is not known."""
        return None if self.cost is None else self.cost.fixed + self.cost.planned_seconds

    def after(self, seconds: float, code: int) -> Self:
        """The same after a sitting of so many seconds."""
        total = round((self.seconds or 0) + seconds, 1)
        unclocked = seconds - (self.clock or 0)
        # of a training that ended before its clock, and of what failed, nothing is learned
        measured = round(unclocked, 1) if code == 0 and unclocked > 0 else None
        return replace(self, seconds=total, measured_seconds=measured)

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
    words = (command, method, *map(str, options))
    return Step(title, words, numbers_of(words))


def numbers_of(arguments: Sequence[str]) -> str:
    """Where an evaluation's numbers go, by its command line without the program."""
    command, method, *words = arguments
    changed: dict[str, object] = {}
    remaining = iter(words)
    for word in remaining:
        name = word.lstrip("-").replace("-", "_")
        if name.startswith("no_"):
            changed[name.removeprefix("no_")] = False
        else:
            changed[name] = next(remaining)
    return f"{method}/eval/{file_name(command, changed)}.json"


@dataclass(frozen=True)
class Plan:
    """Steps in their order.

    Attributes:
        title: of the report.
        notes: what its reader has to know first, e.g. what was made smaller.
        steps: the commands.
        asked: what the plan was made of; another call in the same folder must ask for the same.
        budget: seconds that everything may take; None: as long as it takes.
        spent: seconds that planning took.
    """

    title: str
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    asked: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None
    spent: float = 0.0

    def fit(self, i: int, folder: Path) -> Step:
        """The step at `i`, made to fit into its part of what is left of the budget."""
        step = self.steps[i]
        if self.budget is None or step.cost is None:
            return step
        left = self.budget - self.spent - sum(step.seconds or 0 for step in self.steps)
        later = [other.cost for other in self.steps[i + 1 :] if not other.is_done(folder)]
        costs = [step.cost, *(cost for cost in later if cost is not None), Cost(REPORT_SECONDS)]
        pace = self.pace()
        seconds = seconds_for(costs, left, pace)
        clocks = [
            other.clock / other.cost.trainings * step.cost.trainings
            for other in self.steps[:i]
            if other.clock is not None and other.cost is not None and other.cost.group == step.cost.group
        ]
        return step.fit(min([seconds, *clocks]) if step.cost.group else seconds, pace)

    def pace(self) -> float:
        """Seconds taken for each second expected, over the steps so far."""
        known = [(step.expected_seconds, step.measured_seconds) for step in self.steps]
        pairs = [(a, b) for a, b in known if a is not None and b is not None]
        return pace_of([a for a, _ in pairs], [b for _, b in pairs])

    def write(self, folder: Path) -> None:
        """Keep the plan in its folder."""
        files.write_json(folder / PLAN, asdict(self))
        minutes = sum(step.seconds or 0 for step in self.steps) / 60
        took = f"its steps took {minutes:.1f} minutes together; {PLAN} has each of them"
        files.write_json(folder / ABOUT, {"title": self.title, "notes": [*self.notes, took]})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The plan that a folder keeps."""
        saved = files.read_record(folder / PLAN)
        try:
            steps = tuple(map(_step, saved["steps"]))
            notes, budget, spent = tuple(saved["notes"]), saved.get("budget"), saved.get("spent", 0.0)
            return cls(saved["title"], notes, steps, saved["asked"], budget, spent)
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
    elif folder.exists() and not files.is_empty(folder):
        raise UserError(f"{folder} holds something else; choose another --out")
    plan = replace(make(), asked=asked)
    folder.mkdir(parents=True, exist_ok=True)
    plan.write(folder)
    return plan


def carry_out(
    plan: Plan, folder: Path, execute: Execute, tell: Tell, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Take every step that is not done yet; with a budget, each in its part of the time that is left then.

    A training that fails ends the plan; another step that fails is told, and the plan goes on without it.

    Args:
        plan: as from `begin`.
        folder: where it is carried out, and kept up to date.
        execute: carries out a command.
        tell: told what happens.
        clock: seconds since any moment.

    Returns:
        The titles of the steps that failed.

    Raises:
        UserError: it was stopped, or a training failed.
    """
    failed = []
    for i in range(len(plan.steps)):
        head = f"step {i + 1} of {len(plan.steps)}: {plan.steps[i].title}"
        # As it was carried out: a step that is fitted again may have another size, and so another file name
        if plan.steps[i].is_done(folder):
            tell(f"{head}: done before")
            continue
        step = plan.fit(i, folder)
        line = step.line(folder)
        tell(head)
        tell(f"  genssl {shlex.join(line)}")
        start = clock()
        code = execute(line)
        step = step.after(clock() - start, code)
        plan = replace(plan, steps=(*plan.steps[:i], step, *plan.steps[i + 1 :]))
        plan.write(folder)
        _check(step, code)
        if code:
            failed.append(step.title)
    return failed


def _step(saved: dict[str, Any]) -> Step:
    cost = saved.get("cost")
    if cost is not None:
        cost = Cost(**{**cost, "sizes": tuple(Size(**size) for size in cost["sizes"])})
    listed = {name: tuple(saved[name]) for name in ("arguments", "how", "questions")}
    return Step(**{**saved, **listed, "cost": cost})


def _check(step: Step, code: int) -> None:
    if code in {INTERRUPTED, TERMINATED}:
        raise UserError(f"stopped while it was to {step.title}; the same command goes on from there", code)
    if code and step.trains is not None:
        raise UserError(
            f"could not {step.title}: mend what the line above says, and the same command goes on from there",
            WRONG_INPUT if code == WRONG_INPUT else FAILED_RUN,
        )
