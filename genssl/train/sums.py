"""The means of an epoch's losses, summed on the device."""

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "sum."  # of their names in a saved state


class Sums:
    """The losses of an epoch's steps so far, weighted by their images. Nothing is read before `means`."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.images = 0

    def add(self, losses: Mapping[str, Tensor], images: int, fine: Tensor) -> None:
        """Add a step; one that the guard kept out, where `fine` is false, adds nothing to the losses."""
        for name, value in losses.items():
            share = torch.where(fine, value * images, 0.0)
            self.totals[name] = self.totals[name] + share if name in self.totals else share
        self.images += images

    def means(self) -> dict[str, float]:
        """Over the images; reads from the device."""
        return {name: float(total) / self.images for name, total in self.totals.items()}

    def reset(self) -> None:
        """Begin an epoch."""
        self.totals, self.images = {}, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What resuming in the middle of an epoch needs: (tensors, texts)."""
        return {PREFIX + name: total for name, total in self.totals.items()}, {"images": str(self.images)}

    def restore(self, tensors: Mapping[str, Tensor], texts: Mapping[str, str], device: torch.device) -> None:
        """Continue from a `state`."""
        self.images = int(texts["images"])
        self.totals = {
            name.removeprefix(PREFIX): value.to(device)
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
