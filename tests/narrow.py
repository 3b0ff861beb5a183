"""For tests that know an optional value to be there: labels of a split, a gradient, a legend."""

from typing import TypeVar

T = TypeVar("T")


def given(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None
    return value
