"""Errors for a person and their exit codes; text from outside, as it may be shown and parsed.

2 for wrong input, 1 for a run that failed, 75 where a process of a run has lost another one, 130 and 143
for an interrupt and a terminate signal.
"""

import difflib
import errno
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

WRONG_INPUT = 2
FAILED_RUN = 1
LOST_PROCESS = 75  # of a process that ends because another one of the run has
INTERRUPTED = 130
TERMINATED = 143
FEW = 3  # names in a message
DEEPEST = 100  # lists and objects in one another, in JSON
LONGEST, LONGEST_WORD = 1500, 300  # characters of a line
# In the messages of devices and their libraries, where memory is full
FULL = ("MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
MOST_DIGITS = 300  # of a whole number: a float holds up to 308


def printable(text: str) -> str:
    """The text with what no terminal and no file of text would take spelled out: \\x1b, \\x0a.

    Everything that is not the program's own passes through it before it is shown: a name or a setting with
    an escape sequence would else move the cursor, change the title or write to the clipboard.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def hint(name: str, known: Mapping[str, Any], short: Mapping[str, str] | None = None) -> str:
    """A question after the known name closest to one that is not known, or nothing.

    Args:
        name: the one that is not known.
        known: all that are.
        short: known names by what people type for them.
    """
    close = [short[name]] if short and name in short else difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_few(names: Sequence[str], what: str = "") -> str:
    """The first three of some names for a message, and how many more there are.

    Examples:
        >>> first_few(["a", "b", "c", "d", "e"]), first_few(["a", "b"]), first_few("abcd", "classes")
        ('a, b, c and 2 more', 'a, b', 'a, b, c and 1 more classes')
    """
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more:,} more {what}".rstrip() if more > 0 else "")


def describe_invalid(problem: Mapping[str, Any]) -> str:
    """An entry of pydantic's `ValidationError.errors()` in a line: the name, what it must be, what it is."""
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    return f"{'.'.join(map(str, problem['loc']))} {message} (got {problem['input']!r:.80})"


def value_at(values: Any, name: str) -> Any:
    """The value under a dotted name; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; a ValueError for what no file of this program holds.

    That is not-a-number, whole numbers that no float can hold, and nesting that later code would fail at.
    """
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    level = [value]
    for _ in range(DEEPEST):
        parents = [item.values() if isinstance(item, dict) else item for item in level if _has_items(item)]
        if not parents:
            return value
        level = [item for items in parents for item in items]
    raise ValueError(f"nested more than {DEEPEST} deep")


def _has_items(value: object) -> bool:
    return isinstance(value, dict | list)


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number that is not finite: {text[:20]}")
    return value


class UserError(Exception):
    """One line for a person: what is wrong; what to do. All of it is `printable`.

    Args:
        message: the line.
        code: the exit code.
        files: further lines, on the files that it is about.
    """

    def __init__(self, message: str, code: int = WRONG_INPUT, files: Sequence[str] = ()) -> None:
        super().__init__("\n".join(shortened(printable(line)) for line in (message, *files)))
        self.code = code


def shortened(line: str) -> str:
    """A line without the middle of words that nobody reads whole, nor of itself."""
    line = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:100]}...{word[0][-50:]}", line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


class Echo(UserError):
    """An error that another process of the run reports: this one ends with the code and prints nothing."""


def explain(error: BaseException) -> UserError | None:
    """Translate errors of disks and devices into a line for a person; None for any other."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return _explain_os_error(error)
    is_full = type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in FULL)
    if is_full or isinstance(error, MemoryError):
        return UserError("out of memory; try a smaller --batch-size or model", FAILED_RUN)
    if "DefaultCPUAllocator: can't allocate memory" in str(error):
        return UserError("out of memory on the CPU; try a smaller --batch-size or model", FAILED_RUN)
    return None


def _explain_os_error(error: OSError) -> UserError | None:
    where = f" ({error.filename})" if error.filename else ""
    code = FAILED_RUN
    match error.errno:
        case None:
            return None
        case errno.ENOSPC | errno.EDQUOT:
            what = f"the disk is full{where}; free some space and try again (train continues with --resume)"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            what = f"no permission{where}; choose another folder"
        case errno.ENOENT:
            what, code = f"no such file or folder{where}", WRONG_INPUT
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST | errno.ENAMETOOLONG | errno.ELOOP:
            what, code = f"{error.strerror}{where}; check the path", WRONG_INPUT
        case _:  # a broken or a busy disk, a file that grew too large
            what = f"{error.strerror or 'the system refused'}{where}; check the disk and try again"
    return UserError(what, code)
