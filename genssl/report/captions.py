"""What a report says beside a figure: the command that made it, and what was measured."""

import os
import shlex
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genssl import run_info
from genssl.paths import runs_root
from genssl.report import format
from genssl.report.format import data_label, number, percent, seconds, text
from genssl.report.load import Contents, Run, Study, ranked
from genssl.run_info import parameters_text, progress_of

TRAIN = "train {} --epochs 70"
EVALUATE = {
    "sample": "sample {} -n 64",
    "latent-profile": "latent-profile {}",
    "interpolate": "interpolate {}",
    "noise-levels": "reconstruct {} --sweep 16:256:16",
    "reconstruct": "reconstruct {}",
    "importance-ll": "importance-ll {}",
    "bits-per-dim": "bits-per-dim {}",
    "knn-eval": "knn-eval {}",
    "linear-eval": "linear-eval {}",
    "fidelity": "fidelity {}",
}
OPTIONS = {"timesteps": "--timesteps", "predictor": "--predictor", "projector_dim": "--proj-dim"}
SWITCHES = {"stop_gradient": "--no-stopgrad", "naive": "--naive"}


def kind_of(name: str) -> str:
    """The evaluation that a file is of: fidelity of fidelity-ddim-50."""
    kinds = [kind for kind in EVALUATE if name == kind or name.startswith(f"{kind}-")]
    return max(kinds, key=len, default=name)


def recorded(values: Mapping[str, Any]) -> str:
    """The command that the numbers say has made them; empty in older files."""
    command = values.get("command")
    return command if isinstance(command, str) else ""


def relative(command: str, folder: Path) -> str:
    """The command with its absolute paths made relative to a folder, from which it does the same."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # what a person wrote by hand
        return command
    shown = [_relative(argument, folder) for argument in arguments]
    return command if shown == arguments else shlex.join(shown)


def _relative(argument: str, folder: Path) -> str:
    option = "=" in argument and not os.path.isabs(argument)
    name, equals, value = argument.partition("=") if option else ("", "", argument)
    if not os.path.isabs(value):
        return argument
    try:
        return f"{name}{equals}{Path(os.path.relpath(os.path.realpath(value), folder)).as_posix()}"
    except ValueError:  # another drive
        return argument


def reference(run: Run) -> str:
    """A REF that means this run."""
    return shlex.quote(run.name if run.folder.parent == runs_root() else str(run.folder))


def evaluation(run: Run, name: str) -> str:
    """The usual command of an evaluation; empty for one that this version does not know."""
    pattern = EVALUATE.get(kind_of(name))
    if pattern is None:
        return ""
    level = name.removeprefix("reconstruct-")
    noised = f" --t-prime {level}" if level != name and level.isdigit() else ""
    return f"genssl {pattern.format(reference(run))}{noised}"


def missing(contents: Contents, method: str, name: str | None) -> list[str]:
    """What makes a picture that is not there: training, if need be, and the evaluation if it is one's."""
    current = ranked(contents.runs, method)
    if not current:
        patterns = [TRAIN, EVALUATE[name]] if name else [TRAIN]
        return [f"{_genssl(contents)} {pattern.format(method)}" for pattern in patterns]
    run = current[0]
    if run.state == "unfinished":
        resume = f"genssl train --resume {reference(run)}"
        return [resume, evaluation(run, name)] if name else [resume]
    return [evaluation(run, name) if name else f"{_genssl(contents)} {TRAIN.format(method)}"]


def ablation(contents: Contents, method: str, change: Mapping[str, Any]) -> str:
    """The command of a study of one change."""
    return " ".join([_genssl(contents), "ablate", method, *map(_option, change.items())])


def study(made: Study) -> str:
    """The usual command of a study; empty where its numbers do not tell what it was of."""
    if made.kind == "compare":
        sides = made.values.get("runs")
        names = (
            [side.get("name") for side in sides if isinstance(side, dict)] if isinstance(sides, list) else []
        )
        return shlex.join(["genssl", "compare", *map(str, names)]) if names else ""
    rows, method = made.values.get("rows"), made.values.get("method")
    if not isinstance(rows, list) or not isinstance(method, str):
        return ""
    changes = [row.get("changes") for row in rows if isinstance(row, dict)]
    options = [" ".join(map(_option, item.items())) for item in changes if isinstance(item, dict) and item]
    return " ".join(["genssl ablate", shlex.quote(method), *options])


def _option(change: tuple[str, Any]) -> str:
    name, value = change
    if name in SWITCHES:
        return SWITCHES[name]
    if name in OPTIONS:
        return f"{OPTIONS[name]} {shlex.quote(str(value))}"
    return f"--set {shlex.quote(f'{name}={value}')}"


def _genssl(contents: Contents) -> str:
    """The program, told to put new runs where the page looks for them."""
    if len(contents.folders) != 1 or contents.folders[0] == runs_root():
        return "genssl"
    return f"genssl --checkpoints {shlex.quote(str(contents.folders[0]))}"


Values = Mapping[str, Any]
Pair = tuple[str, str]
Shown = Callable[[Values], str]
PROVENANCE = {"command", "run", "method", "epoch", "weights_sha256", "device", "data", "part", "data_digest"}
MOST = 6  # numbers of an evaluation that is not known here


def at(name: str, show: Callable[[Any], str] = text, *, old: str = "") -> Shown:
    """Shows the value of a name, or of its `old` name in results of version 0.1."""
    return lambda values: show(values.get(name, values.get(old)))


def _with_error(name: str, error: str) -> Shown:
    return lambda values: " ".join(format.with_error(values.get(name), values.get(error))).strip()


def _accuracy(values: Values) -> str:
    return " ".join(
        format.with_error(values.get("accuracy"), values.get("standard_error"), percent, 100)
    ).strip()


def _lost_at(name: str) -> Shown:
    """t*: the level at which half of the images are lost, with its interval."""

    def shown(values: Values) -> str:
        half = values.get(name)
        if not isinstance(half, dict):
            return format.NONE
        if half.get("level") is None:
            return "not reached"
        level, between = format.with_interval(half["level"], half.get("low"), half.get("high"))
        return f"{level} ({between})" if between else number(half["level"], 3)

    return shown


def _units(values: Values) -> str:
    active, of = number(values.get("active_units")), number(values.get("z_dim"))
    return f"{active} of {of}" if active != format.NONE else format.NONE


def _listed(value: Any) -> str:
    return ", ".join(map(number, value)) if isinstance(value, list) else format.NONE


def _measure(name: str, show: Callable[[Any], str] = number) -> Shown:
    """A measure of fidelity beside its floor."""

    def shown(values: Values) -> str:
        rows = values.get("measures")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("measure") == name:
                scale = 100 if show is percent else 1
                ends = (row.get("low"), row.get("high"))
                value, between = format.with_interval(row.get("samples"), *ends, show, scale)
                return ", ".join(filter(None, [value, between, f"floor {show(row.get('floor'))}"]))
        return format.NONE

    return shown


SHOWN: dict[str, dict[str, Shown]] = {
    "sample": {
        "images": at("images"),
        "prior": at("prior"),
        "sampler": at("sampler"),
        "network calls per image": at("nfe", old="network_calls_an_image"),
        "sampling time": at("seconds", seconds),
        "sharpness": at("sharpness"),
        "sharpness of the training images": at("train_sharpness"),
        "seed": at("seed"),
    },
    "latent-profile": {
        "images": at("images"),
        "active units": _units,
        "most discriminative dimensions": at(
            "most_discriminative_dims", _listed, old="most_telling_dimensions"
        ),
    },
    "interpolate": {
        "paths": at("rows"),
        "images a path": at("steps"),
        "path": at("path"),
        "way": at("way"),
        "ends": at("ends"),
        "mean step (RMSE)": at("mean_step_rmse"),
        "largest / mean step": at("largest_to_mean_step"),
    },
    "noise-levels": {
        "t*, by pixels": _lost_at("t_star_pixels"),
        "t*, by features": _lost_at("t_star_features"),
        "images a level": at("queries"),
        "sampler of the curves": at("sampler"),
        "identity by chance": at("identity_chance", percent),
        "time": at("seconds", seconds),
    },
    "reconstruct": {
        "images": at("images"),
        "noised by t'": at("t_prime"),
        "mean squared error": at("mse"),
        "PSNR (dB)": at("psnr_db"),
        "PSNR when noised (dB)": at("noised_psnr_db"),
        "sampler": at("sampler"),
    },
    "importance-ll": {
        "log p(x) (nats)": _with_error("log_p_nats", "standard_error_nats"),
        "bits/dim": at("bits_per_dim"),
        "importance samples an image": at("k"),
        "images": at("images"),
    },
    "bits-per-dim": {
        "bits/dim, at most": _with_error("bits_per_dim", "standard_error"),
        "images": at("images"),
        "evaluations an image": at("evaluations_per_image"),
    },
    "knn-eval": {"accuracy": _accuracy, "train images": at("train_images"), "test images": at("test_images")},
    "linear-eval": {
        "accuracy": _accuracy,
        "accuracy on train images": at("train_accuracy", percent),
        "train images": at("train_images"),
        "test images": at("test_images"),
    },
    "fidelity": {
        "Frechet distance": _measure("frechet_distance"),
        "precision": _measure("precision", percent),
        "recall": _measure("recall", percent),
        "samples": at("samples"),
        "features": at("features"),
    },
}


def of_evaluation(name: str, values: Values) -> list[Pair]:
    """Its main numbers, and what they were measured on."""
    shown = SHOWN.get(kind_of(name)) or {format.of_name(item): at(item) for item in _scalars(values)}
    pairs = [(label, show(values)) for label, show in shown.items()]
    return [pair for pair in [*pairs, *_where(values)] if pair[1] != format.NONE]


def of_training(run: Run) -> list[Pair]:
    """How long it took, on what."""
    pairs = [
        ("epochs", epochs(run)),
        ("training time", training_time(run)),
        ("images a second", images_a_second(run)),
        ("data", data_label(run.data)),
        ("held out", held_out(run)),
        ("device", text(run.origin.get("device"))),
    ]
    return [pair for pair in pairs if pair[1] != format.NONE]


def epochs(run: Run) -> str:
    """How many were trained, of how many."""
    done, planned = run.epochs, run.config.get("epochs")
    if done is None or not isinstance(planned, int):
        return number(done)
    return progress_of(done, planned)


def training_time(run: Run) -> str:
    """Of the whole training."""
    return seconds(run.history[-1].get("seconds")) if run.history else format.NONE


def images_a_second(run: Run) -> str:
    """The median over epochs."""
    speeds = [record.get("images_per_second") for record in run.history]
    known: list[Any] = [speed for speed in speeds if format.is_number(speed)]
    return f"{statistics.median(known):,.0f}" if known else format.NONE


def accuracy_at_the_end(run: Run) -> str:
    """Of nearest neighbors in the features, beside what needs no training."""
    metrics = run.weights.metrics if run.weights is not None else {}
    names = ("knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels")
    current, untrained, pixels = (percent(metrics.get(name)) for name in names)
    if format.NONE in {current, untrained, pixels}:
        return format.NONE
    images = ", validation images" if metrics.get("split") == "validation" else ""
    return f"{current} (untrained encoder {untrained}, raw pixels {pixels}{images})"


def parameters(run: Run) -> str:
    """How many are trained, and how many there are where some are not."""
    recorded = run.weights.training if run.weights is not None else {}
    trained, total = recorded.get("parameters"), recorded.get("all_parameters")
    if not isinstance(trained, int) or not isinstance(total, int):
        return format.NONE
    return parameters_text(trained, total)


def train_images(run: Run) -> str:
    """How many images it was trained on: as its weights record, or as any number of an older run does."""
    recorded = run.weights.training.get("images") if run.weights is not None else None
    if format.is_number(recorded):
        return number(recorded)
    saved = run.evaluations.get("ablate", {}).get("measures")
    message = [saved.get("data") if isinstance(saved, dict) else None]
    message += [values for name, values in run.evaluations.items() if kind_of(name) == "fidelity"]
    for item in message:
        if isinstance(item, dict) and format.is_number(item.get("train_images")):
            return number(item["train_images"])
    limit = run.config.get("limit")
    return f"at most {number(limit)}" if format.is_number(limit) else format.NONE


def held_out(run: Run) -> str:
    """The share of the train images that it was validated on instead, and their number."""
    share = run.config.get("holdout", 0)
    training = run.weights.training if run.weights is not None else {}
    return (run_info.held_out(share, training) if format.is_number(share) else None) or format.NONE


def training_notes(run: Run) -> list[str]:
    """What the end of its training showed."""
    notes = run.weights.training.get("notes") if run.weights is not None else None
    return [f"{run.name}: {note}" for note in notes] if isinstance(notes, list) else []


def notes_of(run: Run, values: Values) -> list[str]:
    """What the numbers say of themselves, and whether they are of the weights that the run holds now."""
    current = values.get("notes")
    notes = [note for note in current if isinstance(note, str)] if isinstance(current, list) else []
    digest = values.get("weights_sha256")
    if run.weights is not None and isinstance(digest, str) and digest != run.weights.digest:
        at_epoch = f", of epoch {number(values['epoch'])}" if "epoch" in values else ""
        notes.insert(0, f"{run.name}: measured on other weights than it holds now{at_epoch}; measure again")
    return notes


def _where(values: Values) -> list[Pair]:
    split = f", {values['part']} split" if isinstance(values.get("part"), str) else ""
    data = data_label(values.get("data"))
    message = f"{data}{split}" if data != format.NONE else format.NONE
    return [("data", message), ("device", text(values.get("device")))]


def _scalars(values: Values) -> list[str]:
    names = [name for name, value in values.items() if format.is_number(value) and name not in PROVENANCE]
    return names[:MOST]
