"""Budgets: how time is divided over the steps of a plan, again before every step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from genssl import run_info
from genssl.errors import TERMINATED, UserError
from genssl.report.answers.questions import NUMBERS
from genssl.studies.assignment import SHARES, TRIALS
from genssl.studies.assignment_steps import Part, steps_of
from genssl.studies.plan import (
    LEAST_TRAINING,
    REPORT_SECONDS,
    Cost,
    Plan,
    Size,
    Step,
    begin,
    carry_out,
    divide,
    numbers_of,
    pace_of,
    seconds_for,
    with_option,
)

MINUTE = 60.0


def silent(text: str) -> None:
    pass


def value_of(words: Sequence[str], option: str, default: float) -> float:
    return float(words[words.index(option) + 1]) if option in words else default


def assignment_of(budget: float) -> Plan:
    """The assignment's own steps on a machine of known speed."""
    settings = {"epochs": 10, "limit": 1000}
    speeds = {"vae": 900.0, "ddpm": 250.0, "simsiam": 800.0}
    parts = {
        name: Part(
            name.replace("-timesteps", "").replace("-", "_"), "svhn", settings,
            images_per_second=speeds[method] / slower, seconds=SHARES[name] * budget,
        )
        for name, (method, slower) in TRIALS.items()
    }  # fmt: skip
    steps = steps_of(parts, device="auto", questions=NUMBERS, full=False)
    _, share = divide([step.cost for step in steps if step.cost], budget - REPORT_SECONDS)
    steps = tuple(step.with_cost(step.cost.with_share(share)) for step in steps if step.cost)
    return Plan("title", (), steps, budget=budget)


class Machine:
    """Carries out steps on a clock of its own; `slowness` of a step's number is by how much it is slower."""

    def __init__(self, plan: Plan, folder: Path, slowness: Callable[[int], float]) -> None:
        self.plan, self.folder, self.slowness = plan, folder, slowness
        self.seconds = 0.0
        self.durations: dict[str, float] = {}
        self.unclocked: dict[str, float] = {}
        self.lines: dict[str, Sequence[str]] = {}

    def clock(self) -> float:
        return self.seconds

    def __call__(self, line: Sequence[str]) -> int:
        words = line[2:]
        i = len(self.lines)
        step = self.plan.steps[i]
        assert words[0] == step.arguments[0]
        assert step.cost is not None
        clock = 60 * step.cost.trainings * value_of(words, "--max-minutes", 0.0)
        share = max([value_of(words, size.option, size.full) / size.full for size in step.cost.sizes] or [1])
        unclocked = self.slowness(i) * (step.cost.fixed + share * step.cost.scalable)
        self.seconds += unclocked + clock
        self.lines[step.title], self.unclocked[step.title] = words, unclocked
        # The options of an evaluation are in the name of its file, the size that it was given among them
        makes = numbers_of(words) if "/eval/" in step.makes else step.makes
        (self.folder / makes).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / makes).write_text("{}")
        return 0


@pytest.fixture(autouse=True)
def _every_training_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_info, "inspect", lambda path: SimpleNamespace(finished=True))


def carry(plan: Plan, folder: Path, slowness: Callable[[int], float]) -> Machine:
    folder.mkdir(exist_ok=True)
    machine = Machine(plan, folder, slowness)
    assert carry_out(plan, folder, machine, silent, machine.clock) == []
    return machine


SLOWNESS: dict[str, Callable[[int], float]] = {
    "as expected": lambda i: 1.0,
    "faster": lambda i: 0.5,
    "slower": lambda i: 2.0,
    "much slower": lambda i: 3.0,
    "slower from the DDPM on": lambda i: 1.0 if i < 7 else 3.0,
    "slower and slower": lambda i: 1.0 + 0.1 * i,
    "now and then": lambda i: 4.0 if i % 3 == 0 else 1.0,
}


@pytest.mark.parametrize("minutes", [30.0, 60.0, 120.0])
@pytest.mark.parametrize("slowness", SLOWNESS.values(), ids=SLOWNESS)
def test_a_budget_is_kept_but_for_one_step_without_a_clock(
    tmp_path: Path, minutes: float, slowness: Callable[[int], float]
) -> None:
    machine = carry(assignment_of(minutes * MINUTE), tmp_path, slowness)
    # A twentieth more: where all that is left is at its smallest size, a machine three times as slow overruns
    assert machine.seconds <= 1.05 * minutes * MINUTE + max(machine.unclocked.values())
    assert len(machine.lines) == 27


def test_without_planning_again_a_slow_machine_takes_longer(tmp_path: Path) -> None:
    plan = assignment_of(30 * MINUTE)
    steps = tuple(step.fit(step.cost.planned_seconds, 1.0) for step in plan.steps if step.cost)
    once = carry(replace(plan, budget=None, steps=steps), tmp_path / "once", SLOWNESS["much slower"])
    assert once.seconds > 1.4 * 30 * MINUTE
    again = carry(plan, tmp_path / "again", SLOWNESS["much slower"])
    assert again.seconds < 1.2 * 30 * MINUTE


def test_a_budget_is_used(tmp_path: Path) -> None:
    machine = carry(assignment_of(40 * MINUTE), tmp_path, SLOWNESS["as expected"])
    assert machine.seconds > 0.9 * 40 * MINUTE


def test_late_steps_are_smaller_on_a_slow_machine_and_never_too_small(tmp_path: Path) -> None:
    usual = carry(assignment_of(40 * MINUTE), tmp_path / "usual", SLOWNESS["as expected"])
    slow = carry(assignment_of(40 * MINUTE), tmp_path / "slow", SLOWNESS["much slower"])
    sizes = {
        "noise images and come back (figure 9)": ("--queries", 32),
        "draw samples of the DDPM (figure 10)": ("-n", 8),
        "bound the likelihood": ("--limit", 32),
        "classify by nearest neighbors": ("--test-limit", 500),
        "measure the DDPM's samples": ("-n", 64),
    }
    for title, (option, least) in sizes.items():
        before, after = (value_of(machine.lines[title], option, 1e9) for machine in (usual, slow))
        assert least <= after < before, title
    title = "train the DDPM (figures 7 and 8)"
    minutes = [value_of(machine.lines[title], "--max-minutes", 0) for machine in (usual, slow)]
    assert minutes[1] < minutes[0]


def test_arms_have_no_more_time_than_their_baseline(tmp_path: Path) -> None:
    # slow until SimSiam's first training, then fast: more time would be left for its ablations
    machine = carry(assignment_of(40 * MINUTE), tmp_path, lambda i: 4.0 if i < 16 else 0.1)
    clocks = [
        value_of(words, "--max-minutes", 0)
        for words in machine.lines.values()
        if words[0] in {"train", "ablate"} and words[1] == "simsiam"
    ]
    assert len(clocks) == 4
    assert set(clocks) == {clocks[0]}


def test_a_stopped_plan_goes_on_with_the_time_that_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    plan = begin(folder, {"budget": 30}, lambda: assignment_of(30 * MINUTE))
    machine = Machine(plan, folder, SLOWNESS["slower"])

    def stopping(line: Sequence[str]) -> int:
        if len(machine.lines) == 8:
            machine.seconds += 60  # of a step that is lost
            return TERMINATED
        return machine(line)

    with pytest.raises(UserError, match="the same command goes on"):
        carry_out(plan, folder, stopping, silent, machine.clock)
    kept = begin(folder, {"budget": 30}, lambda: plan)
    assert kept.budget == 30 * MINUTE
    assert sum(step.seconds or 0 for step in kept.steps) == pytest.approx(machine.seconds, abs=1.0)
    carry_out(kept, folder, machine, silent, machine.clock)
    assert machine.seconds <= 30 * MINUTE + max(machine.unclocked.values())


def test_time_that_planning_took_is_time_of_the_budget(tmp_path: Path) -> None:
    plan = replace(assignment_of(40 * MINUTE), spent=5 * MINUTE)
    machine = carry(plan, tmp_path, SLOWNESS["as expected"])
    assert machine.seconds <= 35 * MINUTE + 10


def test_a_plan_without_a_budget_is_as_it_was_made(tmp_path: Path) -> None:
    step = Step("train", ("ablate", "x"), "x.json", cost=None)
    assert Plan("title", (), (step,)).fit(0, tmp_path) is step


# The parts


def test_what_is_left_is_divided_in_proportion_beyond_what_cannot_be_shortened() -> None:
    images = Size("-n", 100, 10)
    evaluation = Cost(2.0, 50.0, planned_seconds=25.0, sizes=(images,))  # at least 5 seconds
    training = Cost(3.0, planned_seconds=10.0 + 60.0, has_clock=True)
    costs = [evaluation, training]
    # 2 + 5 + 3 + 10 cannot be shortened; 40 are divided 20 : 60
    assert seconds_for(costs, 60.0, 1.0) == pytest.approx(5 + 10)
    assert seconds_for(costs[::-1], 60.0, 1.0) == pytest.approx(LEAST_TRAINING + 30)
    # at half the speed 4 + 10 + 6 + 10, and 30 are divided 40 : 60
    assert seconds_for(costs, 60.0, 2.0) == pytest.approx(10 + 12)
    for left in (0.0, -100.0):
        assert seconds_for(costs, left, 1.0) == pytest.approx(5)
    assert [images.at(share) for share in (0.0, 0.5, 7.0)] == [10, 50, 100]


def test_evaluations_become_smaller_before_trainings_become_shorter() -> None:
    costs = [
        Cost(2.0, 50.0, sizes=(Size("-n", 100, 10),)),
        Cost(3.0, planned_seconds=LEAST_TRAINING + 40.0, has_clock=True),
    ]
    smallest = 2 + 5 + 3 + LEAST_TRAINING
    assert divide(costs, 1000.0) == (1.0, 1.0)
    evaluations, trainings = divide(costs, smallest + 40 + 9)
    assert evaluations == 1.0
    assert trainings == pytest.approx(0.2)
    evaluations, trainings = divide(costs, smallest + 10)
    assert evaluations == pytest.approx(0.25)
    assert trainings == 0.0
    assert divide(costs, 1.0) == (0.0, 0.0)
    assert divide([Cost(3.0, planned_seconds=1.0, has_clock=True)], 1.0) == (0.0, 0.0)


def test_the_pace_is_measured() -> None:
    assert pace_of([], []) == 1.0
    assert pace_of([20.0, 30.0], [60.0, 90.0]) == pytest.approx(160 / 60)


def test_an_option_is_set_where_it_stands() -> None:
    words = ("sample", "-n", "64", "--seed", "1")
    assert with_option(words, "-n", "16") == ("sample", "-n", "16", "--seed", "1")
    assert with_option(words, "--x", "2") == (*words, "--x", "2")
