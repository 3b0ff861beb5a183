"""Measured runs that were never trained."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genssl.config import SimSiamConfig
from genssl.run_info import RunInfo
from genssl.settings import Config
from genssl.studies.results import Arm, ArmRuns, Findings, Measured

EPOCHS = 4
CURVES = {
    "linear_train_accuracy_by_epoch": [0.3, 0.5, 0.6],
    "linear_test_accuracy_by_epoch": [0.2, 0.4, 0.5],
}
NUMBERS = {
    "knn_accuracy_full": 0.4321,
    "linear_test_accuracy": 0.5,
    "linear_train_accuracy": 0.6,
    "output_std": 0.9,
    "train_images": 500,
}


def history(std: float = 0.9, **more: float) -> list[dict[str, Any]]:
    """Of a self-supervised run; neighbors were looked at in every second epoch."""
    records: list[dict[str, Any]] = []
    for epoch in range(1, EPOCHS + 1):
        record = {
            "epoch": epoch,
            "loss": -0.2 * epoch,
            "output_std": std,
            "rankme": 9.0,
            "collapsed": std < 0.1,
        }
        records.append(record | more | ({"knn_accuracy": 0.1 * epoch} if epoch % 2 == 0 else {}))
    return records


def simsiam(**changes: Any) -> Config:
    return SimSiamConfig(**{"data": "somewhere/photos.tar.gz", "epochs": EPOCHS, **changes})


def run_of(
    config: Config | None = None,
    std: float = 0.9,
    name: str = "nowhere",
    numbers: Mapping[str, float] | None = None,
    **more: float,
) -> Measured:
    config = config or simsiam()
    findings = Findings({**NUMBERS, "output_std": std, **(numbers or {}), **more}, copy.deepcopy(CURVES))
    return Measured(RunInfo(Path(name), config, config.epochs, True, {}, ""), history(std), findings)


def arm_of(name: str, changes: dict[str, Any], *runs: Measured) -> ArmRuns:
    return ArmRuns(Arm(name, changes), list(runs))
