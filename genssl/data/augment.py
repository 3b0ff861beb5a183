"""Views: from uint8 images at rest to what a method trains on, as batched functions on the device."""

from typing import Protocol

from torch import Tensor

from genssl.errors import UserError
from genssl.pixels import to_model
from genssl.runtime import Randomness


class Views(Protocol):
    """One or several views of each image. All randomness is an argument."""

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The random parameters of `n` images' views; each tensor's first axis is `n`."""
        ...

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> views, each float (B, 3, H, W) in the model's range."""
        ...


class Plain:
    """One view: the image itself."""

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> (float (B, 3, H, W),)."""
        return (to_model(images),)


def choose_views(name: str) -> Views:
    """The views that a config asks for in `Config.views`.

    Raises:
        UserError: no views have that name.
    """
    match name:
        case "plain":
            return Plain()
    raise UserError(f"unknown views {name!r}; known: plain")
