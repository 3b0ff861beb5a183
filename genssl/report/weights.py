"""What a model file says of itself in its header, read without torch."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
NOT_LEARNT = ("num_batches_tracked", "running_mean", "running_var")  # of batch norms


@dataclass(frozen=True)
class Weights:
    """What a model file says in its header.

    Attributes:
        epoch: whole epochs that the weights have seen.
        finished: they were written at the end of a training: the last epoch's or --max-minutes'.
        metrics: the last record of the history, and what was measured at the end.
    """

    epoch: int
    finished: bool
    digest: str
    parameters: int
    config: dict[str, Any]
    metrics: dict[str, Any]


def read_weights(file: Path, problems: list[str]) -> Weights | None:
    """The header of a safetensors file; None where there is none, or none that can be read."""
    if not file.is_file():
        return None
    try:
        header = _header(file)
        about = header.pop("__metadata__")
        learnt = (value for name, value in header.items() if not name.endswith(NOT_LEARNT))
        return Weights(
            epoch=int(about["epoch"]),
            finished=json.loads(about["finished"]) is True,
            digest=str(about["sha256"]),
            parameters=sum(math.prod(value["shape"]) for value in learnt),
            config=dict(json.loads(about["config"])),
            metrics=dict(json.loads(about.get("metrics", "{}"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        problems.append(f"{file} does not say what it is ({type(error).__name__})")
        return None


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: its length, 8 bytes, little-endian, then JSON."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header: dict[str, Any] = json.loads(opened.read(length))
    return header
