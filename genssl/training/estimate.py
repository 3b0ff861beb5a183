"""Time and memory of a run, measured on a few real steps that leave nothing behind."""

import math
import time
from dataclasses import dataclass

import torch

from genssl.data.augment.views import choose_views
from genssl.data.loader import make_loader
from genssl.data.split import Split
from genssl.models.build import build
from genssl.models.method import count_parameters
from genssl.runtime import choose_device, describe
from genssl.settings import Config
from genssl.training.events import Listener, silent
from genssl.training.loop import Training
from genssl.training.options import Options
from genssl.training.signals import peak_memory
from genssl.training.splits import load_splits, with_classes_of

WARM_STEPS = 3
TIMED_STEPS = 10
TRIAL_SECONDS = 10.0  # time limit of the warm steps, and of the timed ones
# The same for a quick measurement, and its largest batch on a CPU, whose speed hardly depends on the batch
QUICK_WARM_STEPS, QUICK_SECONDS, QUICK_BATCH = 1, 1.0, 32


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run on this machine.

    Attributes:
        parameters: number of trained parameters.
        all_parameters: with those of a target network, which are not trained.
        memory_bytes: peak memory of the trial steps.
        images_per_second: over the trial steps.
        seconds: for the whole run, pictures left out.
        images: in the train split.
        steps: in the whole run.
        device: the device's name.
        precision: fp32 or bf16.
    """

    parameters: int
    all_parameters: int
    memory_bytes: int
    images_per_second: float
    seconds: float
    images: int
    steps: int
    device: str
    precision: str


@dataclass(frozen=True)
class Pace:
    """How fast a run trains.

    Attributes:
        images_per_second: over a few steps.
        images: in the train split.
    """

    images_per_second: float
    images: int


def count_images(config: Config, listener: Listener = silent) -> int:
    """Number of images that a run of `config` trains on.

    Raises:
        UserError: the data are missing.
    """
    return len(load_splits(config, listener)[0])


def pace(config: Config, options: Options, listener: Listener = silent) -> Pace:
    """A quick measurement of the speed of a run; on a CPU in batches of 32 or fewer.

    Raises:
        UserError: the data or the device is missing.
    """
    device = choose_device(options.device)
    train, _ = load_splits(config, listener)
    if device.type == "cpu":
        config = config.updated({"batch_size": min(config.batch_size, QUICK_BATCH)})
    training = _training(config, train, device, options)
    seconds = _step_seconds(training, QUICK_WARM_STEPS, TIMED_STEPS, QUICK_SECONDS)
    return Pace(training.batch_size / seconds, len(train))


def estimate(config: Config, options: Options, listener: Listener = silent) -> Estimate:
    """Take a few steps of the run that `config` describes, and extrapolate.

    Raises:
        UserError: the data or the device is missing.
    """
    device = choose_device(options.device)
    train, _ = load_splits(config, listener)
    training = _training(config, train, device, options)
    seconds = _step_seconds(training, WARM_STEPS, TIMED_STEPS, TRIAL_SECONDS)
    trained, total = count_parameters(training.method)
    return Estimate(
        parameters=trained,
        all_parameters=total,
        memory_bytes=peak_memory(torch.device(device)),
        images_per_second=training.batch_size / seconds,
        seconds=seconds * training.total_steps,
        images=len(train),
        steps=training.total_steps,
        device=describe(device),
        precision=training.precision,
    )


def _training(config: Config, train: Split, device: torch.device, options: Options) -> Training:
    config = with_classes_of(config, train)
    data = make_loader(train, device, options.resident_limit)
    return Training(build(config).to(device), choose_views(config, train.classes), data, config)


def _step_seconds(training: Training, warm: int, timed: int, limit: float = math.inf) -> float:
    """Mean seconds per step of up to `timed` steps that begin within `limit` seconds, after `warm` others."""
    steps = training.steps()
    start = time.perf_counter()
    for _ in range(min(warm, training.total_steps - 1)):
        next(steps)
        if time.perf_counter() - start > limit:
            break
    start, taken = time.perf_counter(), 0
    for step in steps:
        # Waits for the device
        step.losses["loss"].item()
        taken += 1
        if taken == timed or time.perf_counter() - start > limit:
            break
    return (time.perf_counter() - start) / taken
