"""Any runs side by side: where their settings differ, their numbers, the curves that they share, samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genssl.eval.outcome import Outcome
from genssl.runtime import choose_device
from genssl.settings import differences
from genssl.states import progress_of
from genssl.studies.arm_figure import draw_study, title_of
from genssl.studies.comparison import origin, shared_notes
from genssl.studies.generated import compare_samples
from genssl.studies.measures import NO_TERMS, measured, unmeasured
from genssl.studies.results import Arm, ArmRuns, Measured
from genssl.train.events import Listener
from genssl.train.run import require_data

SCREENED = {"output_std", "rankme", "knn_accuracy"}  # terms of the history with panels of their own


def compare(folders: Sequence[Path], device: str, listen: Listener, samples: int | None = None) -> Outcome:
    """Measure what is not measured yet, and put the runs side by side.

    Args:
        folders: as from `find_runs`.
        device: where to measure.
        listen: told what happens.
        samples: of each generative run, to measure their quality; None: that is left out.

    Raises:
        UserError: the data of a run that is not measured yet cannot be read; no run is measured then.
    """
    where = choose_device(device)
    require_data(unmeasured(folders, where), listen)
    found = [measured(folder, where, listen) for folder in folders]
    sides = _sides(found)
    values = {
        "runs": [{"name": side.arm.name, **_about(side.runs[0])} for side in sides],
        "differences": _differences(sides),
    }
    title = f"comparison: {title_of(found) or f'{len(found)} runs'}"
    drawn = draw_study(sides, title, _shared_terms(found))
    generated = Outcome({})
    if samples is not None:
        named = {side.arm.name: side.runs[0] for side in sides}
        generated = compare_samples(named, samples, where, listen)
    notes = (*_notes(sides), *generated.notes)
    return Outcome(values | generated.values, {**drawn, **generated.figures}, notes)


def _sides(found: Sequence[Measured]) -> list[ArmRuns]:
    """Each run as an arm, called by its name, or by its path where two have the same one."""
    names = [run.info.name for run in found]
    first = found[0].info.config
    return [
        ArmRuns(
            Arm(
                name if names.count(name) == 1 else str(run.info.folder),
                {key: after for key, (_, after) in differences(first, run.info.config).items()},
            ),
            [run],
        )
        for name, run in zip(names, found, strict=True)
    ]


def _about(run: Measured) -> dict[str, Any]:
    config = run.info.config
    about = {"path": str(run.info.folder), "method": config.method, "data": config.data}
    state = {"epochs": config.epochs, "finished": run.info.state == "finished", "state": run.info.state}
    return about | state | origin(run)


def _differences(sides: Sequence[ArmRuns]) -> list[dict[str, Any]]:
    """A row a setting that all methods have and that is not the same in all runs."""
    configs = {side.arm.name: side.runs[0].info.config.model_dump() for side in sides}
    first = configs[sides[0].arm.name]
    shared = [name for name in first if all(name in config for config in configs.values())]
    rows = [{"setting": name, **{run: config[name] for run, config in configs.items()}} for name in shared]
    return [row for row in rows if any(row[run] != first[row["setting"]] for run in configs)]


def _shared_terms(found: Sequence[Measured]) -> list[str]:
    """The terms that all histories have; none of runs of several methods, whose losses are not the same."""
    if len({run.info.config.method for run in found}) > 1 or not all(run.history for run in found):
        return []
    first, *others = (run.history[-1] for run in found)
    known = NO_TERMS | SCREENED
    return [
        name
        for name in first
        if name not in known and not name.startswith("test_") and all(name in other for other in others)
    ]


def _notes(sides: Sequence[ArmRuns]) -> list[str]:
    found = [side.runs[0] for side in sides]
    notes = [
        f"{run.info.name} is {run.info.state}: "
        f"{progress_of(run.info.epochs_trained, run.info.config.epochs)} epochs"
        for run in found
        if run.info.epoch < run.info.config.epochs
    ]
    notes += shared_notes(found) + _what_differs(sides)
    notes += [side.redefinition(sides[0].arm.name) for side in sides if side.redefines()]
    return [
        *notes,
        "one run a side: a difference may be chance, and `genssl ablate --seeds 3` shows the spread",
    ]


def _what_differs(sides: Sequence[ArmRuns]) -> list[str]:
    """What keeps numbers from being compared, apart from the loss."""
    config = {side.arm.name: side.runs[0].info.config for side in sides}
    found = {side.arm.name: side.runs[0].findings for side in sides}
    data = {name: each.data for name, each in config.items()}
    tested = {name: each.facts.get("test_digest", "") for name, each in found.items()}
    trained = {name: each.facts.get("train_digest", "") for name, each in found.items()}
    images = {name: each.numbers.get("train_images", 0) for name, each in found.items()}
    notes = []
    if len(set(data.values())) > 1:
        notes.append(f"accuracies and losses do not compare across data ({_listed(data)})")
    elif len({each.image_size for each in config.values()}) > 1:
        sizes = {name: f"{each.image_size} pixels" for name, each in config.items()}
        notes.append(f"the images differ in size ({_listed(sizes)}): so do losses, and how hard the task is")
    elif len(set(tested.values())) > 1:
        notes.append("the test images differ, though the data have one name: small differences mean nothing")
    if len(set(images.values())) > 1:
        counts = {name: f"{count:,}" for name, count in images.items()}
        notes.append(f"train images differ in number ({_listed(counts)}): so do neighbours to choose from")
    elif len(set(data.values())) == 1 and len(set(trained.values())) > 1 and not notes:
        notes.append("the train images are others of the same number: another seed chose them")
    epochs = {name: f"{side.runs[0].info.epochs_trained:g}" for name, side in zip(found, sides, strict=True)}
    if len(set(epochs.values())) > 1:
        notes.append(f"epochs differ ({_listed(epochs)})")
    return notes


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
