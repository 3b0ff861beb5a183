"""Numbers as a person reads them; a missing one is a hyphen."""

import math
from typing import Any

NONE = "-"
MINUTE, HOUR = 60, 3600

# Data that are not what their names make think, by what the data's name holds
UNOFFICIAL = {
    "svhn-images": ("unofficial subset", "svhn-images is a subset of SVHN, and not the official set"),
    "cifar10-images": (
        "unofficial JPEG", "cifar10-images is CIFAR-10 compressed again as JPEG, and not the official set",
    ),
}  # fmt: skip


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


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """From where to where; nothing when there is none."""
    return f"{number(low, digits)} to {number(high, digits)}" if is_number(low) and is_number(high) else ""


def plus_minus(value: Any, digits: int = 2) -> str:
    """A standard error; nothing when there is none."""
    return f"± {number(value, digits)}" if is_number(value) else ""


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
    """The name of data, and whether it is not the official set."""
    found = _unofficial(name)
    return f"{text(name)} ({found[0]})" if found else text(name)


def unofficial(name: Any) -> str | None:
    """What to say of data that are not the official set."""
    found = _unofficial(name)
    return found[1] if found else None


def _unofficial(name: Any) -> tuple[str, str] | None:
    found = [told for part, told in UNOFFICIAL.items() if isinstance(name, str) and part in name]
    return found[0] if found else None
