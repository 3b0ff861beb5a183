"""Runs side by side: settings, curves, numbers and samples."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from genssl import figures, files
from genssl.errors import UserError
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.fidelity import FidelitySettings, fidelity
from genssl.eval.fidelity_features import default_features
from genssl.eval.result import EvalResult
from genssl.eval.sample import sample
from genssl.paths import is_writable_run
from genssl.run_info import RunInfo, progress_of
from genssl.runtime import choose_device, describe
from genssl.settings import Config, differences
from genssl.studies.figures import (
    ImagePanel,
    draw_changes,
    draw_ranking,
    draw_study,
    side_by_side,
    title_of,
)
from genssl.studies.measures import NO_TERMS, Trained, measured, unmeasured
from genssl.studies.results import ACCURACIES, Arm, ArmRuns, Measured, metric_of, rank, verdict
from genssl.training.events import Listener, Note
from genssl.training.splits import require_data

KEPT = Path("eval") / "compare-fidelity.json"  # in a run's folder
GRID = Path("eval") / "compare-samples.png"
SHOWN = 64  # samples in a grid
SCALE = 2
SEED = 0
# Raise it when equal weights draw other samples by default: what was kept before is measured again
SAMPLING_VERSION = 2
REFERENCES = {"train": "training images", "other": "other real images"}  # rows of `fidelity`


@dataclass(frozen=True)
class Quality:
    """What `fidelity` found of one run's samples.

    Attributes:
        values: its values, and how the samples were drawn.
        notes: what a reader needs to know.
        grid: the first samples.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]
    grid: Image.Image

    def number(self, measure: str) -> dict[str, Any]:
        """The row of a measure."""
        return next(row for row in self.values["measures"] if row["measure"] == measure)


def compare_samples(
    runs: Mapping[str, Measured], samples: int, device: torch.device, listen: Listener
) -> EvalResult:
    """Measure as many samples of each generative run, all in the same features, and show their grids.

    Args:
        runs: by the name that they are shown under. Those that do not generate are passed over.
        samples: of each run.
        device: where to measure.
        listen: told what happens.

    Returns:
        "fidelity", one entry a run; nothing where fewer than two generate, and a note where they cannot be
        measured.
    """
    # whatever generates was timed when it was measured
    generative = {name: run for name, run in runs.items() if "sampling_seconds" in run.findings.numbers}
    if len(generative) < 2:
        return EvalResult({})
    sizes = {run.info.config.image_size for run in generative.values()}
    if len(sizes) > 1:
        return EvalResult({}, notes=("the quality of samples does not compare: the images differ in size",))
    try:
        space = default_features(device)
        result = {name: quality(run.info, space, samples, device, listen) for name, run in generative.items()}
    except UserError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        return EvalResult({}, notes=(f"the quality of samples was not measured: {reason}",))
    values = [{"run": name, **item.values} for name, item in result.items()]
    return EvalResult({"fidelity": values}, {"samples": draw_grids(result)}, _sample_notes(result, space))


def quality(
    info: RunInfo, space: FeatureSpace, samples: int, device: torch.device, listen: Listener
) -> Quality:
    """`fidelity` of a run as it samples by default: as kept for these very weights, else measured now."""
    details = {
        "weights_sha256": info.digest,
        "features_digest": space.digest,
        "samples": samples,
        "device": describe(device),
        "sampling_version": SAMPLING_VERSION,
    }
    if (saved := _read_kept(info.folder, details)) is not None:
        return saved
    listen(Note(f"measuring {samples:,} samples of {info.name}"))
    made = _measure(Trained(info.folder, device, listen), space, samples)
    if is_writable_run(info.folder):
        files.sweep((info.folder / KEPT).parent, stem="compare")  # what a killed one left half-written
        files.write_picture(info.folder / GRID, made.grid)
        files.write_json(
            info.folder / KEPT, {"about": details, "values": made.values, "notes": list(made.notes)}
        )
    return made


def _read_kept(folder: Path, details: Mapping[str, Any]) -> Quality | None:
    if not (folder / KEPT).exists() or not (folder / GRID).exists():
        return None
    saved = files.read_record(folder / KEPT)
    values, notes = saved.get("values"), saved.get("notes")
    if saved.get("about") != details or not isinstance(values, dict) or not isinstance(notes, list):
        return None
    return Quality(values, tuple(notes), files.read_picture(folder / GRID))


def _measure(trained: Trained, space: FeatureSpace, samples: int) -> Quality:
    train, test = trained.splits
    real = test.take(2 * samples, SEED)
    settings = FidelitySettings(seed=SEED, device=trained.method.device)
    sampled, images = sample(
        trained.method, samples, seed=SEED, batch_size=settings.batch_size,
        tick=trained.tick("sampling"), options={},
    )  # fmt: skip
    outcome = fidelity(images, real, train, space, settings, trained.tick("comparing samples with images"))
    details = {"data": real.name, "part": real.part, "data_digest": real.digest, "train_digest": train.digest}
    values = {**details, **outcome.values, "sampling": sampled.values}
    return Quality(values, outcome.notes, figures.grid(images[:SHOWN], scale=SCALE))


def draw_grids(result: Mapping[str, Quality]) -> Image.Image:
    """The samples of each run, titled by its name, how they were drawn, and their Frechet distance."""
    panels = []
    for name, item in result.items():
        distance = item.number("frechet_distance")
        references = [
            f"{title} {distance[name]:.4g}" for name, title in REFERENCES.items() if name in distance
        ]
        text = ", ".join([f"Frechet distance {distance['samples']:.4g}", *references])
        panels.append(ImagePanel((name, _how_drawn(item.values["sampling"]), text), item.grid))
    return side_by_side(panels)


def _how_drawn(sampling: Mapping[str, Any]) -> str:
    calls = sampling.get("nfe")
    parts = [sampling.get("sampler"), f"{calls} network calls" if calls else None]
    prior = f"{sampling['prior']} prior" if "prior" in sampling else None
    return ", ".join(part for part in (prior, *parts) if part)


def table(fidelity: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row per metric, a column per run, then real images in the samples' place, once for the same data.

    Args:
        fidelity: as in `compare_samples`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in fidelity:
        groups.setdefault((run["data_digest"], run["train_digest"]), []).append(run)
    lines = []
    for i, row in enumerate(fidelity[0]["measures"]):
        cells = {run["run"]: _cell(run["measures"][i], "samples", "") for run in fidelity}
        for same in groups.values():
            of = "" if len(groups) == 1 else f" of {_joined(same)}"
            for name, title in REFERENCES.items():
                if name in same[0]["measures"][i]:
                    cells[title + of] = _cell(same[0]["measures"][i], name, f"{name}_")
        lines.append({"": row["measure"], **cells, "better": row["better"]})
    return lines


def _joined(runs: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(run["run"] for run in runs)


def _cell(row: Mapping[str, Any], value: str, prefix: str) -> str:
    """A number with its interval."""
    if row[value] is None:
        return "-"
    if row[f"{prefix}low"] is None:
        return f"{row[value]:.4g}"
    return f"{row[value]:.4g} [{row[f'{prefix}low']:.4g}, {row[f'{prefix}high']:.4g}]"


def _sample_notes(result: Mapping[str, Quality], space: FeatureSpace) -> tuple[str, ...]:
    first = next(iter(result.values())).values
    notes = [
        f"sample quality: {first['samples']:,} samples per run (-n takes another number) in the features "
        f"{space.name}, digest {space.digest[:12]}"
    ]
    if len({item.values["data_digest"] for item in result.values()}) > 1:
        data = ", ".join(f"{name}: {item.values['data']}" for name, item in result.items())
        notes.append(
            f"distances to real images do not compare: they are to other images ({data}); compare each with "
            "real images of its own"
        )
    else:
        notes += _rankings(result)
    return (*notes, *dict.fromkeys(note for item in result.values() for note in item.notes))


def _rankings(result: Mapping[str, Quality]) -> Iterator[str]:
    """The runs by their Frechet distance, each beside the next; a verdict only where intervals are apart."""
    rows = {name: item.number("frechet_distance") for name, item in result.items()}
    order = sorted(rows, key=lambda name: rows[name]["samples"])
    for better, worse in itertools.pairwise(order):
        high, low = rows[better].get("high"), rows[worse].get("low")
        if high is not None and low is not None and high < low:
            yield f"Frechet distance: {better} is nearer to real images than {worse} (intervals are apart)"
        else:
            yield f"Frechet distance: {better} and {worse} are not resolved (intervals overlap)"


SHORT = 10  # epochs


def compare_arms(baseline: Config, arms: Sequence[ArmRuns]) -> EvalResult:
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
    if metric := metric_of(arms):
        ranks = rank(arms, metric)
        better = "higher" if metric in ACCURACIES else "lower"
        values["ranking"] = {"metric": metric, "better": better, "arms": [item.record() for item in ranks]}
        drawn |= draw_ranking(arms, ranks, metric, _title(baseline, arms, bands=False))
    return EvalResult(values, {**drawn}, tuple(_arm_notes(arms)))


def _title(baseline: Config, arms: Sequence[ArmRuns], *, bands: bool = True) -> str:
    runs = next(arm.runs for arm in arms if arm.runs)
    drawn = f", {len(runs)} seeds (bands: one standard deviation)"
    seeds = drawn if bands and len(runs) > 1 else ""
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


def _arm_notes(arms: Sequence[ArmRuns]) -> list[str]:
    runs = [run for arm in arms for run in arm.runs]
    notes = [f"{arm.arm.name} failed, {failure}" for arm in arms for failure in arm.failures]
    notes += [_cut(run) for run in runs if run.info.epoch < run.info.config.epochs]
    notes += shared_notes(runs)
    if all(len(arm.runs) < 2 for arm in arms):
        notes.append("one seed per arm: a difference may be chance; --seeds 3 shows the spread")
    notes += [arm.redefinition("the baseline") for arm in arms if arm.redefines()]
    return notes


def shared_notes(runs: Sequence[Measured]) -> list[str]:
    """What to beware of in the numbers of any runs: short ones, missing accuracies, several devices."""
    notes = []
    shortest = min(run.info.epochs_trained for run in runs)
    if shortest < SHORT:
        length = "1 epoch" if shortest == 1 else f"{shortest:g} epochs"
        notes.append(f"short runs ({length}): longer ones may rank the arms otherwise")
    if len({run.info.config.monitor_split for run in runs}) > 1:
        notes.append(
            "what was measured while training (losses, knn_accuracy, output_std, rankme) does not compare: "
            "some of it is of validation images and some of test images"
        )
    missing = dict.fromkeys(run.findings.facts.get("no_accuracy") for run in runs)
    notes += [f"no accuracy: {reason}" for reason in missing if reason]
    if len(devices := sorted({run.device for run in runs})) > 1:
        notes.append(f"times do not compare: the runs were trained on {', '.join(devices)}")
    return notes


def _cut(run: Measured) -> str:
    done = progress_of(run.info.epochs_trained, run.info.config.epochs)
    return f"{run.info.name} ended after {done} epochs by its time limit; the same command goes on"


def compare(folders: Sequence[Path], device: str, listen: Listener, samples: int | None = None) -> EvalResult:
    """Measure what is not measured yet, and put the runs side by side.

    Args:
        folders: as from `runs.find_several`.
        device: where to measure.
        listen: told what happens.
        samples: of each generative run, to measure their quality; None: that is left out.

    Raises:
        UserError: the data of a run that is not measured yet cannot be read; no run is measured then.
    """
    where = choose_device(device)
    require_data(unmeasured(folders, where), listen)
    result = [measured(folder, where, listen) for folder in folders]
    sides = _sides(result)
    values = {
        "runs": [{"name": side.arm.name, **_about(side.runs[0])} for side in sides],
        "differences": _differences(sides),
    }
    title = f"comparison: {title_of(result) or f'{len(result)} runs'}"
    drawn = draw_study(sides, title, _shared_terms(result))
    generated = EvalResult({})
    if samples is not None:
        named = {side.arm.name: side.runs[0] for side in sides}
        generated = compare_samples(named, samples, where, listen)
    notes = (*_notes(sides), *generated.notes)
    return EvalResult(values | generated.values, {**drawn, **generated.figures}, notes)


def _sides(result: Sequence[Measured]) -> list[ArmRuns]:
    """Each run as an arm, called by its name, or by its path where two have the same one."""
    names = [run.info.name for run in result]
    first = result[0].info.config
    return [
        ArmRuns(
            Arm(
                name if names.count(name) == 1 else str(run.info.folder),
                {key: after for key, (_, after) in differences(first, run.info.config).items()},
            ),
            [run],
        )
        for name, run in zip(names, result, strict=True)
    ]


def _about(run: Measured) -> dict[str, Any]:
    config = run.info.config
    details = {"path": str(run.info.folder), "method": config.method, "data": config.data}
    state = {"epochs": config.epochs, "finished": run.info.state == "finished", "state": run.info.state}
    return details | state | origin(run)


def _differences(sides: Sequence[ArmRuns]) -> list[dict[str, Any]]:
    """A row per setting that all methods have and that is not the same in all runs."""
    configs = {side.arm.name: side.runs[0].info.config.model_dump() for side in sides}
    first = configs[sides[0].arm.name]
    shared = [name for name in first if all(name in config for config in configs.values())]
    rows = [{"setting": name, **{run: config[name] for run, config in configs.items()}} for name in shared]
    return [row for row in rows if any(row[run] != first[row["setting"]] for run in configs)]


def _shared_terms(result: Sequence[Measured]) -> list[str]:
    """The terms that all histories have; none of runs of several methods, whose losses are not the same."""
    if len({run.info.config.method for run in result}) > 1 or not all(run.history for run in result):
        return []
    first, *others = (run.history[-1] for run in result)
    known = NO_TERMS | figures.HELD_OUT  # which have panels of their own
    return [
        name
        for name in first
        if name not in known
        and not name.startswith(("test_", "validation_"))
        and all(name in other for other in others)
    ]


def _notes(sides: Sequence[ArmRuns]) -> list[str]:
    result = [side.runs[0] for side in sides]
    notes = [
        f"{run.info.name} is {run.info.state}: "
        f"{progress_of(run.info.epochs_trained, run.info.config.epochs)} epochs"
        for run in result
        if run.info.epoch < run.info.config.epochs
    ]
    notes += shared_notes(result) + _what_differs(sides)
    notes += [side.redefinition(sides[0].arm.name) for side in sides if side.redefines()]
    return [
        *notes,
        "one run per side: a difference may be chance, and `genssl ablate --seeds 3` shows the spread",
    ]


def _what_differs(sides: Sequence[ArmRuns]) -> list[str]:
    """What keeps numbers from being compared, apart from the loss."""
    config = {side.arm.name: side.runs[0].info.config for side in sides}
    result = {side.arm.name: side.runs[0].findings for side in sides}
    data = {name: item.data for name, item in config.items()}
    tested = {name: item.facts.get("test_digest", "") for name, item in result.items()}
    trained = {name: item.facts.get("train_digest", "") for name, item in result.items()}
    images = {name: item.numbers.get("train_images", 0) for name, item in result.items()}
    notes = []
    if len(set(data.values())) > 1:
        notes.append(f"accuracies and losses do not compare across data ({_listed(data)})")
    elif len({item.image_size for item in config.values()}) > 1:
        sizes = {name: f"{item.image_size} pixels" for name, item in config.items()}
        notes.append(f"the images differ in size ({_listed(sizes)}): so do losses, and how hard the task is")
    elif len(set(tested.values())) > 1:
        notes.append("the test images differ, though the data have one name: small differences mean nothing")
    if len(set(images.values())) > 1:
        counts = {name: f"{count:,}" for name, count in images.items()}
        notes.append(f"train images differ in number ({_listed(counts)}): so do neighbors to choose from")
    elif len(set(data.values())) == 1 and len(set(trained.values())) > 1 and not notes:
        notes.append("the train images are others of the same number: another seed chose them")
    epochs = {name: f"{side.runs[0].info.epochs_trained:g}" for name, side in zip(result, sides, strict=True)}
    if len(set(epochs.values())) > 1:
        notes.append(f"epochs differ ({_listed(epochs)})")
    return notes


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
