"""What a run would cost, measured on a few real steps that leave nothing behind."""

import time
from dataclasses import dataclass

import torch

from genssl.data.augment import choose_views
from genssl.data.feed import place
from genssl.models.build import build
from genssl.runtime import choose_device, describe
from genssl.settings import Config
from genssl.train.events import Listener, silent
from genssl.train.loop import Training
from genssl.train.options import Options
from genssl.train.run import load_splits
from genssl.train.sitting import peak_memory

WARM_STEPS = 3
TIMED_STEPS = 10
TRIAL_SECONDS = 10.0  # after which a slow machine takes no further step of either kind


@dataclass(frozen=True)
class Estimate:
    """What a run would cost on this machine.

    Attributes:
        parameters: how many numbers are trained.
        memory_bytes: the most that was in use during the trial steps.
        images_per_second: over the trial steps.
        seconds: for the whole run, pictures left out.
        images: in the train split.
        steps: in the whole run.
        device: the device's name.
        precision: fp32 or bf16.
    """

    parameters: int
    memory_bytes: int
    images_per_second: float
    seconds: float
    images: int
    steps: int
    device: str
    precision: str


def estimate(config: Config, options: Options, listen: Listener = silent) -> Estimate:
    """Take a few steps of the run that `config` describes, and scale.

    Raises:
        UserError: the data or the device is not to be had.
    """
    device = choose_device(options.device)
    train, _ = load_splits(config, listen)
    data = place(train, device, options.resident_limit)
    training = Training(build(config).to(device), choose_views(config, train.classes), data, config)
    steps = training.steps()
    start = time.perf_counter()
    for _ in range(min(WARM_STEPS, training.total_steps - 1)):
        next(steps)
        if time.perf_counter() - start > TRIAL_SECONDS:
            break
    start, taken = time.perf_counter(), 0
    for step in steps:
        step.losses["loss"].item()  # waits for the device
        taken += 1
        if taken == TIMED_STEPS or time.perf_counter() - start > TRIAL_SECONDS:
            break
    seconds = (time.perf_counter() - start) / taken
    return Estimate(
        parameters=sum(p.numel() for p in training.method.parameters() if p.requires_grad),
        memory_bytes=peak_memory(torch.device(device)),
        images_per_second=training.batch_size / seconds,
        seconds=seconds * training.total_steps,
        images=len(train),
        steps=training.total_steps,
        device=describe(device),
        precision=training.precision,
    )
