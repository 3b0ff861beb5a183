"""The figures of a study: which there are, what they are called, and the one of generative arms."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genssl import figures
from genssl.data.known import short_name
from genssl.states import progress_of
from genssl.studies.measures import SAMPLES
from genssl.studies.representation_figure import draw_representations, has_outputs
from genssl.studies.results import ArmRuns, Measured
from genssl.studies.series import draw_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TERMS = ("loss",)  # of the history, drawn over epochs; test_<term> joins its panel
BARS = (
    "bits_per_dim",
    "training_seconds",
    "sampling_seconds",
    "ancestral_seconds",
)  # numbers drawn as bars, where an arm has them
MOST_COLUMNS = 5
LONGEST_NAME = 60  # characters of a figure's


def draw_study(arms: Sequence[ArmRuns], title: str, terms: Sequence[str] = TERMS) -> "dict[str, Figure]":
    """All arms in one figure; where several changes are made to a self-supervised method, also one a change.

    A colour means the same arm in all of them. The first arm is the baseline.
    """
    done = [arm for arm in arms if arm.runs]
    colours = {arm.arm.name: f"C{place}" for place, arm in enumerate(arms)}
    if sum(has_outputs(arm) for arm in done) < min(2, len(done)):  # nothing to lay side by side
        return {"study": _draw_arms(done, title, colours, terms)}
    return {"study": draw_representations(done, title, colours, terms)}


def draw_changes(arms: Sequence[ArmRuns], title: str) -> "dict[str, Figure]":
    """The baseline beside each arm of a self-supervised method alone, by the arm's name; of several arms."""
    baseline, *changed = arms
    if len(changed) < 2 or not baseline.runs or not has_outputs(baseline):
        return {}
    colours = {arm.arm.name: f"C{place}" for place, arm in enumerate(arms)}
    return {
        _file_name(arm.arm.name): draw_representations([baseline, arm], title, colours, TERMS)
        for arm in changed
        if arm.runs
    }


def title_of(runs: Sequence[Measured]) -> str:
    """What all of some runs have in common: data, how many images, encoder, epochs."""
    described = [_describe(run) for run in runs]
    names = dict.fromkeys(name for each in described for name in each)
    values = [{each.get(name) for each in described} for name in names]
    return ", ".join(str(found.pop()) for found in values if len(found) == 1)


def _describe(run: Measured) -> dict[str, str]:
    config, images = run.info.config, run.findings.numbers.get("train_images")
    found = {"data": short_name(config.data)}
    if images is not None:
        found["images"] = f"{images:,} images"
    if hasattr(config, "encoder"):
        found["encoder"] = f"encoder {config.encoder}"
    epochs = progress_of(run.info.epochs_trained, config.epochs)
    found["epochs"] = f"{epochs} epoch{'s' if config.epochs != 1 else ''}"
    return found


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name)[:LONGEST_NAME].strip("-.")


def _draw_arms(
    arms: Sequence[ArmRuns], title: str, colours: Mapping[str, str], terms: Sequence[str]
) -> "Figure":
    """One panel a curve, one a bar chart, then one a grid of samples, titled by its arm."""
    curves = [name for name in terms if any(name in run.history[-1] for run in _with_history(arms))]
    bars = [name for name in BARS if any(name in arm.numbers() for arm in arms)]
    grids = [arm for arm in arms if (arm.runs[0].info.folder / SAMPLES).exists()]
    columns = min(MOST_COLUMNS, max(2, len(curves) + len(bars), len(grids)))
    top = math.ceil((len(curves) + len(bars)) / columns)
    figure, axes = figures.new_figure(max(1, top + math.ceil(len(grids) / columns)), columns, 4.0, 3.4)
    for axis in axes:
        axis.set_visible(False)  # those that are drawn on show themselves
    for axis, name in zip(axes, curves, strict=False):
        _draw_curves(axis, arms, name, colours)
    for axis, name in zip(axes[len(curves) :], bars, strict=False):
        _draw_bars(axis, arms, name, colours)
    for axis, arm in zip(axes[top * columns :], grids, strict=False):
        _draw_samples(axis, arm)
    figure.suptitle(title)
    return figure


def _with_history(arms: Sequence[ArmRuns]) -> list[Measured]:
    return [run for arm in arms for run in arm.runs if run.history]


def _draw_curves(axis: "Axes", arms: Sequence[ArmRuns], name: str, colours: Mapping[str, str]) -> None:
    for arm in arms:
        histories, colour = [run.history for run in arm.runs], colours[arm.arm.name]
        draw_mean(axis, histories, name, color=colour, linestyle="--", alpha=0.6)
        draw_mean(axis, histories, f"test_{name}", color=colour, marker=".")
        axis.plot([], [], color=colour, label=arm.arm.name)
    axis.set(xlabel="epoch", title=f"{name.replace('_', ' ')} (dashed: train, solid: test)", visible=True)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8)


def _draw_bars(axis: "Axes", arms: Sequence[ArmRuns], name: str, colours: Mapping[str, str]) -> None:
    for place, arm in enumerate(arms):
        number = arm.numbers().get(name)
        if number is not None:
            axis.bar(place, number.mean, yerr=number.std, color=colours[arm.arm.name], width=0.6, capsize=3)
    axis.set_xticks(range(len(arms)), [_broken(arm.arm.name) for arm in arms], fontsize=8)
    axis.set(title=name.replace("_", " "), visible=True)
    axis.grid(visible=False, axis="x")


def _draw_samples(axis: "Axes", arm: ArmRuns) -> None:
    from PIL import Image

    with Image.open(arm.runs[0].info.folder / SAMPLES) as picture:
        axis.imshow(picture.convert("RGB"), interpolation="nearest")
    axis.set(title=arm.arm.name, visible=True)
    axis.set_axis_off()


def _broken(name: str) -> str:
    """A long name over several lines."""
    return name.replace(", ", "\n").replace(" (", "\n(")
