"""The results of arms over random seeds, and what they show."""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from genssl import files, run_info
from genssl.run_info import RunInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Settings that change what the loss is, or over what it is averaged: losses across them do not compare
REDEFINING = {
    "method", "data", "holdout", "image_size", "decoder_variance", "loss", "label_smoothing",
    "prediction", "weighting", "timestep_sampling", "zero_terminal_snr",
    "timesteps", "beta_schedule", "beta_start", "beta_end", "scale_betas",
    "temperature", "queue_size", "naive", "beta", "lambd", "invariance", "variance", "covariance",
    "crop_scale", "view_size", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "grayscale",
    "blur", "heavy_operations", "heavy_magnitude",
}  # fmt: skip
# Losses that sum over pairs of outputs, whose chance correlations depend on the batch, or over its negatives
SUMMED = {"barlow_twins", "vicreg", "simclr"}
REDEFINING_SUMS = {"projector_dim", "batch_size"}


@dataclass(frozen=True)
class Arm:
    """One side of a study: what it changes in the baseline, which changes nothing."""

    name: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What was measured of one run.

    Attributes:
        numbers: by name, units in the names; accuracies are shares, 0 to 1.
        curves: by name, one value an epoch of what was fitted to the run.
        facts: what tells whether numbers compare, e.g. the digest of the test images.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Self:
        """What a measure found, told apart by its type."""
        curves = {name: value for name, value in result.items() if isinstance(value, list)}
        facts = {name: value for name, value in result.items() if isinstance(value, str)}
        numbers = {name: value for name, value in result.items() if not isinstance(value, list | str)}
        return cls(numbers, curves, facts)


@dataclass(frozen=True)
class Measured:
    """A run that was trained and measured; `history` has one record an epoch."""

    info: RunInfo
    history: list[dict[str, Any]]
    findings: Findings

    @property
    def device(self) -> str:
        """What it was trained on."""
        origin = self.info.folder / run_info.ENVIRONMENT
        return str(files.read_record(origin).get("device", "unknown")) if origin.exists() else "unknown"

    @property
    def collapsed(self) -> bool:
        """Whether the training found at its end that the outputs had collapsed."""
        last = self.history[-1] if self.history else {}
        return bool(last.get("collapsed"))


@dataclass(frozen=True)
class Statistic:
    """A number over the seeds of an arm.

    Attributes:
        mean: over the seeds.
        std: sample standard deviation over the seeds; None for one seed.
        runs: number of seeds.
        standard_error: of one seed's number, over the test images; None for several seeds and where unknown.
    """

    mean: float
    std: float | None
    runs: int
    standard_error: float | None = None


@dataclass(frozen=True)
class ArmRuns:
    """An arm's runs, one per seed, and why others are missing."""

    arm: Arm
    runs: list[Measured]
    failures: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, Statistic]:
        """Every number that a run has, over the runs that have it."""
        names = dict.fromkeys(name for run in self.runs for name in run.findings.numbers)
        result = [run.findings.numbers for run in self.runs]
        statistics_of = {
            name: over_seeds([item[name] for item in result if name in item])
            for name in names
            if not name.endswith(STANDARD_ERROR)
        }
        if len(result) == 1:
            for name, number in statistics_of.items():
                error = standard_error(name, result[0])
                statistics_of[name] = replace(number, standard_error=error)
        return statistics_of

    def redefines(self) -> list[str]:
        """The arm's changes that make its loss another quantity than the baseline's."""
        if "method" in self.arm.changes:
            return ["method"]
        method = self.runs[0].info.config.method if self.runs else ""
        names = REDEFINING | (REDEFINING_SUMS if method in SUMMED else set())
        return [name for name in self.arm.changes if name in names]

    def redefinition(self, baseline: str) -> str:
        """A sentence on `redefines`."""
        changed = ", ".join(self.redefines())
        return (
            f"the losses of {self.arm.name} and of {baseline} are different quantities: it changes {changed}"
        )


def over_seeds(values: Sequence[float]) -> Statistic:
    """Mean and sample standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(statistics.fmean(values), std, len(values))


def standard_error(name: str, numbers: Mapping[str, float]) -> float | None:
    """The standard error of one run's number over its test images: measured, or binomial for an accuracy."""
    if name in ACCURACIES and numbers.get("test_images"):
        return math.sqrt(numbers[name] * (1 - numbers[name]) / numbers["test_images"])
    return numbers.get(f"{name}{STANDARD_ERROR}")


NEIGHBORS = 200  # or the whole bank, when it is smaller
STANDARD_ERROR = "_standard_error"  # ends the name of the error of the number of that name
BY_EPOCH = "_by_epoch"  # ends the name of a curve whose last value is the number of that name
KNN, LINEAR, LINEAR_TRAIN = "knn_accuracy_full", "linear_test_accuracy", "linear_train_accuracy"
FIRST = (KNN, LINEAR, LINEAR_TRAIN, "output_std", "rankme", "output_scale")  # what a table begins with
REMARKS = {
    "knn_accuracy": "quick: at most 2,000 test (or validation) and 10,000 train images",
    KNN: "all test images against all it was trained on",
    LINEAR: "last epoch of the probe",
    LINEAR_TRAIN: "last epoch of the probe",
}
# The numbers a verdict is about: of the first group that both sides have, every one that they have
HEADLINES = (
    (KNN, LINEAR), ("bits_per_dim",), ("test_accuracy",), ("validation_accuracy",), ("test_loss",),
    ("validation_loss",), ("loss",),
)  # fmt: skip
LOSSES = {"loss", "test_loss", "validation_loss"}
ACCURACIES = {  # shares; a difference is in percentage points
    KNN: "kNN accuracy", LINEAR: "linear accuracy", "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
}  # fmt: skip
TIMES = {
    "training": "training_seconds",
    "sampling": "sampling_seconds",
    "ancestral sampling": "ancestral_seconds",
}
SPEED = "images_per_second"  # of training
# Times closer than this ratio are not told apart: the machine of docs/scaling.md varies by a fifth in speed,
# so that the same work takes up to 1 / (1 - 1/5) times as long
ALIKE = 1.25
LEVEL = 0.05  # of the tests behind "resolved"
TIMED = {
    "training": 10.0,
    "sampling": 0.0,
    "ancestral sampling": 0.0,
}  # seconds: what is shorter is start-up more than work
OTHER_DATA = {"data", "skip_bad"}  # settings that make accuracies incomparable
OTHER_PIXELS = OTHER_DATA | {"image_size", "channels", "fit"}  # and these bits per dimension


def verdict(arm: ArmRuns, baseline: ArmRuns) -> str:
    """One line: what the arm does to the headline numbers and to the times, and whether it collapsed."""
    if not arm.runs:
        return f"failed: {arm.failures[0]}"
    ours, theirs = arm.numbers(), baseline.numbers()
    shared = ours.keys() & theirs.keys()
    groups = ([name for name in group if name in shared] for group in HEADLINES)
    headlines = next(filter(None, groups), [])
    if arm is baseline:
        texts = [_value(name, ours[name]) for name in headlines]
        parts = ["the baseline" + (": " + ", ".join(texts) if texts else "")]
        return "; ".join([*parts, *_collapse(arm)])
    if not baseline.runs:
        return "; ".join(["the baseline failed: nothing to compare with", *_collapse(arm)])
    parts = [_compare(name, theirs[name], ours[name], arm) for name in headlines] + _collapse(arm)
    if {run.device for run in arm.runs} == {run.device for run in baseline.runs}:
        parts += _paces(arm, baseline)
    return "; ".join(part for part in [*parts, _lengths(arm, baseline)] if part)


def _lengths(arm: ArmRuns, baseline: ArmRuns) -> str:
    """That one of them has trained for fewer epochs, as a time limit does to the slower one."""
    ours, theirs = (statistics.fmean(run.info.epoch for run in side.runs) for side in (arm, baseline))
    return "" if ours == theirs else f"{ours:.4g} epochs against {theirs:.4g}"


def _value(name: str, number: Statistic) -> str:
    if name in ACCURACIES:
        return f"{ACCURACIES[name]} {100 * number.mean:.1f} %"
    return f"{name} {number.mean:.4g}"


def _collapse(arm: ArmRuns) -> list[str]:
    """That outputs ended as one and the same, or in one direction, and in how many of the runs."""
    collapsed = [run for run in arm.runs if run.collapsed]
    if not collapsed:
        return []
    words = {"output_std": "output std", "rankme": "rank", "output_scale": "scale"}
    result = [
        f"{word} {statistics.fmean(values):.2g}"
        for name, word in words.items()
        if (values := [run.findings.numbers[name] for run in collapsed if name in run.findings.numbers])
    ]
    some = f" in {len(collapsed)} of {len(arm.runs)} runs" if len(collapsed) < len(arm.runs) else ""
    return [f"collapsed{some}" + (f": {', '.join(result)}" if result else "")]


def _compare(name: str, before: Statistic, after: Statistic, arm: ArmRuns) -> str:
    share = name in ACCURACIES
    text = _value(name, before) + (f" -> {100 * after.mean:.1f} %" if share else f" -> {after.mean:.4g}")
    if reason := incomparable(name, arm):
        return f"{text} (not comparable: {reason})"
    remarks = []
    if share:
        remarks.append(f"{100 * (after.mean - before.mean):+.1f} percentage points")
    elif before.mean > 0 and after.mean > 0:
        percent = 100 * (after.mean / before.mean - 1)
        remarks.append(f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %")
    remarks.append(_resolution(before, after))
    return f"{text} ({', '.join(remarks)})"


def incomparable(name: str, arm: ArmRuns) -> str:
    """Why a number of an arm does not compare with the baseline's; empty where it does."""
    if name in LOSSES and arm.redefines():
        return "another loss"
    others = OTHER_PIXELS if name == "bits_per_dim" else OTHER_DATA if name in ACCURACIES else set()
    return "other data" if others & arm.arm.changes.keys() else ""


@dataclass(frozen=True)
class Rank:
    """An arm in the order of a metric.

    Attributes:
        arm: its name.
        values: of the metric, one per seed; none where all seeds failed.
        remark: why it is not in the order, if it is not.
    """

    arm: str
    values: list[float]
    remark: str = ""

    def record(self) -> dict[str, Any]:
        """Mean, sample standard deviation (None for one seed), least and greatest value, number of seeds."""
        number = over_seeds(self.values) if self.values else None
        return {
            "arm": self.arm,
            "mean": None if number is None else number.mean,
            "std": None if number is None else number.std,
            "low": min(self.values, default=None),
            "high": max(self.values, default=None),
            "seeds": len(self.values),
            "remark": self.remark,
        }


def metric_of(arms: Sequence[ArmRuns]) -> str | None:
    """The number that arms are ranked by: the first of HEADLINES that every arm has; None: there is none."""
    having = [arm.numbers().keys() for arm in arms if arm.runs]
    names = itertools.chain.from_iterable(HEADLINES)
    return next((name for name in names if having and all(name in known for known in having)), None)


def rank(arms: Sequence[ArmRuns], metric: str) -> list[Rank]:
    """The arms from the best mean over seeds to the worst, then those that do not compare or have failed.

    The first arm is the baseline. Accuracies are better when higher, everything else when lower.
    """
    ranks = [_rank(arm, metric, arm is arms[0]) for arm in arms]
    ranked = [item for item in ranks if not item.remark]
    ranked.sort(key=lambda item: statistics.fmean(item.values), reverse=metric in ACCURACIES)
    return ranked + [item for item in ranks if item.remark]


def _rank(arm: ArmRuns, metric: str, is_baseline: bool) -> Rank:
    values = [run.findings.numbers[metric] for run in arm.runs if metric in run.findings.numbers]
    if not values:
        return Rank(arm.arm.name, [], "failed")
    reason = "" if is_baseline else incomparable(metric, arm)
    return Rank(arm.arm.name, values, f"not comparable: {reason}" if reason else "")


def _resolution(before: Statistic, after: Statistic) -> str:
    """Whether a difference is more than chance, and what says so."""
    resolved = is_resolved(before, after)
    if resolved is None:
        return "not resolved: one seed"
    if before.std is None:
        return "resolved over the test images, one seed" if resolved else "not resolved"
    return "resolved" if resolved else "not resolved"


def is_resolved(before: Statistic, after: Statistic) -> bool | None:
    """Whether two numbers differ at the 5 % level; None where nothing says how far they vary.

    Several seeds on both sides: Welch's t-test. One seed on both sides: a normal test with the standard
    errors over the test images, which says nothing about another seed.
    """
    import scipy.stats

    difference = abs(after.mean - before.mean)
    if before.std is not None and after.std is not None:
        if before.std == after.std == 0:
            return difference > 0
        test = scipy.stats.ttest_ind_from_stats(
            before.mean, before.std, before.runs, after.mean, after.std, after.runs, equal_var=False
        )
        return bool(test.pvalue < LEVEL)
    if before.standard_error is None or after.standard_error is None:
        return None
    error = math.hypot(before.standard_error, after.standard_error)
    return bool(difference > scipy.stats.norm.isf(LEVEL / 2) * error)


def _paces(arm: ArmRuns, baseline: ArmRuns) -> Iterator[str]:
    ours, theirs = arm.numbers(), baseline.numbers()
    shared = ours.keys() & theirs.keys()
    for what, name in TIMES.items():
        if name not in shared or max(ours[name].mean, theirs[name].mean) < TIMED[what]:
            continue
        before, after = theirs[name], ours[name]
        if what == "training" and SPEED in shared and _lengths(arm, baseline):
            # A time limit ends fast and slow arms after the same seconds
            before, after = (_seconds_per_image(side) for side in (baseline, arm))
        yield _pace(what, before, after)


def _seconds_per_image(side: ArmRuns) -> Statistic:
    speeds = [run.findings.numbers[SPEED] for run in side.runs if SPEED in run.findings.numbers]
    return over_seeds([1 / speed for speed in speeds])


def _pace(what: str, before: Statistic, after: Statistic) -> str:
    ratio = max(after.mean, 1e-9) / max(before.mean, 1e-9)
    if 1 / ALIKE < ratio < ALIKE or is_resolved(before, after) is False:
        return f"{what} about as fast"
    return f"{what} {ratio:.2g}x slower" if ratio > 1 else f"{what} {1 / ratio:.2g}x faster"


Records = Sequence[Mapping[str, Any]]  # one per epoch, with the number "epoch" and others


def draw_mean(axis: "Axes", histories: Sequence[Records], name: str, **style: Any) -> None:
    """The mean of `name` over seeds and, for several, a band one standard deviation wide on each side."""
    result: dict[int, list[float]] = {}
    for record in (record for history in histories for record in history):
        if record.get(name) is not None:
            result.setdefault(record["epoch"], []).append(record[name])
    epochs = sorted(result)
    means = [statistics.fmean(result[epoch]) for epoch in epochs]
    # one epoch is a point, which a line without a marker does not show
    axis.plot(epochs, means, **{**style, "marker": style.get("marker", "." if len(epochs) == 1 else None)})
    if len(histories) > 1 and epochs:
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in (result[epoch] for epoch in epochs)]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
