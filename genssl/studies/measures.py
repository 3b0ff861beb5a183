"""What a study measures of a trained run; kept beside it."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genssl import checkpoint, figures, files, run_info
from genssl.data.loader import place
from genssl.data.registry import locate
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.eval.bits_per_dim import bits_per_dim
from genssl.eval.feature_cache import extract_features, require_labels
from genssl.eval.sample import draw_samples
from genssl.metrics.knn import knn_predict
from genssl.metrics.linear_probe import linear_probe
from genssl.models.ddpm import DDPM
from genssl.models.method import CanSample, Method
from genssl.paths import is_writable_run
from genssl.pixels import to_model
from genssl.run_info import RunInfo
from genssl.runtime import describe, measuring
from genssl.settings import BOOKKEEPING, Config
from genssl.studies.results import (
    BY_EPOCH,
    KNN,
    LINEAR,
    LINEAR_TRAIN,
    NEIGHBORS,
    STANDARD_ERROR,
    Findings,
    Measured,
)
from genssl.training.events import Listener, Loading, Note
from genssl.training.splits import load_splits

if TYPE_CHECKING:
    from PIL.Image import Image

ENCODED = 256  # images at a time


class Trained:
    """A trained run, opened to be measured. What several measures need is made once, when it is asked for.

    Attributes:
        folder: the run's, for pictures.
        method: in eval mode, on the device.
        device: where to measure.
    """

    def __init__(self, folder: Path, device: torch.device, listen: Listener) -> None:
        self.folder, self.device, self._listen = folder, device, listen
        self.method: Method = checkpoint.load(folder, device)

    @cached_property
    def splits(self) -> tuple[Split, Split]:
        """What the run was trained on, and its test split, each on the device if it fits.

        Raises:
            UserError: the data cannot be read, or are others than the run was trained on.
        """
        config = self.method.config
        source = locate(config.data, run_info.data_path(self.folder))
        train, test = load_splits(config.updated({"data": source}), self._listen)
        if run_info.trained_digest(self.folder) not in {None, train.digest}:
            raise UserError(
                f"{self.folder} was trained on other images than {config.data} has; bring those back, "
                "or train again"
            )
        return place(train, self.device), place(test, self.device)

    @cached_property
    def represents(self) -> bool:
        """Whether the method learns representations: it has outputs that may collapse."""
        with measuring():
            return self.method.outputs(to_model(self.splits[1].images[:1].to(self.device))) is not None

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """The features (N, D) and (M, D) of both splits, in float32."""
        train, test = self.splits
        with measuring():
            bank, queries = (
                extract_features(
                    self.method.features, split, ENCODED, self.tick(f"encoding {split.part} images"),
                    self.device,
                )
                for split in (train, test)
            )  # fmt: skip
            return bank, queries

    def keep_picture(self, place: Path, picture: "Image") -> None:
        """Write a picture to `place` in the run's folder, unless that is read-only."""
        if is_writable_run(self.folder):
            files.write_picture(self.folder / place, picture)

    def tick(self, text: str) -> Callable[[int, int], None]:
        """What tells the person watching how far a measurement is."""
        return lambda done, total: self._listen(Loading(text, done, total))


def knn(trained: Trained) -> dict[str, Any]:
    """The accuracy of the test split's nearest neighbors among all images that the run was trained on."""
    if not trained.represents:
        return {}
    try:
        labels, truth = _labels(trained)
    except UserError as error:
        return {"no_accuracy": str(error)}
    bank, queries = trained.features
    classes = len(trained.splits[0].classes)
    with measuring():
        predicted = knn_predict(bank, labels, queries, classes, min(NEIGHBORS, len(bank)))
    return {KNN: float((predicted == truth).cpu().double().mean())}


def linear(trained: Trained) -> dict[str, Any]:
    """Train and test accuracy after the last epoch of the linear probe, and over its epochs."""
    if not trained.represents:
        return {}
    try:
        labels, truth = _labels(trained)
    except UserError as error:
        return {"no_accuracy": str(error)}
    features, test_features = trained.features
    classes, seed = len(trained.splits[0].classes), trained.method.config.seed
    tick = trained.tick("fitting the linear probe")
    probe = linear_probe(features, labels, test_features, truth, classes, seed=seed, tick=tick)
    curves = {
        LINEAR_TRAIN: probe.train_accuracy,
        LINEAR: probe.test_accuracy,
        "linear_train_loss": probe.train_loss,
        "linear_test_loss": probe.test_loss,
    }
    last = {name: curves[name][-1] for name in (LINEAR, LINEAR_TRAIN)}
    return last | {f"{name}{BY_EPOCH}": values for name, values in curves.items()}


def _labels(trained: Trained) -> tuple[Tensor, Tensor]:
    return require_labels(trained.method, *trained.splits)


KEPT = Path("eval") / "ablate.json"  # in a run's folder
SAMPLES = Path("eval") / "ablate-samples.png"
SAMPLES_TIMED = 64
SAMPLES_SHOWN = 16
SAMPLING_BUDGET = 2.0  # seconds of repeating what is fast, since a first call is slower than the others
SAMPLING_REPEATS = 20
BOUND_IMAGES = 256
BOUND_TIMES = 20  # an image, stratified
NO_TERMS = BOOKKEEPING | {"collapsed"}
# Gives numbers, curves (lists) and facts (texts) by name
Measure = Callable[[Trained], Mapping[str, float | list[float] | str]]


def data(trained: Trained) -> dict[str, float | str]:
    """How many images the run was trained and is measured on, and their digests."""
    train, test = trained.splits
    return {
        "train_images": len(train),
        "test_images": len(test),
        "train_digest": train.digest,
        "test_digest": test.digest,
    }


def sampling(trained: Trained) -> dict[str, float]:
    """Seconds to sample 64 images in one batch, as the method samples by default; a grid of some of them."""
    if not isinstance(trained.method, CanSample):
        return {}
    seconds, images = time_sampling(trained, {})
    trained.keep_picture(SAMPLES, figures.grid(images[:SAMPLES_SHOWN]))
    return {"sampling_seconds": seconds}


def time_sampling(trained: Trained, options: Mapping[str, Any]) -> tuple[float, Tensor]:
    """Seconds of the fastest of a few samplings of 64 images with `options`, and the images."""
    seconds: list[float] = []
    while sum(seconds) < SAMPLING_BUDGET and len(seconds) < SAMPLING_REPEATS:
        start = time.perf_counter()
        tick = trained.tick("sampling")
        images = draw_samples(trained.method, SAMPLES_TIMED, 0, SAMPLES_TIMED, tick, options)
        seconds.append(time.perf_counter() - start)
    return min(seconds), images


def ancestral(trained: Trained) -> dict[str, float]:
    """Seconds to sample 16 images by every step of a DDPM, and their grid in place of the fast one."""
    if not isinstance(trained.method, DDPM):
        return {}
    start = time.perf_counter()
    tick = trained.tick("sampling by every step")
    images = draw_samples(trained.method, SAMPLES_SHOWN, 0, SAMPLES_SHOWN, tick, {"sampler": "ancestral"})
    seconds = time.perf_counter() - start
    trained.keep_picture(SAMPLES, figures.grid(images))
    return {"ancestral_seconds": seconds}


def bound(trained: Trained) -> dict[str, float]:
    """The bound of a DDPM on some test images in bits/dim, at a few times per image."""
    if not isinstance(trained.method, DDPM):
        return {}
    test = trained.splits[1].take(BOUND_IMAGES)
    times = min(BOUND_TIMES, trained.method.schedule.timesteps - 1) or None  # of a single step: all
    tick = trained.tick("bounding")
    outcome = bits_per_dim(trained.method, test, t_samples=times, seed=0, batch_size=BOUND_IMAGES, tick=tick)
    error = outcome.values["standard_error"]
    known = {} if error is None else {f"bits_per_dim{STANDARD_ERROR}": error}
    return {"bits_per_dim": outcome.values["bits_per_dim"], **known}


# Each is kept under its name: give it another one when what it measures changes. A measure returns {} for a
# run that it does not apply to.
MEASURES: dict[str, Measure] = {
    "data": data,
    "default sampling": sampling,
    "ancestral sampling": ancestral,
    "bound with its error": bound,
    "knn": knn,
    "linear": linear,
}


def measured(folder: Path, device: torch.device, listen: Listener) -> Measured:
    """A run with its history and every number of it."""
    info = run_info.inspect(folder)
    file = info.folder / run_info.HISTORY
    history = files.read_records(file) if file.exists() else []
    return Measured(info, history, measure(info, history, device, listen))


def unmeasured(folders: Iterable[Path], device: torch.device) -> list[Config]:
    """The settings of those runs of which not every number is kept: `measured` will need their data."""
    infos = map(run_info.inspect, folders)
    return [
        info.config.updated({"data": locate(info.config.data, run_info.data_path(info.folder))})
        for info in infos
        if not set(MEASURES) <= set(_read_kept(info, device)["measures"])
    ]


def measure(
    info: RunInfo, history: Sequence[Mapping[str, Any]], device: torch.device, listen: Listener
) -> Findings:
    """Every number of a run: its last losses, its training's time and speed, and what MEASURES finds."""
    return Findings.of({**from_history(history), **_from_measures(info, device, listen)})


def from_history(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last record's terms, the seconds of the whole training, and the median epoch's images a second."""
    if not history:
        return {}
    last = history[-1]
    terms = {name: value for name, value in last.items() if name not in NO_TERMS and value is not None}
    speeds = [record["images_per_second"] for record in history]
    return {
        **terms,
        "training_seconds": last["seconds"],
        "images_per_second": statistics.median(speeds),
    }


def _from_measures(info: RunInfo, device: torch.device, listen: Listener) -> dict[str, Any]:
    saved = _read_kept(info, device)
    missing = [name for name in MEASURES if name not in saved["measures"]]
    if missing:
        listen(Note(f"measuring {info.name}"))
        if is_writable_run(info.folder):
            files.sweep((info.folder / KEPT).parent, stem=KEPT.stem)  # what a killed study left half-written
        trained = Trained(info.folder, device, listen)
        for name in missing:
            saved["measures"][name] = MEASURES[name](trained)
            if is_writable_run(info.folder):
                files.write_json(info.folder / KEPT, saved)
    result = [saved["measures"][name] for name in MEASURES]
    return {name: value for item in result for name, value in item.items()}


def _read_kept(info: RunInfo, device: torch.device) -> dict[str, Any]:
    """What was measured of these very weights on this device; times on another one do not count."""
    details = {"weights_sha256": info.digest, "device": describe(device)}
    file = info.folder / KEPT
    saved = files.read_record(file) if file.exists() else {}
    is_usable = details.items() <= saved.items() and isinstance(saved.get("measures"), dict)
    return saved if is_usable else {**details, "measures": {}}
