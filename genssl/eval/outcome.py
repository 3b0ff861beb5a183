"""What every evaluation returns."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


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
