"""Train, sample and measure small image models: VAE, DDPM, SimSiam and relatives.

Examples:
    >>> import genssl
    >>> vae = genssl.load("vae")
    >>> vae.sample(2).shape
    torch.Size([2, 3, 32, 32])
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genssl.api import History, Run, evaluate, train
    from genssl.models.method import Method

__version__ = "0.1.0"
__all__ = ["History", "Run", "__version__", "evaluate", "load", "train"]


def load(path: "str | os.PathLike[str]") -> "Method":
    """Load a trained model in eval mode, without gradients; `.config` holds its settings.

    Args:
        path: a run folder, a model.safetensors file, a run's name, or a method's name (its newest
            run, finished ones first).

    Raises:
        genssl.errors.UserError: nothing is there, or it is damaged.

    Examples:
        >>> import torch
        >>> model = load("simsiam")  # weights that come with it, where there is no run of that method
        >>> model.config.method, model.features(torch.zeros(2, 3, 32, 32)).shape
        ('simsiam', torch.Size([2, 128]))
    """
    from genssl import checkpoint, runs  # torch is imported when it is needed, not for `genssl --help`

    return checkpoint.load(runs.find(os.fspath(path)))


def __getattr__(name: str) -> Any:
    """What `genssl.api` defines, imported when it is first asked for."""
    if name in {"History", "Run", "evaluate", "train"}:
        from genssl import api

        return getattr(api, name)
    raise AttributeError(f"module 'genssl' has no attribute {name!r}")
