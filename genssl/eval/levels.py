"""How noise levels are written on a command line. No torch."""

from collections.abc import Sequence

from genssl.errors import UserError

MOST_LEVELS = 10_000


def parse_levels(text: str) -> list[int]:
    """Noise levels, rising: "16:64:16" is 16, 32, 48, 64, both ends included; "16,40" is 16, 40.

    Raises:
        UserError: the text is neither, or names no level above 0.
    """
    problem = UserError(f"cannot read the levels {text!r}; write first:last:step as 16:256:16, or 16,64,176")
    try:
        numbers = [int(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        raise problem from None
    if ":" not in text:
        levels: Sequence[int] = sorted(set(numbers))
    elif len(numbers) == 3 and numbers[2] > 0:
        levels = range(numbers[0], numbers[1] + 1, numbers[2])
    else:
        raise problem
    if not levels or levels[0] < 1 or len(levels) > MOST_LEVELS:
        raise problem
    return list(levels)
