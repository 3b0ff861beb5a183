"""The result of an evaluation, and checks of the run and the data that it is given. No torch."""

import base64
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from genssl.data.registry import short_name
from genssl.errors import UserError, value_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from genssl.data.split import Split
    from genssl.models.method import Method


Ability = TypeVar("Ability")


@dataclass(frozen=True)
class EvalResult:
    """Numbers and figures of one evaluation, and how they are shown.

    Console, JSON and report iterate over results and know none by its name.

    Attributes:
        values: JSON values by name, shown and written in this order.
        figures: by name; the first one is the main figure.
        notes: sentences that a reader needs to interpret the numbers.
        name: of the evaluation, as its command, e.g. "knn-eval".
        title: a heading, e.g. "kNN accuracy".
        headline: names of the values that a summary shows, in order; nested ones are dotted ("t_star.level").
            A name that a result lacks is skipped.
        units: by name of the value, e.g. {"psnr_db": "dB"}.

    Examples:
        >>> values = {"psnr_db": 21.5, "images": 64}
        >>> result = EvalResult(values, headline=("psnr_db",), units={"psnr_db": "dB"})
        >>> result.summary()
        {'psnr_db': 21.5}
    """

    values: dict[str, Any]
    figures: "dict[str, Figure | Image]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = ""
    title: str = ""
    headline: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The headline values by name; without those that this result lacks."""
        values = ((name, value_at(self.values, name)) for name in self.headline)
        return {name: value for name, value in values if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The values at the top level, after name, title, headline and units, and before the notes."""
        shown: dict[str, Any] = {"evaluation": self.name, "title": self.title}
        shown |= {"headline": list(self.headline), "units": dict(self.units)}
        return (shown if self.title else {}) | self.values | {"notes": list(self.notes)}

    def _repr_html_(self) -> str:
        """Title, numbers, figures and notes, for a notebook."""
        pictures = "".join(embedded(_png(figure)) for figure in self.figures.values())
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<h4>{html.escape(self.title)}</h4>{table_html(self.summary() or self.values)}{pictures}{notes}"
        )


def _png(figure: "Figure | Image") -> bytes:
    content = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(content, format="png")
    else:
        figure.save(content, "png")
    return content.getvalue()


def embedded(png: bytes) -> str:
    """A PNG as an HTML element that holds it."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table_html(values: Mapping[str, Any]) -> str:
    """Names and values as an HTML table; nested mappings get dotted names, lists are left out."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in flatten(values)
        if not isinstance(value, list)
    )
    return f"<table>{rows}</table>"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def header_of(method: "Method", what: str) -> str:
    """The header of a figure: the method, its data, the epoch of its weights, and what is shown."""
    from genssl import figures

    config = method.config
    return f"{figures.run_title(config.method, short_name(config.data), method.epoch)}: {what}"


def require_ability(method: "Method", ability: type[Ability], what: str, *others: type) -> Ability:
    """Cast the method to an ability, a protocol of `genssl.models.method`.

    Args:
        method: of any class.
        ability: e.g. CanSample.
        what: the evaluation that needs it, for the message.
        others: abilities that would do as well, for the message.

    Raises:
        UserError: the method does not have it.
    """
    from genssl.models.build import METHODS

    if isinstance(method, ability):
        return cast(Ability, method)
    abilities = [[name for name in vars(one) if not name.startswith("_")] for one in (ability, *others)]
    able = [
        name
        for name, (_, kind) in METHODS.items()
        if any(all(hasattr(kind, member) for member in members) for members in abilities)
    ]
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
