"""The few numbers that belong beside a figure."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from genssl.report import words
from genssl.report.commands import kind_of
from genssl.report.disk import Run
from genssl.report.words import data_label, number, percent, seconds, text
from genssl.states import progress_of

Values = Mapping[str, Any]
Pair = tuple[str, str]
Shown = Callable[[Values], str]

PROVENANCE = {"command", "run", "method", "epoch", "weights_sha256", "device", "data", "part", "data_digest"}
MOST = 6  # numbers of an evaluation that is not known here


def at(name: str, show: Callable[[Any], str] = text) -> Shown:
    """Shows the value of a name."""
    return lambda values: show(values.get(name))


def _with_error(name: str, error: str) -> Shown:
    return lambda values: " ".join(words.with_error(values.get(name), values.get(error))).strip()


def _accuracy(values: Values) -> str:
    return " ".join(
        words.with_error(values.get("accuracy"), values.get("standard_error"), percent, 100)
    ).strip()


def _lost_at(name: str) -> Shown:
    """t*: the level at which half of the images are lost, with its interval."""

    def shown(values: Values) -> str:
        half = values.get(name)
        if not isinstance(half, dict):
            return words.NONE
        if half.get("level") is None:
            return "not reached"
        level, between = words.with_interval(half["level"], half.get("low"), half.get("high"))
        return f"{level} ({between})" if between else number(half["level"], 3)

    return shown


def _units(values: Values) -> str:
    active, of = number(values.get("active_units")), number(values.get("z_dim"))
    return f"{active} of {of}" if active != words.NONE else words.NONE


def _listed(value: Any) -> str:
    return ", ".join(map(number, value)) if isinstance(value, list) else words.NONE


def _measure(name: str, show: Callable[[Any], str] = number) -> Shown:
    """A measure of fidelity beside its floor."""

    def shown(values: Values) -> str:
        rows = values.get("measures")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("measure") == name:
                scale = 100 if show is percent else 1
                ends = (row.get("low"), row.get("high"))
                value, between = words.with_interval(row.get("samples"), *ends, show, scale)
                return ", ".join(filter(None, [value, between, f"floor {show(row.get('floor'))}"]))
        return words.NONE

    return shown


SHOWN: dict[str, dict[str, Shown]] = {
    "sample": {
        "images": at("images"),
        "prior": at("prior"),
        "sampler": at("sampler"),
        "network calls an image": at("network_calls_an_image"),
        "sampling time": at("seconds", seconds),
        "sharpness": at("sharpness"),
        "sharpness of the training images": at("train_sharpness"),
        "seed": at("seed"),
    },
    "latent-profile": {
        "images": at("images"),
        "active units": _units,
        "most telling dimensions": at("most_telling_dimensions", _listed),
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
    shown = SHOWN.get(kind_of(name)) or {words.of_name(each): at(each) for each in _scalars(values)}
    pairs = [(label, show(values)) for label, show in shown.items()]
    return [pair for pair in [*pairs, *_where(values)] if pair[1] != words.NONE]


def of_training(run: Run) -> list[Pair]:
    """How long it took, on what."""
    pairs = [
        ("epochs", epochs(run)),
        ("training time", training_time(run)),
        ("kNN accuracy at the end", accuracy_at_the_end(run)),
        ("images a second", images_a_second(run)),
        ("data", data_label(run.data)),
        ("device", text(run.origin.get("device"))),
    ]
    return [pair for pair in pairs if pair[1] != words.NONE]


def epochs(run: Run) -> str:
    """How many were trained, of how many."""
    done, planned = run.epochs, run.config.get("epochs")
    if done is None or not isinstance(planned, int):
        return number(done)
    return progress_of(done, planned)


def training_time(run: Run) -> str:
    """Of the whole training."""
    return seconds(run.history[-1].get("seconds")) if run.history else words.NONE


def images_a_second(run: Run) -> str:
    """The median over epochs."""
    speeds = [record.get("images_per_second") for record in run.history]
    known: list[Any] = [speed for speed in speeds if words.is_number(speed)]
    return f"{statistics.median(known):,.0f}" if known else words.NONE


def accuracy_at_the_end(run: Run) -> str:
    """Of nearest neighbours in the features, beside what needs no training."""
    metrics = run.weights.metrics if run.weights is not None else {}
    names = ("knn_accuracy", "knn_accuracy_untrained", "knn_accuracy_pixels")
    own, untrained, pixels = (percent(metrics.get(name)) for name in names)
    if words.NONE in {own, untrained, pixels}:
        return words.NONE
    return f"{own} (untrained encoder {untrained}, raw pixels {pixels})"


def train_images(run: Run) -> str:
    """How many images it learnt from, where any of its numbers tells."""
    kept = run.evaluations.get("ablate", {}).get("measures")
    told = [kept.get("data") if isinstance(kept, dict) else None]
    told += [values for name, values in run.evaluations.items() if kind_of(name) == "fidelity"]
    for each in told:
        if isinstance(each, dict) and words.is_number(each.get("train_images")):
            return number(each["train_images"])
    limit = run.config.get("limit")
    return f"at most {number(limit)}" if words.is_number(limit) else words.NONE


def notes_of(run: Run, values: Values) -> list[str]:
    """What the numbers say of themselves, and whether they are of the weights that the run holds now."""
    own = values.get("notes")
    notes = [note for note in own if isinstance(note, str)] if isinstance(own, list) else []
    digest = values.get("weights_sha256")
    if run.weights is not None and isinstance(digest, str) and digest != run.weights.digest:
        at_epoch = f", of epoch {number(values['epoch'])}" if "epoch" in values else ""
        notes.insert(0, f"{run.name}: measured on other weights than it holds now{at_epoch}; measure again")
    return notes


def _where(values: Values) -> list[Pair]:
    split = f", {values['part']} split" if isinstance(values.get("part"), str) else ""
    data = data_label(values.get("data"))
    told = f"{data}{split}" if data != words.NONE else words.NONE
    return [("data", told), ("device", text(values.get("device")))]


def _scalars(values: Values) -> list[str]:
    names = [name for name, value in values.items() if words.is_number(value) and name not in PROVENANCE]
    return names[:MOST]
