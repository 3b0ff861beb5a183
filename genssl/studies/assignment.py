"""The whole assignment as a plan: what its report needs, in the order in which it can be made.

The assignment is IFT6135's third (2023): a VAE and a DDPM on SVHN, SimSiam on CIFAR-10. Its figures show 70
epochs of both generative models; its question 3.4 asks for 100 epochs of SimSiam.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from genssl import config as configs
from genssl.runtime import choose_device
from genssl.studies.assignment_steps import Part, steps_of
from genssl.studies.budget import Length, length_for
from genssl.studies.plan import Plan
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
ENOUGH = 60.0  # minutes: with less, a CPU evaluates on fewer images


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
    small = budget is not None and choose_device(device).type == "cpu"
    if budget is None and choose_device(device).type == "cpu":
        listen(Note("without a --budget this takes weeks on a CPU; --budget 60 makes it an hour"))
    parts, lengths = [], {}
    for method, source in sources.items():
        settings = {"epochs": FULL_EPOCHS[method], "seed": seed, **(ON_A_CPU[method] if small else {})}
        if budget is not None:
            listen(Note(f"a few steps of {method} on {source}, to see how long they take"))
            seconds = 60 * budget * SHARES[method]
            trial = {**settings, "data": source}
            lengths[method] = length_for(method, trial, seconds, Options(device=device), listen)
            settings |= _shortened(method, lengths[method])
        parts.append(Part(method, source, settings))
    share = min(1.0, budget / ENOUGH) if small and budget is not None else 1.0
    notes = [] if budget is None else list(_notes(budget, lengths, share, small=small))
    return Plan("IFT6135, assignment 3", tuple(notes), steps_of(*parts, share=share, device=device))


def _shortened(method: str, length: Length) -> dict[str, Any]:
    settings: dict[str, Any] = {"epochs": length.epochs}
    if length.limit is not None:
        settings["limit"] = length.limit
    if method == "simsiam":
        settings["knn_every"] = max(1, length.epochs // KNN_LOOKS)
    return settings


def _notes(budget: float, lengths: Mapping[str, Length], share: float, *, small: bool) -> Iterator[str]:
    """What was made smaller, and by how much."""
    yield f"made for a budget of {budget:g} minutes; without --budget everything has the assignment's size"
    for method, length in lengths.items():
        images = f"{length.limit or length.images:,} of {length.images:,} images"
        full = f"{length.share():.1%} of the assignment's {length.full_epochs} epochs on all of them"
        yield f"{method}: {length.epochs} epochs on {images}, {full}"
        if length.seconds > 1.1 * 60 * budget * SHARES[method]:
            yield f"{method} takes more than its share of the budget all the same: it cannot be made smaller"
        if small and ON_A_CPU[method]:
            changed = ", ".join(f"{name}={value}" for name, value in ON_A_CPU[method].items())
            yield f"{method} has settings for a CPU: {changed}"
    if share < 1:
        yield f"evaluations take fewer images, down to {share:.0%} of those from {ENOUGH:g} minutes on"
