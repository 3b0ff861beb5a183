"""What trained arms show beside the baseline: a table, figures, a verdict an arm, and what to beware of."""

from collections.abc import Sequence
from typing import Any

from genssl.eval.outcome import Outcome
from genssl.settings import Config
from genssl.states import progress_of
from genssl.studies.arm_figure import draw_changes, draw_study, title_of
from genssl.studies.results import ArmRuns, Measured
from genssl.studies.verdict import verdict

SHORT = 10  # epochs


def compare_arms(baseline: Config, arms: Sequence[ArmRuns]) -> Outcome:
    """The table, the figures and the notes of a study; the first arm is the baseline."""
    values = {
        "method": baseline.method,
        "data": baseline.data,
        "epochs": baseline.epochs,
        "settings": baseline.model_dump(),
        "baseline": arms[0].arm.name,
        "rows": [_row(arm, arms[0]) for arm in arms],
    }
    title = _title(baseline, arms)
    drawn = {**draw_study(arms, title), **draw_changes(arms, title)}
    return Outcome(values, {**drawn}, tuple(_notes(arms)))


def _title(baseline: Config, arms: Sequence[ArmRuns]) -> str:
    runs = next(arm.runs for arm in arms if arm.runs)
    seeds = f", {len(runs)} seeds (bands: one standard deviation)" if len(runs) > 1 else ""
    return f"{baseline.method} on {title_of(runs)}{seeds}"


def _row(arm: ArmRuns, baseline: ArmRuns) -> dict[str, Any]:
    return {
        "arm": arm.arm.name,
        "changes": arm.arm.changes,
        "runs": [origin(run) for run in arm.runs],
        "failures": arm.failures,
        "numbers": {name: vars(number) for name, number in arm.numbers().items()},
        "verdict": verdict(arm, baseline),
    }


def origin(run: Measured) -> dict[str, Any]:
    """Where numbers come from, and the numbers."""
    return {
        "run": run.info.name,
        "seed": run.info.config.seed,
        "epoch": run.info.epochs_trained,
        "weights_sha256": run.info.digest,
        "device": run.device,
        "collapsed": run.collapsed,
        "facts": run.findings.facts,
        "numbers": run.findings.numbers,
    }


def _notes(arms: Sequence[ArmRuns]) -> list[str]:
    runs = [run for arm in arms for run in arm.runs]
    notes = [f"{arm.arm.name} failed, {failure}" for arm in arms for failure in arm.failures]
    notes += [_cut(run) for run in runs if run.info.epoch < run.info.config.epochs]
    notes += shared_notes(runs)
    if all(len(arm.runs) < 2 for arm in arms):
        notes.append("one seed an arm: a difference may be chance; --seeds 3 shows the spread")
    notes += [arm.redefinition("the baseline") for arm in arms if arm.redefines()]
    return notes


def shared_notes(runs: Sequence[Measured]) -> list[str]:
    """What to beware of in the numbers of any runs: short ones, missing accuracies, several devices."""
    notes = []
    shortest = min(run.info.epochs_trained for run in runs)
    if shortest < SHORT:
        length = "1 epoch" if shortest == 1 else f"{shortest:g} epochs"
        notes.append(f"short runs ({length}): longer ones may rank the arms otherwise")
    missing = dict.fromkeys(run.findings.facts.get("no_accuracy") for run in runs)
    notes += [f"no accuracy: {reason}" for reason in missing if reason]
    if len(devices := sorted({run.device for run in runs})) > 1:
        notes.append(f"times do not compare: the runs were trained on {', '.join(devices)}")
    return notes


def _cut(run: Measured) -> str:
    done = progress_of(run.info.epochs_trained, run.info.config.epochs)
    return f"{run.info.name} ended after {done} epochs by its time limit; the same command goes on"
