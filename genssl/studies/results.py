"""What a study finds: its arms, their trained and measured runs, and numbers over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from genssl import checkpoint, files
from genssl.checkpoint import RunInfo

# Settings that change what the loss is, or over what it is averaged: losses across them do not compare
REDEFINING = {
    "method", "data", "image_size", "decoder_variance", "loss",
    "timesteps", "beta_schedule", "beta_start", "beta_end", "scale_betas",
    "naive", "beta", "lambd", "invariance", "variance", "covariance",
    "crop_scale", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur",
    "heavy_operations", "heavy_magnitude",
}  # fmt: skip
# Losses that sum over pairs of outputs, whose chance correlations depend on the batch
SUMMED = {"barlow_twins", "vicreg"}
REDEFINING_SUMS = {"projector_dim", "batch_size"}


@dataclass(frozen=True)
class Arm:
    """One side of a study: what it changes in the baseline, which changes nothing."""

    name: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What was measured of one run.

    Attributes:
        numbers: by name, units in the names; accuracies are shares, 0 to 1.
        curves: by name, one value an epoch of what was fitted to the run.
        facts: what tells whether numbers compare, e.g. the digest of the test images.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """What a measure found, told apart by its type."""
        curves = {name: value for name, value in found.items() if isinstance(value, list)}
        facts = {name: value for name, value in found.items() if isinstance(value, str)}
        numbers = {name: value for name, value in found.items() if not isinstance(value, list | str)}
        return cls(numbers, curves, facts)


@dataclass(frozen=True)
class Measured:
    """A run that was trained and measured; `history` has one record an epoch."""

    info: RunInfo
    history: list[dict[str, Any]]
    findings: Findings

    @property
    def device(self) -> str:
        """What it was trained on."""
        origin = self.info.folder / checkpoint.ENVIRONMENT
        return str(files.read_json(origin)["device"]) if origin.exists() else "unknown"

    @property
    def collapsed(self) -> bool:
        """Whether the training found at its end that the outputs had collapsed."""
        last = self.history[-1] if self.history else {}
        return bool(last.get("collapsed"))


@dataclass(frozen=True)
class Number:
    """A number over the seeds of an arm; `std` is the sample standard deviation, None for one seed."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class ArmRuns:
    """An arm's runs, one a seed, and why others are missing."""

    arm: Arm
    runs: list[Measured]
    failures: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, Number]:
        """Every number that a run has, over the runs that have it."""
        names = dict.fromkeys(name for run in self.runs for name in run.findings.numbers)
        found = [run.findings.numbers for run in self.runs]
        return {name: over_seeds([each[name] for each in found if name in each]) for name in names}

    def redefines(self) -> list[str]:
        """The arm's changes that make its loss another quantity than the baseline's."""
        if "method" in self.arm.changes:
            return ["method"]
        method = self.runs[0].info.config.method if self.runs else ""
        names = REDEFINING | (REDEFINING_SUMS if method in SUMMED else set())
        return [name for name in self.arm.changes if name in names]

    def redefinition(self, baseline: str) -> str:
        """A sentence on `redefines`."""
        changed = ", ".join(self.redefines())
        return (
            f"the losses of {self.arm.name} and of {baseline} are different quantities: it changes {changed}"
        )


def over_seeds(values: Sequence[float]) -> Number:
    """Mean and sample standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Number(statistics.fmean(values), std, len(values))
