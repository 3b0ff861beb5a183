"""A run folder and everything that is written to it."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genssl import checkpoint, config, distributed, environment, figures, files, run_info
from genssl.data.registry import absolute
from genssl.errors import FAILED_RUN, UserError
from genssl.models.method import Method
from genssl.runtime import describe
from genssl.settings import Config

EVALUATIONS = "eval"
OLD = 3600.0  # seconds after which nobody is writing a file any more


class RunFolder:
    """One run's files. One process at a time locks it; others of the same run may read.

    Args:
        path: of the folder.
        lock: whether to lock it, or the lock that this process has on it.
    """

    def __init__(self, path: Path, *, lock: bool | files.FolderLock = True) -> None:
        self.path = path
        self.title = path.name  # of its pictures
        self.units: Mapping[str, str] = {}  # of the method's own terms
        self.validated = False  # whether real images in the pictures are of the validation split
        message = f"another process is training {path}; wait for it, or start a new run"
        self._lock = lock if isinstance(lock, files.FolderLock) else None
        if lock is True:
            self._lock = files.FolderLock(path, message)

    def release(self) -> None:
        """Let another process resume this run."""
        if self._lock is not None:
            self._lock.release()

    def remove_if_empty(self) -> None:
        """Remove a folder that not even the settings could be written to, on a full disk."""
        with contextlib.suppress(OSError):  # it holds a run
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what a killed process of this run has left half-written."""
        if self._lock is None:
            return
        # Evaluations may be writing theirs at the same time
        for folder in (self.path, *(folder for folder in self.path.iterdir() if folder.is_dir())):
            if not folder.is_symlink():
                files.sweep(folder, OLD if folder.name == EVALUATIONS else 0.0)

    def write_start(self, config: Config, device: torch.device) -> None:
        """Write the settings, and the environment that they run in."""
        self.sweep()
        self.write_config(config)
        self._write_environment(config, device)

    def _write_environment(self, config: Config, device: torch.device) -> None:
        details = {**run_environment(device), "data_path": absolute(config.data)}
        files.write_json(self.path / run_info.ENVIRONMENT, details)

    def write_config(self, config: Config) -> None:
        """Write the settings."""
        files.write_text(self.path / run_info.CONFIG, config.to_json())

    def read_config(self) -> Config:
        """The run's settings."""
        self.check()
        self.sweep()
        file = self.path / run_info.CONFIG
        return config.read(files.read_text(file), str(file))

    def check(self) -> None:
        """Refuse to read or write where there is no run.

        Raises:
            UserError: the folder was removed, or is something else.
        """
        if not (self.path / run_info.CONFIG).exists():
            raise UserError(
                f"{self.path} is no run folder (any more): it has no {run_info.CONFIG}", FAILED_RUN
            )

    def write_state(self, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Write everything that resuming needs."""
        self.check()
        files.write_tensors(self.path / run_info.STATE, tensors, texts)

    def read_state(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """The last saved state; None when nothing was saved yet."""
        file = self.path / run_info.STATE
        return files.read_tensors(file) if os.path.lexists(file) else None

    def write_model(
        self,
        method: Method,
        epoch: int,
        finished: bool,
        metrics: Mapping[str, Any],
        training: Mapping[str, Any],
    ) -> None:
        """Write the weights for inference."""
        self.check()
        checkpoint.save(method, self.path, epoch=epoch, finished=finished, metrics=metrics, training=training)

    def write_history(self, records: list[dict[str, Any]]) -> None:
        """Write one line of JSON per epoch."""
        self.check()
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        files.write_text(self.path / run_info.HISTORY, "".join(lines))

    def is_finished(self) -> bool:
        """Whether it holds the weights of a training that came to its end."""
        return (self.path / run_info.MODEL).exists() and run_info.inspect(self.path).finished

    def begin_again(self, config: Config, device: torch.device) -> None:
        """For a run from its first step on: remove what it writes again, write what a kill kept from it."""
        if not (self.path / run_info.ENVIRONMENT).exists():
            self._write_environment(config, device)
        (self.path / run_info.HISTORY).unlink(missing_ok=True)
        self.remove_previews_after(0)

    def read_history(self, step: int, steps_per_epoch: int) -> list[dict[str, Any]]:
        """The records of the whole epochs that had ended by `step`.

        Raises:
            UserError: a line is no record with an epoch and a step, which are whole numbers there.
        """
        file = self.path / run_info.HISTORY
        if not os.path.lexists(file):
            return []
        records = files.read_records(file)
        for number, record in enumerate(records, 1):
            if not all(isinstance(record.get(name), int | float) for name in ("epoch", "step")):
                raise UserError(f"{file}, line {number}, has no epoch or step; restore it or remove it")
        whole = [record for record in records if record["step"] % steps_per_epoch == 0]
        return [record for record in whole if record["step"] <= step]

    def write_previews(self, previews: Mapping[str, Tensor], epoch: float) -> None:
        """Write one grid per kind, below a header: samples/epoch-005.png, or epoch-005.43.png."""
        name = f"epoch-{epoch:03d}.png" if isinstance(epoch, int) else f"epoch-{epoch:06.2f}.png"
        for kind, images in previews.items():
            header = f"{self.title}, epoch {epoch:g}: {self._subject(kind)}"
            files.write_picture(self.path / kind / name, figures.preview(kind, images, header))

    def remove_previews_after(self, epoch: int) -> None:
        """Remove the previews of epochs that a resumed run has yet to reach."""
        for file in self.path.glob("*/epoch-*.png"):
            if _epoch_of(file) > epoch:
                file.unlink()

    def write_curves(self, records: list[dict[str, Any]]) -> None:
        """Write curves.png and wall-clock.png."""
        if records:
            name = self.path.name
            files.write_picture(self.path / "curves.png", figures.curves(records, name, self.units))
            files.write_picture(self.path / "wall-clock.png", figures.wall_clock(records, name))

    def _subject(self, kind: str) -> str:
        shown = " of validation images" if self.validated and kind == "reconstructions" else ""
        return kind.replace("_", " ") + shown

    def write_contact_sheets(self) -> None:
        """Write one picture per kind of preview, over all epochs: samples-over-epochs.png."""
        for folder in sorted({file.parent for file in self.path.glob("*/epoch-*.png")}):
            pages = []
            for file in sorted(folder.glob("epoch-*.png"), key=_epoch_of):
                # One that a full disk has cut short does not keep the run from its end
                with contextlib.suppress(UserError):
                    pages.append((f"epoch {_epoch_of(file):g}", files.read_picture(file)))
            if not pages:
                continue
            header = f"{self.title}: {self._subject(folder.name)} while training"
            sheet = figures.contact_sheet(pages, header=header)
            files.write_picture(self.path / f"{folder.name}-over-epochs.png", sheet)


def is_complete(path: Path, epochs: int) -> bool:
    """Whether a run folder holds the finished weights of all epochs, intact."""
    try:
        info = run_info.inspect(path)
    except UserError:
        return False
    return info.finished and info.epoch >= epochs


def run_environment(device: torch.device) -> dict[str, Any]:
    """Command line, device, versions and git revision."""
    return {
        "command": environment.command_line(),
        "device": describe(device),
        "processes": distributed.world_size(),
        **environment.system(),
        "git": environment.git_revision(),
    }


def _epoch_of(preview: Path) -> float:
    number = preview.stem.removeprefix("epoch-")
    return float(number) if number.replace(".", "", 1).isdigit() else 0.0
