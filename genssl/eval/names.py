"""File names of evaluations: the kind, and the options that matter. No torch."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genssl.data.registry import SOURCES, base_name, is_hub, short_name

USUAL_SWEEP = "16:256:16"  # the assignment's
# Options that change the run, the place or the speed, or only add a figure
UNNAMED = {"run", "checkpoint", "device", "batch_size", "out", "as_json", "trajectory", "yes"}
SHORTENED = {"data", "features", "classifier"}  # whose values are references
MASKS = {"box", "left"}  # of inpaint, that are no files
LABELS = {"class_label": "class", "t_prime": "t", "t_samples": "times", "test_limit": "test", "sweep": ""}
LONGEST = 150  # characters


def file_name(command: str, changed: Mapping[str, Any]) -> str:
    """The name without a suffix, e.g. "sample-n16-ancestral".

    Args:
        command: as it is typed, e.g. "knn-eval".
        changed: options that are not the command's defaults, by the names of its parameters.
    """
    kind, options = _kind(command, changed)
    parts = [_part(name, value) for name, value in sorted(options.items()) if name not in UNNAMED]
    whole = "-".join([kind, *parts])
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 9]}-{_digest(whole, 8)}"


def _kind(command: str, changed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first part of the name, and the options that are not part of it yet."""
    rest = dict(changed)
    if command == "sample":
        rest.pop("data", None)  # says which run
    if command == "features":
        return f"features-{rest.pop('split', 'test')}", rest
    if command == "reconstruct" and "sweep" in rest:
        if rest["sweep"] == USUAL_SWEEP:
            del rest["sweep"]
        return "noise-levels", rest
    if command == "reconstruct" and "t_prime" in rest:
        return f"reconstruct-{rest.pop('t_prime')}", rest
    return command, rest


def is_negative(value: object) -> bool:
    """Whether this is a number below 0.

    Examples:
        >>> is_negative(-1.0), is_negative("-1")
        (True, False)
    """
    return isinstance(value, int | float) and value < 0


def _part(name: str, value: Any) -> str:
    """n16 for a number, ancestral for a word, augment or no-baselines for a flag."""
    if isinstance(value, bool):
        return ("" if value else "no-") + name.replace("_", "-")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list | tuple):
        text = "-".join(_short(str(item)) if name == "beside" else str(item) for item in value)
    if name not in SHORTENED:
        text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)  # .1 is 0.1
    if name in SHORTENED or (name == "mask" and text not in MASKS):
        text = f"{name}-{_short(text)}"
    if name == "beside" or (name == "class_label" and not text[:1].isdigit()):
        text = f"{LABELS.get(name, name)}-{text}"
    clean = re.sub(r"[^A-Za-z0-9_.]+", "-", text.replace("-", "minus", 1) if is_negative(value) else text)
    clean = clean.strip("-.")
    is_reference = name in {*SHORTENED, "mask"}
    if isinstance(value, str) and not is_reference and re.search(r"[^A-Za-z0-9_.,:+-]", value):
        clean = f"{clean}-{_digest(value, 4)}".strip("-")  # other letters, which the name cannot show
    return LABELS.get(name, name.replace("_", "")) + clean if text[:1].isdigit() else clean


def _short(reference: str) -> str:
    """The name of data or of a run; for a path its last part and a digest of the whole."""
    if (
        base_name(reference) in SOURCES
        or is_hub(reference)
        or not ("/" in reference or Path(reference).exists())
    ):
        return short_name(reference)
    return f"{short_name(reference)}-{_digest(str(Path(reference).expanduser().resolve()), 4)}"


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
