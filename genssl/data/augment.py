"""Views: from uint8 images at rest to what a method trains on, as batched functions on the device."""

from typing import Protocol

from torch import Tensor

from genssl.config import DSSLConfig, SelfSupervisedConfig
from genssl.data.views import Directional, Standard
from genssl.errors import UserError
from genssl.pixels import to_model
from genssl.runtime import Randomness
from genssl.settings import Config


class Views(Protocol):
    """One or several views of each image. All randomness is an argument."""

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each view, for people."""
        ...

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """The random parameters of `n` images' views; each tensor's first axis is `n`."""
        ...

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> views, each float (B, 3, H, W) in the model's range."""
        ...


class Plain:
    """One view: the image itself."""

    names: tuple[str, ...] = ("image",)

    def draws(self, n: int, generator: Randomness) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """uint8 (B, 3, H, W) -> (float (B, 3, H, W),)."""
        return (to_model(images),)


def choose_views(config: Config, classes: tuple[str, ...] = ()) -> Views:
    """The views that a config asks for in `Config.views`.

    Args:
        config: a method's.
        classes: names of the data's classes; where they are all digits, flip = auto mirrors nothing.

    Raises:
        UserError: no views have that name, or the config lacks their settings.
    """
    if config.views == "plain":
        return Plain()
    if isinstance(config, SelfSupervisedConfig) and config.views == "standard":
        return Standard(config, classes)
    if isinstance(config, DSSLConfig) and config.views == "directional":
        return Directional(config, classes)
    raise UserError(f"{config.method}: unknown views {config.views!r}; known: plain, standard, directional")
