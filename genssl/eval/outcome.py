"""What every evaluation returns."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genssl import figures
from genssl.data.known import short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from genssl.models.method import Method


@dataclass(frozen=True)
class Outcome:
    """Numbers and pictures of one evaluation.

    Attributes:
        values: names (with units) to JSON values; shown and written as they are.
        figures: by name; the first one is the evaluation's picture.
        notes: sentences a reader needs to read the numbers rightly.
    """

    values: dict[str, Any]
    figures: "dict[str, Figure | Image]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def header_of(method: "Method", what: str) -> str:
    """The line above a picture: the method, its data, the epoch of its weights, and what is shown."""
    config = method.config
    return f"{figures.run_title(config.method, short_name(config.data), method.epoch)}: {what}"
