"""How much can be trained in a time, by a trial of a few steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genssl import config as configs
from genssl.train.estimate import estimate
from genssl.train.events import Listener
from genssl.train.options import Options

FEWEST = 10  # epochs: below, images are left out rather than epochs
SMALLEST = 500  # images
OVERHEAD = 0.15  # of a training's time goes to pictures, test losses and saved states


@dataclass(frozen=True)
class Length:
    """How long to train.

    Attributes:
        epochs: passes.
        images: in the train split.
        limit: train on so many of them only; None: on all.
        full_epochs: that it would be without a budget.
        seconds: that it is expected to take.
        images_per_second: of training, in the trial.
    """

    epochs: int
    images: int
    limit: int | None
    full_epochs: int
    seconds: float
    images_per_second: float

    def within(self, seconds: float) -> "Length":
        """The same training made to fit into another time."""
        return fit(self.images_per_second, self.images, self.full_epochs, seconds)

    def share(self) -> float:
        """The images that are looked at, beside those of all epochs on all images."""
        return self.epochs * (self.limit or self.images) / (self.full_epochs * self.images)


def fit(images_per_second: float, images: int, full_epochs: int, seconds: float) -> Length:
    """The longest training of `seconds`: fewer epochs first, and no fewer than FEWEST; then fewer images."""
    pace = images_per_second * (1 - OVERHEAD)
    looked_at = pace * seconds
    epochs = min(full_epochs, int(looked_at / images))
    if epochs >= min(FEWEST, full_epochs):
        return Length(epochs, images, None, full_epochs, epochs * images / pace, images_per_second)
    epochs = min(FEWEST, full_epochs)
    limit = min(images, max(SMALLEST, int(looked_at / epochs)))
    return Length(epochs, images, limit, full_epochs, epochs * limit / pace, images_per_second)


def length_for(
    method: str, settings: Mapping[str, Any], seconds: float, options: Options, listen: Listener
) -> Length:
    """How long to train `method` with `settings`, whose epochs are all that it would be given."""
    config = configs.make(method, settings)
    trial = estimate(config, options, listen)
    return fit(trial.images_per_second, trial.images, config.epochs, seconds)
