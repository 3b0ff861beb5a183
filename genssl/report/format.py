"""Numbers and words as a report shows them."""

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genssl.data.registry import short_name

if TYPE_CHECKING:
    from markupsafe import Markup

Show = Callable[[Any], str]
NONE = "-"
MOST_PLACES = 8  # after the point
UNRESOLVED = " (not resolved)"  # the interval is larger than the number
MINUTE, HOUR = 60, 3600


def number(value: Any, digits: int = 4) -> str:
    """A whole number with commas, another one to so many digits."""
    if not is_number(value):
        return NONE
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decimals(value: Any, places: int = 2) -> str:
    """A number with so many places after the point."""
    return f"{value:,.{places}f}" if is_number(value) else NONE


def percent(value: Any) -> str:
    """A share, from 0 to 1."""
    return f"{100 * value:.1f} %" if is_number(value) else NONE


def seconds(value: Any) -> str:
    """A time."""
    if not is_number(value):
        return NONE
    if value < MINUTE:
        return f"{value:.3g} s"
    whole = round(value)
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def with_error(value: Any, error: Any, show: Show = number, scale: float = 1.0) -> tuple[str, str]:
    """A number and its standard error, both rounded to two digits of the error; "" where there is none.

    Args:
        value: the number.
        error: its standard error.
        show: the number where there is no error.
        scale: a factor of both; 100 for shares, which get a percent sign.
    """
    if not is_number(value) or not is_number(error):
        return show(value), ""
    places = decimal_places(scale * error)
    unclear = UNRESOLVED if 0 < abs(value) <= error else ""
    return f"{rounded(scale * value, places)}{_sign(scale)}", f"± {rounded(scale * error, places)}{unclear}"


def with_interval(
    value: Any, low: Any, high: Any, show: Show = number, scale: float = 1.0
) -> tuple[str, str]:
    """A number and its interval, rounded to two digits of half the interval; "" where there is none."""
    if not all(map(is_number, (value, low, high))):
        return show(value), ""
    half = (high - low) / 2
    places = decimal_places(scale * half)
    ends = f"{rounded(scale * low, places)} to {rounded(scale * high, places)}{_sign(scale)}"
    unclear = UNRESOLVED if 0 < abs(value) <= half else ""
    return f"{rounded(scale * value, places)}{_sign(scale)}", f"{ends}{unclear}"


def decimal_places(error: float) -> int:
    """Places after the point that keep two digits of an error; fewer than 0 for large ones."""
    return min(MOST_PLACES, 1 - math.floor(math.log10(error))) if error > 0 else 3


def rounded(value: float, places: int) -> str:
    """A number rounded to so many places after the point; 1,300 for places = -2."""
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}"


def _sign(scale: float) -> str:
    return " %" if scale == 100 else ""


def text(value: Any) -> str:
    """A short text or a number; a hyphen for anything else."""
    return value if isinstance(value, str) and value else number(value)


def of_name(name: str) -> str:
    """A number's name as words, e.g. "psnr (dB)" of psnr_db."""
    for suffix, unit in (("_db", "dB"), ("_seconds", "s"), ("_nats", "nats")):
        if name.endswith(suffix):
            return f"{of_name(name.removesuffix(suffix))} ({unit})"
    return name.replace("_", " ").replace("bits per dim", "bits/dim").replace("frechet", "Frechet")


def data_label(name: Any) -> str:
    """The name of data; of a path its last name without suffixes."""
    return short_name(name) if isinstance(name, str) and name else NONE


def breakable(text: str) -> "Markup":
    """The text, escaped, with places to break its words: after an equals sign, an underscore or a slash.

    Numbers are kept together with their signs and the ends of their intervals.
    """
    from markupsafe import Markup, escape

    text = re.sub(r"(?<=±) (?=\d)|(?<=\d) (?=%|seeds)|(?<=\d to) (?=-?\d)| (?=[↓↑])", "\u00a0", text)
    return Markup(re.sub(r"([=_/])(?=\w)", r"\1<wbr>", str(escape(text))))
