"""The whole assignment as a plan: what its report needs, in the order in which it can be made.

The assignment is IFT6135's third (2023): a VAE and a DDPM on SVHN, SimSiam on CIFAR-10. Its figures show 70
epochs of both generative models; its question 3.4 asks for 100 epochs of SimSiam.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from genssl import config as configs
from genssl.runtime import choose_device
from genssl.studies.assignment_steps import SAMPLES, Part, steps_of
from genssl.studies.budget import Length, length_for
from genssl.studies.plan import REPORT_SECONDS, Plan, Step
from genssl.studies.schedule import Cost, divide
from genssl.train.events import Listener, Note
from genssl.train.options import Options
from genssl.train.run import require_data

FULL_EPOCHS = {"vae": 70, "ddpm": 70, "simsiam": 100}
# What a budget leaves to a CPU: the smallest networks, and for SimSiam Adam in small batches, which learns
# more in few steps than the paper's recipe (docs/simsiam.md)
ON_A_CPU: dict[str, dict[str, Any]] = {
    "vae": {},
    "ddpm": {"network": "tiny", "learning_rate": 4e-4},
    "simsiam": {
        "encoder": "small", "batch_size": 64, "optimizer": "adam", "learning_rate": 1e-3,
        "rate_batch_size": None, "weight_decay": 0.0,
    },
}  # fmt: skip
SHARES = {"vae": 0.06, "ddpm": 0.3, "simsiam": 0.075}  # of a budget; four SimSiams are trained
KNN_LOOKS = 3  # at the accuracy of a SimSiam that has a budget: each takes as long as many steps
TITLE = "IFT6135, assignment 3"
MANY = 10_000  # samples whose fidelity is measured on a GPU


def assignment(
    data: str,
    ssl_data: str,
    budget: float | None,
    device: str,
    seed: int,
    listen: Listener,
) -> Plan:
    """Make the plan; with a budget, after a trial of each training.

    Args:
        data: what the generative models learn.
        ssl_data: what SimSiam learns.
        budget: minutes that everything may take; None: as long as it takes.
        device: as in --device.
        seed: of everything random.
        listen: told what happens.

    Raises:
        UserError: the data or the device is not to be had.
    """
    sources = {"vae": data, "ddpm": data, "simsiam": ssl_data}
    # SimSiam comes last, hours or days after the start
    require_data((configs.make(method, {"data": source}) for method, source in sources.items()), listen)
    small = choose_device(device).type == "cpu"
    if budget is not None:
        return _plan_within(60 * budget, sources, device, seed, listen, small=small)
    if small:
        listen(Note("without a --budget this takes weeks on a CPU; --budget 60 makes it an hour"))
    parts = [
        Part(method, source, {"epochs": FULL_EPOCHS[method], "seed": seed})
        for method, source in sources.items()
    ]
    return Plan(TITLE, (), steps_of(*parts, device=device))


def _plan_within(
    seconds: float, sources: Mapping[str, str], device: str, seed: int, listen: Listener, *, small: bool
) -> Plan:
    """The plan of a budget: trainings take SHARES of it, and evaluations as many images as fit into the rest.

    Where the rest is too short even for the smallest evaluations, trainings become shorter.
    """
    start = time.monotonic()
    parts, lengths = {}, {}
    for method, source in sources.items():
        settings = {"epochs": FULL_EPOCHS[method], "seed": seed, **(ON_A_CPU[method] if small else {})}
        listen(Note(f"a few steps of {method} on {source}, to see how long they take"))
        trial, share = {**settings, "data": source}, seconds * SHARES[method]
        lengths[method] = length_for(method, trial, share, Options(device=device), listen)
        parts[method] = Part(method, source, settings)

    def steps(factor: float, *, full: bool) -> tuple[Step, ...]:
        for method, length in lengths.items():
            portion = factor * seconds * SHARES[method]
            lengths[method] = length.within(portion)
            settings = parts[method].settings | _shortened(method, lengths[method])
            parts[method] = replace(
                parts[method], settings=settings, seconds=portion, images_per_second=length.images_per_second
            )
        samples = SAMPLES if small else MANY
        return steps_of(*parts.values(), device=device, full=full, samples=samples)

    spent = time.monotonic() - start
    left = seconds - spent - REPORT_SECONDS
    steps_to_take = steps(1.0, full=True)
    factor, share = divide(_costs(steps_to_take), left)
    if share < 1:
        factor, share = divide(_costs(steps(1.0, full=False)), left)
        steps_to_take = steps(factor, full=False)
    steps_to_take = tuple(
        step.with_cost(step.cost.with_share(share)) for step in steps_to_take if step.cost is not None
    )
    notes = list(_notes(seconds, lengths, share, small=small))
    smallest = seconds - left + sum(cost.smallest() for cost in _costs(steps_to_take))
    if smallest > seconds:
        notes.insert(1, f"this budget cannot be kept here: the smallest possible is {_minutes(smallest)}")
    return Plan(TITLE, tuple(notes), steps_to_take, budget=seconds, spent=spent)


def _costs(steps: Iterable[Step]) -> list[Cost]:
    return [step.cost for step in steps if step.cost is not None]


def _minutes(seconds: float) -> str:
    return f"about {math.ceil(seconds / 6) / 10:g} minutes"


def _shortened(method: str, length: Length) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": length.epochs}
    if length.limit is not None:
        settings["limit"] = length.limit
    if method == "simsiam":
        settings["knn_every"] = max(1, length.epochs // KNN_LOOKS)
    return settings


def _notes(seconds: float, lengths: Mapping[str, Length], share: float, *, small: bool) -> Iterator[str]:
    """What was made smaller, and by how much."""
    budget = f"{seconds / 60:g} minutes"
    yield f"made for a budget of {budget}; without --budget everything has the assignment's size"
    for method, length in lengths.items():
        images = f"{length.limit or length.images:,} of {length.images:,} images"
        full = f"{length.share():.1%} of the assignment's {length.full_epochs} epochs on all of them"
        yield f"{method}: at most {length.epochs} epochs on {images}, {full}; the clock may end it before"
        if small and ON_A_CPU[method]:
            changed = ", ".join(f"{name}={value}" for name, value in ON_A_CPU[method].items())
            yield f"{method} has settings for a CPU: {changed}"
    if share < 1:
        yield "evaluations take fewer images, the fewer the less time is left"
