"""What trained arms show beside the baseline: numbers over seeds, a verdict an arm, and what to beware of."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genssl import checkpoint, files
from genssl.checkpoint import RunInfo
from genssl.eval.outcome import Outcome
from genssl.settings import Config
from genssl.studies.arm_figure import draw_arms

SHORT = 10  # epochs
HEADLINES = (
    "bits_per_dim",
    "test_loss",
    "loss",
)  # the number a verdict is about: the first that both sides have
TIMES = {
    "training": "training_seconds",
    "sampling": "sampling_seconds",
    "ancestral sampling": "ancestral_seconds",
}
ALIKE = 1.1  # times closer than this ratio are called the same: a machine's own noise
TIMED = {
    "training": 10.0,
    "sampling": 0.0,
    "ancestral sampling": 0.0,
}  # seconds: what is shorter is start-up more than work
# Settings that change what the loss is, or over what it is averaged: losses across them do not compare
REDEFINING = {
    "data", "image_size", "decoder_variance", "loss",
    "timesteps", "beta_schedule", "beta_start", "beta_end", "scale_betas",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One side of an ablation: what it changes in the baseline, which changes nothing."""

    name: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A run that was trained and measured."""

    info: RunInfo
    history: list[dict[str, Any]]
    numbers: dict[str, float]

    @property
    def device(self) -> str:
        """What it was trained on."""
        origin = self.info.folder / checkpoint.ENVIRONMENT
        return str(files.read_json(origin)["device"]) if origin.exists() else "unknown"


@dataclass(frozen=True)
class Number:
    """A number over the seeds of an arm; `std` is the sample standard deviation, None for one seed."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class ArmRuns:
    """An arm's runs, one a seed, and why others are missing."""

    arm: Arm
    runs: list[Measured]
    failures: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, Number]:
        """Every number that a run has, over the runs that have it."""
        names = dict.fromkeys(name for run in self.runs for name in run.numbers)
        return {name: over_seeds([r.numbers[name] for r in self.runs if name in r.numbers]) for name in names}

    def redefines(self) -> list[str]:
        """The arm's changes that make its loss another quantity than the baseline's."""
        return [name for name in self.arm.changes if name in REDEFINING]


def over_seeds(values: Sequence[float]) -> Number:
    """Mean and sample standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Number(statistics.fmean(values), std, len(values))


def compare_arms(baseline: Config, arms: Sequence[ArmRuns]) -> Outcome:
    """The table, the figure and the notes of a study; the first arm is the baseline."""
    values = {
        "method": baseline.method,
        "data": baseline.data,
        "epochs": baseline.epochs,
        "settings": baseline.model_dump(),
        "baseline": arms[0].arm.name,
        "rows": [_row(arm, arms[0]) for arm in arms],
    }
    title = f"{baseline.method} on {Path(baseline.data).name}, {baseline.epochs} epochs"
    return Outcome(values, {"ablation": draw_arms(arms, title)}, tuple(_notes(arms)))


def _row(arm: ArmRuns, baseline: ArmRuns) -> dict[str, Any]:
    return {
        "arm": arm.arm.name,
        "changes": arm.arm.changes,
        "runs": [_origin(run) for run in arm.runs],
        "failures": arm.failures,
        "numbers": {name: vars(number) for name, number in arm.numbers().items()},
        "verdict": verdict(arm, baseline),
    }


def _origin(run: Measured) -> dict[str, Any]:
    return {
        "run": run.info.name,
        "seed": run.info.config.seed,
        "epoch": run.info.epoch,
        "weights_sha256": run.info.digest,
        "device": run.device,
        "numbers": run.numbers,
    }


def verdict(arm: ArmRuns, baseline: ArmRuns) -> str:
    """One line: what the arm does to the headline number and to the times."""
    if not arm.runs:
        return f"failed: {arm.failures[0]}"
    ours, theirs = arm.numbers(), baseline.numbers()
    shared = ours.keys() & theirs.keys()
    headline = next((name for name in HEADLINES if name in shared), None)
    if arm is baseline:
        return "the baseline" + (f": {headline} {ours[headline].mean:.4g}" if headline else "")
    if not baseline.runs:
        return "the baseline failed: nothing to compare with"
    parts = [_compare(headline, theirs[headline], ours[headline], arm)] if headline else []
    if {run.device for run in arm.runs} == {run.device for run in baseline.runs}:
        parts += [_pace(what, theirs[name], ours[name]) for what, name in TIMES.items() if name in shared]
    return "; ".join(part for part in parts if part)


def _compare(name: str, before: Number, after: Number, arm: ArmRuns) -> str:
    text = f"{name} {before.mean:.4g} -> {after.mean:.4g}"
    if name in {"loss", "test_loss"} and arm.redefines():
        return f"{text} (not comparable: another loss)"
    remarks = []
    if before.mean > 0 and after.mean > 0:
        percent = 100 * (after.mean / before.mean - 1)
        remarks.append(f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %")
    if (clear := _is_clear(before, after)) is not None:
        remarks.append(f"{'beyond' if clear else 'within'} the seeds' spread")
    return f"{text} ({', '.join(remarks)})" if remarks else text


def _is_clear(before: Number, after: Number) -> bool | None:
    """Whether two means differ by more than the deviation of such a difference; None for one seed."""
    if before.std is None or after.std is None:
        return None
    return abs(after.mean - before.mean) > math.hypot(before.std, after.std)


def _pace(what: str, before: Number, after: Number) -> str:
    if max(before.mean, after.mean) < TIMED[what]:
        return ""
    ratio = max(after.mean, 1e-9) / max(before.mean, 1e-9)
    if 1 / ALIKE < ratio < ALIKE or _is_clear(before, after) is False:
        return f"{what} as fast"
    return f"{what} {ratio:.2g}x slower" if ratio > 1 else f"{what} {1 / ratio:.2g}x faster"


def _notes(arms: Sequence[ArmRuns]) -> list[str]:
    runs = [run for arm in arms for run in arm.runs]
    notes = [f"{arm.arm.name} failed, {failure}" for arm in arms for failure in arm.failures]
    notes += [_cut(run) for run in runs if run.info.epoch < run.info.config.epochs]
    shortest = min(run.info.epoch for run in runs)
    if shortest < SHORT:
        length = "1 epoch" if shortest == 1 else f"{shortest} epochs"
        notes.append(f"short runs ({length}): longer ones may rank the arms otherwise")
    if all(len(arm.runs) < 2 for arm in arms):
        notes.append("one seed an arm: a difference may be chance; --seeds 3 shows the spread")
    notes += [_another_loss(arm) for arm in arms if arm.redefines()]
    if len(devices := sorted({run.device for run in runs})) > 1:
        notes.append(f"times do not compare: the runs were trained on {', '.join(devices)}")
    return notes


def _cut(run: Measured) -> str:
    done, epochs = run.info.epoch, run.info.config.epochs
    return (
        f"{run.info.name} ended after {done} of {epochs} epochs by its time limit; the same command goes on"
    )


def _another_loss(arm: ArmRuns) -> str:
    changed = ", ".join(arm.redefines())
    return f"the losses of {arm.arm.name} and of the baseline are different quantities: it changes {changed}"
