"""Where the numbers and pictures of a run's epochs go besides its history: `--logger NAME`."""

import contextlib
import csv
import importlib
import io
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image
from torch import Tensor

from genssl import figures, files
from genssl.errors import FAILED_RUN, UserError
from genssl.settings import Config
from genssl.training.events import Listener, Note
from genssl.training.options import LoggerName, missing_logger

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."  # prefix of event files
CSV = "metrics.csv"
SESSIONS = "loggers.json"  # the identifier of the run in each service, and the last step that it has
PROJECT = "genssl"  # in Weights & Biases and MLflow, where their variables name no other
# Tags of everything but losses; a loss NAME has the tag NAME/train, and test_NAME has NAME/test. The tags of
# what is measured on a validation split end with its name: NAME/validation
TAGS = {
    "epoch": "progress/epoch",
    "seconds": "progress/seconds",
    "images_per_second": "speed/images_per_second",
    "learning_rate": "learning_rate",
    "output_std": "collapse/output_std",
    "rankme": "collapse/rankme",
    "output_scale": "collapse/output_scale",
    "collapsed": "collapse/collapsed",
    "knn_accuracy": "neighbors/accuracy",
}
Record = Mapping[str, Any]


class Logger(Protocol):
    """Receives the epochs of a run; made with the run folder, its history so far and its settings."""

    address: str  # where a person finds what it writes

    def __init__(self, folder: Path, history: Sequence[Record], config: Config) -> None: ...

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Write an epoch.

        Args:
            record: the epoch's line of the history; what is no finite number is left out.
            previews: the pictures by kind, each (M, C, H, W) in the model's range; mostly there are none.
        """
        ...

    def close(self, *, finished: bool) -> None:
        """Write what is left; `finished`: the training came to its end."""
        ...


class TensorBoardLogger:
    """Writes event files into `tensorboard/` of the run folder.

    What an interrupted run wrote of later steps than its history has is purged.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, history: Sequence[Record], config: Config) -> None:
        writer = imported("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.address = str(folder / FOLDER)
        _put_first(folder / FOLDER)
        # Readers drop what they have read of this step and above, for every tag
        self._writer = writer(log_dir=self.address, purge_step=_last_step(history) + 1)

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Write an epoch; see `Logger`."""
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record["step"])
        for kind, picture in _pictures(previews):
            self._writer.add_image(kind, np.asarray(picture), record["step"], dataformats="HWC")
        self._writer.flush()  # a killed run loses no epoch

    def close(self, *, finished: bool) -> None:
        """Write what is left and close the file."""
        self._writer.close()


class CsvLogger:
    """Writes `metrics.csv` in the run folder: a row per epoch, a column per name of the history.

    A column that later epochs add is empty before. The file is written anew each time, from the history.
    """

    def __init__(self, folder: Path, history: Sequence[Record], config: Config) -> None:
        self._file, self._records = folder / CSV, list(history)
        self.address = str(self._file)

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Write an epoch; see `Logger`."""
        self._records.append(record)
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self._records for name in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._records)
        files.write_text(self._file, text.getvalue())

    def close(self, *, finished: bool) -> None:
        """Every epoch is written already."""


class WandbLogger:
    """Logs to Weights & Biases, into `wandb/` of the run folder first.

    `WANDB_MODE=offline` needs no account; `WANDB_PROJECT`, `WANDB_ENTITY` and the others are wandb's own.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, folder: Path, history: Sequence[Record], config: Config) -> None:
        self._wandb, self._session = imported("wandb"), Session(folder, "wandb")
        identifier = self._session.identifier or uuid.uuid4().hex[:8]
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, id=identifier, resume="allow",
            name=folder.name, dir=str(folder), config=config.model_dump(),
            settings=self._wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._session.begin(identifier)
        address = None if getattr(self._run, "offline", False) else self._run.url
        self.address = str(address or folder / "wandb")

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Write an epoch, unless it was written before the run was interrupted; see `Logger`."""
        if record["step"] <= self._session.step:
            return
        shown = {kind: self._wandb.Image(picture) for kind, picture in _pictures(previews)}
        self._run.log(scalars(record) | shown, step=record["step"])
        self._session.reach(record["step"])

    def close(self, *, finished: bool) -> None:
        """Wait until all is sent."""
        self._run.finish(exit_code=0 if finished else 1)


class MlflowLogger:
    """Logs to MLflow: the server of `MLFLOW_TRACKING_URI`, else a database in `mlflow/` of the run folder.

    Raises:
        UserError: MLflow is not installed.
    """

    def __init__(self, folder: Path, history: Sequence[Record], config: Config) -> None:
        for name in ("mlflow", "alembic"):  # they report every step of making a database
            logging.getLogger(name).setLevel(logging.WARNING)
        self._entities = imported("mlflow", "mlflow.entities")
        self._session = Session(folder, "mlflow")
        local = (folder / "mlflow").absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            local.mkdir(exist_ok=True)
        database = f"sqlite:///{(local / 'mlflow.db').as_posix()}"
        self.address = without_password(uri) if uri else database
        self._client = imported("mlflow").MlflowClient(tracking_uri=uri or database)
        self._run = self._session.identifier or self._create(folder.name, config, None if uri else local)
        self._client.update_run(self._run, status="RUNNING")

    def _create(self, name: str, config: Config, local: Path | None) -> str:
        """A new run with the settings as its parameters; `local`: where files go, if not to a server."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(experiment)
        artifacts = None if local is None else (local / "artifacts").as_uri()
        number = known.experiment_id if known else self._client.create_experiment(experiment, artifacts)
        run = str(self._client.create_run(number, run_name=name).info.run_id)
        settings = [self._entities.Param(k, str(v)[:500]) for k, v in config.model_dump().items()]
        self._client.log_batch(run, params=settings)
        self._session.begin(run)
        return run

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Write an epoch, unless it was written before the run was interrupted; see `Logger`."""
        if record["step"] <= self._session.step:
            return
        now, step = int(1000 * time.time()), record["step"]
        metrics = [self._entities.Metric(tag, value, now, step) for tag, value in scalars(record).items()]
        self._client.log_batch(self._run, metrics=metrics)
        for kind, picture in _pictures(previews):
            self._client.log_image(self._run, picture, artifact_file=f"{kind}/step-{step:08d}.png")
        self._session.reach(step)

    def close(self, *, finished: bool) -> None:
        """Say whether the run is at its end."""
        self._client.set_terminated(self._run, status="FINISHED" if finished else "KILLED")


LOGGERS: Mapping[LoggerName, Callable[[Path, Sequence[Record], Config], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "csv": CsvLogger,
    "mlflow": MlflowLogger,
}


class Session:
    """What a run is called in a service and how far it was written, for when the run is resumed.

    Args:
        folder: of the run.
        name: of the logger.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._name = folder / SESSIONS, name
        known = self._read().get(name)
        known = known if isinstance(known, dict) else {}
        self.identifier = str(known.get("id", ""))  # "": the service has no such run yet
        self.step = int(known.get("step", 0))

    def _read(self) -> dict[str, Any]:
        return files.read_record(self._file) if self._file.exists() else {}

    def begin(self, identifier: str) -> None:
        """Keep the identifier."""
        self.identifier = identifier
        self.reach(self.step)

    def reach(self, step: int) -> None:
        """Keep the step of the last epoch that was written."""
        self.step = step
        files.write_json(self._file, self._read() | {self._name: {"id": self.identifier, "step": step}})


class Loggers:
    """The loggers of a run. One that fails is left out from then on, with a note, and training goes on."""

    def __init__(self, listener: Listener) -> None:
        self._open: dict[str, Logger] = {}
        self._listener = listener

    def start(
        self, names: Sequence[LoggerName], folder: Path, history: Sequence[Record], config: Config
    ) -> None:
        """Start the loggers of these names, before the first step.

        Raises:
            UserError: a package is missing, or a service refuses.
        """
        for name in names:
            try:
                self._open[name] = LOGGERS[name](folder, history, config)
            except UserError:
                self.close(finished=False)
                raise
            except Exception as error:  # of the libraries, each with types of its own
                self.close(finished=False)
                raise UserError(
                    f"--logger {name} did not start: {_reason(error)}; {ADVICE[name]}", FAILED_RUN
                ) from error
            self._listener(Note(f"{name}: {self._open[name].address}"))

    def epoch(self, record: Record, previews: Mapping[str, Tensor]) -> None:
        """Give an epoch to all."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                logger.epoch(record, previews)

    def close(self, *, finished: bool) -> None:
        """Close all."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                logger.close(finished=finished)
        self._open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a network that is gone, a full disk of the service
            del self._open[name]
            self._listener(
                Note(f"warning: --logger {name} failed ({_reason(error)}); training goes on without it")
            )


ADVICE: Mapping[LoggerName, str] = {
    "tensorboard": "omit it",
    "csv": "omit it",
    "wandb": "`wandb login` signs in, WANDB_MODE=offline needs no account",
    "mlflow": "check MLFLOW_TRACKING_URI; without it, a database in the run folder is used",
}


def scalars(record: Record) -> dict[str, float]:
    """The finite numbers of an epoch by their tags; the step is left out."""
    split = record.get("split", "test")
    return {
        tag_of(name, split): float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def tag_of(name: str, split: str = "test") -> str:
    """Where TensorBoard shows a number of the history: what stands before the slash shares a group.

    Args:
        name: of the number.
        split: that is measured while training.
    """
    if name in TAGS:
        is_held_out = split != "test" and (name in figures.HELD_OUT or name == "collapsed")
        return f"{TAGS[name]}/{split}" if is_held_out else TAGS[name]
    prefix = f"{split}_"
    return f"{name.removeprefix(prefix)}/{split}" if name.startswith(prefix) else f"{name}/train"


def without_password(uri: str) -> str:
    """An address as it may be shown: without a user's name and password.

    Examples:
        >>> without_password("https://me:secret@example.org/path")
        'https://example.org/path'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def imported(name: LoggerName, module: str | None = None) -> Any:
    """A module of a logger's package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module or name)
    except ImportError:
        raise missing_logger(name) from None


def _last_step(history: Sequence[Record]) -> int:
    return int(history[-1]["step"]) if history else 0


def _pictures(previews: Mapping[str, Tensor]) -> Iterator[tuple[str, Image.Image]]:
    return ((kind, figures.preview(kind, images)) for kind, images in previews.items())


def _reason(error: Exception) -> str:
    """An error of a library in a line."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _put_first(folder: Path) -> None:
    """Have the event files of earlier sittings read before the next one.

    Readers take them by name, which begins with the time of day in seconds; but a clock may step back between
    two sittings, or differ between two machines. Where it did, the earlier files are renamed in their order.
    """
    earlier = sorted(folder.glob(f"{EVENTS}*"))
    if earlier and earlier[-1].name >= f"{EVENTS}{int(time.time()):010d}":
        for i, file in enumerate(earlier):
            file.rename(folder / f"{EVENTS}{0:010d}.{i:06d}")
