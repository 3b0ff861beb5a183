"""What the runs, evaluations and studies of a folder say, as the answers to the assignment need it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from genssl.report import studies
from genssl.report.format import is_number
from genssl.report.load import Contents, Record, Run, Study, ranked

NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval
WAY = ("samples", "real_images", "features_digest", "part", "data_digest")  # how samples were measured
ACCURACY = ("knn_accuracy_full", "linear_test_accuracy")


@dataclass(frozen=True)
class Share:
    """An accuracy.

    Attributes:
        images: test images that it was measured on.
        spread: standard deviation over draws of the labeled images.
    """

    value: float
    images: float
    spread: float = 0.0

    @property
    def error(self) -> float:
        """The standard error: binomial over the test images, and the spread."""
        binomial = math.sqrt(self.value * (1 - self.value) / self.images) if self.images else math.inf
        return math.hypot(binomial, self.spread)


@dataclass(frozen=True)
class Difference:
    """Of two accuracies, the second less the first.

    Attributes:
        value: from -1 to 1.
        error: standard error over test images; of one seed, and as if the images were drawn independently.
    """

    value: float
    error: float

    @classmethod
    def between(cls, before: Share, after: Share) -> "Difference":
        """The difference of two accuracies."""
        return cls(after.value - before.value, math.hypot(before.error, after.error))

    @property
    def is_resolved(self) -> bool:
        """Whether its 95 % interval leaves out 0."""
        return abs(self.value) > NORMAL_95 * self.error


@dataclass(frozen=True)
class Arm:
    """A row of an ablation or a side of a comparison."""

    row: Record

    @property
    def changes(self) -> Mapping[str, Any]:
        """What it changes in the baseline."""
        return studies.changes(self.row)

    @property
    def name(self) -> str:
        """Its name without commas, for a list: "timesteps=500 + scale_betas=True"."""
        return str(self.row.get("arm")).replace(", ", " + ")

    def number(self, name: str) -> float | None:
        """A number, of several seeds their mean; None where it has none."""
        numbers = self.row.get("numbers")
        value = numbers.get(name) if isinstance(numbers, dict) else None
        value = value.get("mean") if isinstance(value, dict) else value
        return float(value) if isinstance(value, int | float) and is_number(value) else None

    def accuracy(self, name: str = ACCURACY[0]) -> Share | None:
        """An accuracy; None where it was not measured."""
        value = self.number(name)
        return None if value is None else Share(value, self.number("test_images") or 0)

    @property
    def collapsed(self) -> bool:
        """Whether its outputs had collapsed at the end."""
        return any(run.get("collapsed") is True for run in self.runs)

    @property
    def runs(self) -> list[Record]:
        """What is said of each of its runs; a side of a comparison is its own run."""
        return [run for run in self.row.get("runs", [self.row]) if isinstance(run, dict)]


class Facts:
    """Looks up what was measured; None where it was not.

    Args:
        contents: runs and studies.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents

    def run(self, method: str) -> Run | None:
        """The best run of a method: finished, one's own, the newest."""
        return next(iter(ranked(self.contents.runs, method)), None)

    def evaluation(self, method: str, name: str) -> Record | None:
        """What an evaluation of that run wrote last, e.g. of "noise-levels", not on training images.

        Of the weights that the run has now, rather than of earlier ones.
        """
        run = self.run(method)
        if run is None:
            return None
        named = {stem: run.folder / "eval" / f"{stem}.json" for stem in run.evaluations}
        same = [
            stem
            for stem in named
            if (stem == name or stem.startswith(f"{name}-")) and run.evaluations[stem].get("part") != "train"
        ]
        digest = run.info.digest if run.info is not None else None
        current = [stem for stem in same if run.evaluations[stem].get("weights_sha256") == digest]
        newest = max(current or same, key=lambda stem: named[stem].stat().st_mtime_ns, default=None)
        return run.evaluations[newest] if newest else None

    def measure(self, method: str, measure: str) -> Record | None:
        """A row of the fidelity of a run's samples."""
        return measure_of(self.evaluation(method, "fidelity"), measure)

    def measured_alike(self, methods: Sequence[str], measure: str) -> dict[str, Record]:
        """A row of the fidelity of each method's samples, all measured in one way; empty where they were not.

        A comparison of the runs has measured them so; evaluations one by one may have.
        """
        results = {method: self.evaluation(method, "fidelity") for method in methods}
        if (study := self.comparison(*methods)) is not None and (compared := _compared(study)):
            results = {method: compared.get(method) for method in methods}
        ways = {tuple(str((values or {}).get(key)) for key in WAY) for values in results.values()}
        rows = {method: measure_of(values, measure) for method, values in results.items()}
        return {method: row for method, row in rows.items() if row is not None} if len(ways) == 1 else {}

    def ablation(self, method: str, *settings: str) -> list[Arm]:
        """The arms of the newest ablation of these settings, the baseline first; empty without one."""
        study = self.whole_study("ablate", (method,), settings)
        return [Arm(row) for row in studies.arms(study)] if study is not None else []

    def baseline_settings(self, method: str, *settings: str) -> Record:
        """The settings of the baseline of that ablation; empty where they were not recorded."""
        study = self.whole_study("ablate", (method,), settings)
        recorded = study.values.get("settings") if study is not None else None
        return recorded if isinstance(recorded, dict) else {}

    def comparison(self, *methods: str) -> Study | None:
        """The newest comparison of runs of exactly these methods."""
        return self.whole_study("compare", methods)

    def whole_study(self, kind: str, methods: Sequence[str], settings: Sequence[str] = ()) -> Study | None:
        """The newest study of these methods, whose arms change these settings among others."""
        for study in self._newest:
            arms = [Arm(row) for row in studies.arms(study)]
            compared = (
                {str(arm.row.get("method")) for arm in arms}
                if kind == "compare"
                else {study.values.get("method")}
            )
            changed = {name for arm in arms for name in arm.changes}
            if study.kind == kind and compared == set(methods) and changed >= set(settings):
                return study
        return None

    @cached_property
    def _newest(self) -> list[Study]:
        return sorted(self.contents.studies, key=lambda study: study.written, reverse=True)


def _compared(study: Study) -> dict[str, Record]:
    """What a comparison says of the samples of each method."""
    methods = {str(run.get("name")): str(run.get("method")) for run in _rows(study.values.get("runs"))}
    rows = _rows(study.values.get("fidelity"))
    return {methods[name]: row for row in rows if (name := str(row.get("run"))) in methods}


def _rows(values: object) -> list[Record]:
    return [row for row in values if isinstance(row, dict)] if isinstance(values, list) else []


def measure_of(values: Record | None, measure: str) -> Record | None:
    """The row of a measure in what `fidelity` wrote."""
    rows = _rows(values.get("measures")) if values is not None else []
    return next((row for row in rows if row.get("measure") == measure), None)


def arm_with(arms: list[Arm], **changes: Any) -> Arm | None:
    """The arm that makes exactly these changes."""
    return next((arm for arm in arms if dict(arm.changes) == changes), None)


def curve(run: Run | None, name: str) -> list[tuple[float, float]]:
    """The epochs at which a number was recorded while training, with its values."""
    records = run.history if run is not None else []
    pairs = [(record.get("epoch"), record.get(name)) for record in records]
    return [(epoch, value) for epoch, value in pairs if is_number(epoch) and is_number(value)]  # type: ignore[misc]


def held_out(run: Run | None, name: str) -> tuple[tuple[str, str], list[tuple[float, float]]]:
    """The curve of a loss term on test images, else on validation images, else while training.

    Before it whose images these are, in English and French.
    """
    for split, words in (
        ("test_", ("test", "de test")), ("validation_", ("validation", "de validation")),
    ):  # fmt: skip
        if values := curve(run, split + name):
            return words, values
    return ("training", "d'entraînement"), curve(run, name)
