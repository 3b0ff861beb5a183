"""What every evaluation returns, and what it asks of the run and the data it is given. No torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from genssl.data.registry import short_name
from genssl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from genssl.data.split import Split
    from genssl.models.method import Method


Ability = TypeVar("Ability")


@dataclass(frozen=True)
class EvalResult:
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
    from genssl import figures

    config = method.config
    return f"{figures.run_title(config.method, short_name(config.data), method.epoch)}: {what}"


def require_ability(method: "Method", ability: type[Ability], what: str) -> Ability:
    """The method as one that has an ability, a protocol of `genssl.models.method`.

    Args:
        method: of any class.
        ability: e.g. CanSample.
        what: needs it, for the message.

    Raises:
        UserError: the method does not have it.
    """
    from genssl.models.build import METHODS

    if isinstance(method, ability):
        return cast(Ability, method)
    members = [name for name in vars(ability) if not name.startswith("_")]
    able = [name for name, (_, kind) in METHODS.items() if all(hasattr(kind, member) for member in members)]
    raise UserError(
        f"{what} needs a {' or a '.join(able)}, and this is a {method.config.method}; choose another run"
    )


def check_size(method: "Method", split: "Split") -> None:
    """Refuse images of another size than the method was trained on.

    Raises:
        UserError: the sizes differ.
    """
    size, data_size = method.config.image_size, split.images.shape[-1]
    if data_size != size:
        raise UserError(f"the run was trained on {size}x{size} images, the data are {data_size}x{data_size}")
