"""A trained run, opened to be measured."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genssl import checkpoint, files
from genssl.data.split import Split
from genssl.eval.representation import represent
from genssl.models.method import Method
from genssl.pixels import to_model
from genssl.places import takes_results
from genssl.runtime import measuring
from genssl.train.events import Listener, Loading
from genssl.train.run import load_splits

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
        """What the run was trained on, and its test split, on the device."""
        train, test = load_splits(self.method.config, self._listen)
        return train.to(self.device), test.to(self.device)

    @cached_property
    def represents(self) -> bool:
        """Whether the method learns representations: it has outputs that may collapse."""
        with measuring():
            return self.method.outputs(to_model(self.splits[1].images[:1])) is not None

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """The features (N, D) and (M, D) of both splits, in float32."""
        train, test = self.splits
        with measuring():
            return (
                represent(self.method.features, train, ENCODED, self.tick("encoding train images")),
                represent(self.method.features, test, ENCODED, self.tick("encoding test images")),
            )

    def keep_picture(self, place: Path, picture: "Image") -> None:
        """Write a picture to `place` in the run's folder, unless that is read-only."""
        if takes_results(self.folder):
            files.write_picture(self.folder / place, picture)

    def tick(self, text: str) -> Callable[[int, int], None]:
        """What tells the person watching how far a measurement is."""
        return lambda done, total: self._listen(Loading(text, done, total))
