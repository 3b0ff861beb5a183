"""The whole assignment as a plan, within a budget of minutes or at the assignment's size.

Its figures show 70 epochs of both generative models; its question 3.4 asks for 100 epochs of SimSiam.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genssl import config as configs
from genssl.report.answers.questions import NUMBERS
from genssl.runtime import choose_device
from genssl.studies.assignment_steps import REFERENCE, SAMPLES, Part, steps_of
from genssl.studies.plan import REPORT_SECONDS, Cost, Length, Plan, Step, divide, fit, length_for
from genssl.training.events import Listener, Note
from genssl.training.options import Options
from genssl.training.splits import require_data

FULL_EPOCHS = {"vae": 70, "ddpm": 70, "simsiam": 100}
# Of a budget, for each training; there are 5 DDPMs with other steps, 4 SimSiams, 2 Barlow Twins, 4 with heavy
# views and 4 VICRegs
SHARES = {
    "vae": 0.04, "ddpm": 0.13, "ddpm-timesteps": 0.016, "simsiam": 0.05, "barlow-twins": 0.03,
    "dssl": 0.025, "vicreg": 0.025, "byol": 0.065,
}  # fmt: skip
TRAINED = 0.74  # of a budget, by all trainings together
# Whose speed is tried, and how much slower a step is than its: docs/results/family-compare.json
TRIALS = {
    "vae": ("vae", 1.0), "ddpm": ("ddpm", 1.0), "ddpm-timesteps": ("ddpm", 1.0), "simsiam": ("simsiam", 1.0),
    "barlow-twins": ("simsiam", 1.2), "dssl": ("simsiam", 2.2), "vicreg": ("simsiam", 1.5),
    "byol": ("simsiam", 1.35),
}  # fmt: skip
# Images a second on one thread of the machine of REFERENCE, about
USUAL = {"vae": REFERENCE, "ddpm": 165.0, "simsiam": 250.0}
SAME_LENGTH = {"byol": "simsiam"}  # they are compared
KNN_LOOKS = 3  # at the accuracy of a SimSiam that has a budget: each takes as long as many steps
WIDTHS = ("projector_dim", "predictor_hidden")  # that a question is about, and what fits it
TITLE = "IFT6135, assignment 3"
MANY = 10_000  # samples whose fidelity is measured on a GPU


@dataclass(frozen=True)
class Asked:
    """What is asked of the assignment.

    Attributes:
        data: what the generative models learn.
        ssl_data: what SimSiam and its relatives learn.
        budget: minutes that everything may take; None: as long as it takes.
        device: as in --device.
        seed: of everything random.
        questions: the numbers of those to answer.
    """

    data: str
    ssl_data: str
    budget: float | None = None
    device: str = "auto"
    seed: int = 0
    questions: Sequence[str] = NUMBERS

    def source(self, name: str) -> str:
        """What a part learns."""
        return self.data if TRIALS[name][0] in {"vae", "ddpm"} else self.ssl_data


def assignment(asked: Asked, listen: Listener) -> Plan:
    """Make the plan, after a trial of the trainings.

    Args:
        asked: questions, data, budget.
        listen: told what happens.

    Raises:
        UserError: the data or the device is not to be had.
    """
    start = time.monotonic()
    bare = {name: Part(_method(name), asked.source(name), {}) for name in SHARES}
    steps = steps_of(bare, device=asked.device, questions=asked.questions)
    needed = [name for name, part in bare.items() if _trains(steps, name, part)]
    # SimSiam comes last, hours or days after the start
    require_data((bare[name].config for name in needed), listen)
    small = choose_device(asked.device).type == "cpu"
    if asked.budget is None and small:
        listen(Note("without a --budget this takes weeks on a CPU; --budget 60 makes it an hour"))
    planner = _Planner(asked, small=small, needed=needed, listen=listen)
    if asked.budget is None:
        return Plan(TITLE, (), planner.steps_at_full_size())
    return planner.within(60 * asked.budget, start)


def _method(name: str) -> str:
    return name.split("-timesteps", maxsplit=1)[0].replace("-", "_")


def _trains(steps: Iterable[Step], name: str, part: Part) -> bool:
    """Whether any of the steps is a training of this part."""
    method = part.method.replace("_", "-")
    ablates = any(step.arguments[:2] == ("ablate", method) for step in steps)
    trains = any(step.trains == part.method for step in steps)
    return ablates if name not in {"vae", "ddpm", "simsiam", "byol"} else trains


class _Planner:
    """Makes the parts fit."""

    def __init__(self, asked: Asked, *, small: bool, needed: Sequence[str], listen: Listener) -> None:
        self.asked, self.small, self.needed = asked, small, needed
        self.listen = listen
        self.settings = {name: self._settings(name) for name in SHARES}
        self.speeds, self.images = self._try()
        self.lengths: dict[str, Length] = {}

    def steps_at_full_size(self) -> tuple[Step, ...]:
        """Every step as the assignment asks for it, with the time that it is expected to take."""
        self.lengths = {name: self._fit(name, math.inf) for name in SHARES}
        parts = {
            name: self._part(name, self.settings[name], length.seconds)
            for name, length in self.lengths.items()
        }
        steps = self._steps(parts, full=True)
        return tuple(step.with_cost(step.cost.with_share(1.0)) for step in steps if step.cost is not None)

    def within(self, seconds: float, start: float) -> Plan:
        """The plan of a budget: trainings take TRAINED of it, evaluations the images that fit into the rest.

        Where the rest is too short even for the smallest evaluations, trainings become shorter.
        """
        scale = TRAINED * seconds / self._planned(self._steps_within(seconds, full=True))
        spent = time.monotonic() - start
        left = seconds - spent - REPORT_SECONDS
        steps = self._steps_within(scale * seconds, full=True)
        factor, share = divide(_costs(steps), left)
        if share < 1:
            factor, share = divide(_costs(self._steps_within(scale * seconds, full=False)), left)
            steps = self._steps_within(factor * scale * seconds, full=False)
        steps = tuple(step.with_cost(step.cost.with_share(share)) for step in steps if step.cost is not None)
        notes = list(self._notes(seconds, share))
        smallest = seconds - left + sum(cost.smallest() for cost in _costs(steps))
        if smallest > seconds:
            notes.insert(1, f"this budget cannot be kept here: the smallest possible is {_minutes(smallest)}")
        return Plan(TITLE, tuple(notes), steps, budget=seconds, spent=spent)

    def _settings(self, name: str) -> dict[str, Any]:
        """The settings of a part at the assignment's length."""
        kind = configs.config_class(_method(name))
        cheap = kind.with_recipe(kind.on_a_cpu) if self.small and self.asked.budget is not None else {}
        # The widths that questions are about stay the assignment's, whatever a small encoder's recipe has
        widths = {name: kind.model_fields[name].default for name in WIDTHS if name in cheap}
        cheap = {**cheap, **widths}
        return {"epochs": FULL_EPOCHS[TRIALS[name][0]], "seed": self.asked.seed, **cheap}

    def _try(self) -> tuple[dict[str, float], dict[str, int]]:
        """Images per second of each part, and how many train images it has."""
        trials = {}
        for method in dict.fromkeys(TRIALS[name][0] for name in self.needed):
            source = self.asked.source(method)
            self.listen(Note(f"a few steps of {method} on {source}, to see how long they take"))
            setting = {**self.settings[method], "data": source}
            trials[method] = length_for(method, setting, 0.0, Options(device=self.asked.device), self.listen)
        # What is not trained needs no data, and is as much slower than USUAL as what was tried
        first, trial = next(iter(trials.items()))
        for method, usual in USUAL.items():
            speed = trial.images_per_second * usual / USUAL[first]
            trials.setdefault(method, replace(trial, images_per_second=speed))
        known = {name: trials[method] for name, (method, _) in TRIALS.items()}
        speeds = {name: length.images_per_second / TRIALS[name][1] for name, length in known.items()}
        return speeds, {name: length.images for name, length in known.items()}

    def _fit(self, name: str, seconds: float) -> Length:
        epochs = self.settings[name]["epochs"]
        return fit(self.speeds[name], self.images[name], epochs, seconds)

    def _part(self, name: str, settings: dict[str, Any], seconds: float) -> Part:
        return Part(_method(name), self.asked.source(name), settings, self.speeds[name], seconds)

    def _steps_within(self, seconds: float, *, full: bool) -> tuple[Step, ...]:
        """The steps where a budget of `seconds` is divided by SHARES."""
        portions = {name: seconds * share for name, share in SHARES.items()}
        for name, portion in portions.items():
            length = self._fit(name, portion)
            self.lengths[name] = self.lengths[SAME_LENGTH[name]] if name in SAME_LENGTH else length
        parts = {
            name: self._part(
                name, {**self.settings[name], **_shortened(name, self.lengths[name])}, portions[name]
            )
            for name in SHARES
        }
        return self._steps(parts, full=full)

    def _steps(self, parts: Mapping[str, Part], *, full: bool) -> tuple[Step, ...]:
        samples = SAMPLES if self.small else MANY
        asked = self.asked
        return steps_of(parts, device=asked.device, questions=asked.questions, full=full, samples=samples)

    @staticmethod
    def _planned(steps: Iterable[Step]) -> float:
        """Seconds of all trainings."""
        return max(1e-9, sum(cost.planned_seconds for cost in _costs(steps) if cost.has_clock))

    def _notes(self, seconds: float, share: float) -> Iterator[str]:
        """What was made smaller, and by how much."""
        budget = f"{seconds / 60:g} minutes"
        yield f"made for a budget of {budget}; without --budget everything has the assignment's size"
        for name in self.needed:
            length, method = self.lengths[name], _method(name)
            images = f"{length.limit or length.images:,} of {length.images:,} images"
            full = f"{length.share():.1%} of the assignment's {length.full_epochs} epochs on all of them"
            yield f"{name}: at most {length.epochs} epochs on {images}, {full}; the clock may end it before"
            if self.small and (cheap := configs.config_class(method).on_a_cpu):
                changed = ", ".join(f"{key}={value}" for key, value in cheap.items())
                yield f"{name} has settings for a CPU: {changed}"
        if share < 1:
            yield "evaluations take fewer images, the fewer the less time is left"


def _costs(steps: Iterable[Step]) -> list[Cost]:
    return [step.cost for step in steps if step.cost is not None]


def _minutes(seconds: float) -> str:
    return f"about {math.ceil(seconds / 6) / 10:g} minutes"


def _shortened(name: str, length: Length) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": length.epochs}
    if length.limit is not None:
        settings["limit"] = length.limit
    if TRIALS[name][0] == "simsiam":
        settings["knn_every"] = max(1, length.epochs // KNN_LOOKS)
    return settings
