"""Data: sources, cache, batches and augmentation; `genssl.data.load("svhn")` loads a split."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genssl.data.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for, since it brings torch."""
    if name == "load":
        from genssl.data import loading

        return loading.load
    raise AttributeError(f"module 'genssl.data' has no attribute {name!r}")
