"""One line on what an arm does beside the baseline, computed from the numbers of both."""

import math
import statistics

from genssl.studies.representations import KNN, LINEAR
from genssl.studies.results import ArmRuns, Number

# The numbers a verdict is about: of the first group that both sides have, every one that they have
HEADLINES = ((KNN, LINEAR), ("bits_per_dim",), ("test_loss",), ("loss",))
ACCURACIES = {KNN: "kNN accuracy", LINEAR: "linear accuracy"}  # shares; a difference is in percentage points
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
OTHER_DATA = {"data", "skip_bad"}  # settings that make accuracies incomparable


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
        parts += [_pace(what, theirs[name], ours[name]) for what, name in TIMES.items() if name in shared]
    return "; ".join(part for part in parts if part)


def _value(name: str, number: Number) -> str:
    if name in ACCURACIES:
        return f"{ACCURACIES[name]} {100 * number.mean:.1f} %"
    return f"{name} {number.mean:.4g}"


def _collapse(arm: ArmRuns) -> list[str]:
    """That outputs ended as one and the same, or in one direction, and in how many of the runs."""
    collapsed = [run for run in arm.runs if run.collapsed]
    if not collapsed:
        return []
    words = {"output_std": "output std", "rankme": "rank"}
    found = [
        f"{word} {statistics.fmean(values):.2g}"
        for name, word in words.items()
        if (values := [run.findings.numbers[name] for run in collapsed if name in run.findings.numbers])
    ]
    some = f" in {len(collapsed)} of {len(arm.runs)} runs" if len(collapsed) < len(arm.runs) else ""
    return [f"collapsed{some}" + (f": {', '.join(found)}" if found else "")]


def _compare(name: str, before: Number, after: Number, arm: ArmRuns) -> str:
    share = name in ACCURACIES
    text = _value(name, before) + (f" -> {100 * after.mean:.1f} %" if share else f" -> {after.mean:.4g}")
    if name in {"loss", "test_loss"} and arm.redefines():
        return f"{text} (not comparable: another loss)"
    if share and OTHER_DATA & arm.arm.changes.keys():
        return f"{text} (not comparable: other data)"
    remarks = []
    if share:
        remarks.append(f"{100 * (after.mean - before.mean):+.1f} percentage points")
    elif before.mean > 0 and after.mean > 0:
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
