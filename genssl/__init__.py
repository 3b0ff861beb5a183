"""Train, sample and measure small image models: VAE, DDPM, SimSiam and relatives."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genssl.models.method import Method

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: "str | os.PathLike[str]") -> "Method":
    """Load a trained model in eval mode, without gradients; `.config` holds its settings.

    Args:
        path: a run folder, a model.safetensors file, a run's name, or a method's name (its newest
            run, finished ones first).

    Raises:
        genssl.errors.UserError: nothing is there, or it is damaged.
    """
    from genssl import checkpoint, runs  # torch is imported when it is needed, not for `genssl --help`

    return checkpoint.load(runs.find(os.fspath(path)))
