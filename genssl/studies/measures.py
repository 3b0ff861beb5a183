"""What is measured of a trained run, once: the numbers are kept beside it, by the digest of its weights."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genssl import checkpoint, figures, files
from genssl.checkpoint import RunInfo
from genssl.eval.bits_per_dim import bits_per_dim
from genssl.eval.sample import draw_samples
from genssl.models.ddpm import DDPM
from genssl.places import takes_results
from genssl.runtime import describe
from genssl.settings import Config
from genssl.studies.representations import knn, linear
from genssl.studies.results import Findings, Measured
from genssl.studies.trained import Trained
from genssl.train.events import Listener, Note

KEPT = Path("eval") / "ablate.json"  # in a run's folder
SAMPLES = Path("eval") / "ablate-samples.png"
SAMPLES_TIMED = 64
SAMPLES_SHOWN = 16
SAMPLING_BUDGET = 2.0  # seconds of repeating what is fast, since a first call is slower than the others
SAMPLING_REPEATS = 20
BOUND_IMAGES = 256
BOUND_TIMES = 20  # an image, stratified
NO_TERMS = {"epoch", "step", "learning_rate", "images_per_second", "seconds", "collapsed"}

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
    if not hasattr(trained.method, "sample"):
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
    """The bound of a DDPM on some test images in bits/dim, at a few times an image."""
    if not isinstance(trained.method, DDPM):
        return {}
    test = trained.splits[1].take(BOUND_IMAGES)
    times = min(BOUND_TIMES, trained.method.schedule.timesteps - 1)
    tick = trained.tick("bounding")
    outcome = bits_per_dim(trained.method, test, t_samples=times, seed=0, batch_size=BOUND_IMAGES, tick=tick)
    return {"bits_per_dim": outcome.values["bits_per_dim"]}


# Each is kept under its name: give it another one when what it measures changes. A measure returns {} for a
# run that it does not apply to.
MEASURES: dict[str, Measure] = {
    "data": data,
    "sampling": sampling,
    "ancestral": ancestral,
    "bound": bound,
    "knn": knn,
    "linear": linear,
}


def measured(folder: Path, device: torch.device, listen: Listener) -> Measured:
    """A run with its history and every number of it."""
    info = checkpoint.inspect(folder)
    file = info.folder / checkpoint.HISTORY
    history = files.read_json_lines(file) if file.exists() else []
    return Measured(info, history, measure(info, history, device, listen))


def unmeasured(folders: Iterable[Path], device: torch.device) -> list[Config]:
    """The settings of those runs of which not every number is kept: `measured` will need their data."""
    infos = map(checkpoint.inspect, folders)
    return [info.config for info in infos if not set(MEASURES) <= set(_read_kept(info, device)["measures"])]


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
    kept = _read_kept(info, device)
    missing = [name for name in MEASURES if name not in kept["measures"]]
    if missing:
        listen(Note(f"measuring {info.name}"))
        trained = Trained(info.folder, device, listen)
        for name in missing:
            kept["measures"][name] = MEASURES[name](trained)
            if takes_results(info.folder):
                files.write_json(info.folder / KEPT, kept)
    found = [kept["measures"][name] for name in MEASURES]
    return {name: value for each in found for name, value in each.items()}


def _read_kept(info: RunInfo, device: torch.device) -> dict[str, Any]:
    """What was measured of these very weights on this device; times on another one do not count."""
    about = {"weights_sha256": info.digest, "device": describe(device)}
    file = info.folder / KEPT
    kept = files.read_json(file) if file.exists() else {}
    return kept if about.items() <= kept.items() else {**about, "measures": {}}
