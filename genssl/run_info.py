"""A run on disk: its files, settings, progress and integrity. No torch."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genssl import files, paths
from genssl.errors import FAILED_RUN, UserError, parse_json

if TYPE_CHECKING:
    from genssl.settings import Config

MODEL, CONFIG = paths.MODEL, paths.CONFIG
STATE = "state.safetensors"
HISTORY = "history.jsonl"
ENVIRONMENT = "environment.json"
FORMAT = "1"  # of checkpoints

State = Literal["finished", "stopped by time", "unfinished"]


def state_of(finished: bool, epoch: int, epochs: int) -> State:
    """The state of a run.

    Args:
        finished: whether training came to its end, after the last epoch or by --max-minutes.
        epoch: whole epochs that the weights were trained for.
        epochs: the setting.
    """
    if not finished:
        return "unfinished"
    return "finished" if epoch >= epochs else "stopped by time"


def epochs_of(step: int, steps_per_epoch: int) -> int | float:
    """Steps in epochs: a fraction to two decimals, never rounded to a whole epoch."""
    whole, rest = divmod(step, steps_per_epoch)
    if rest == 0:
        return whole
    return round(whole + min(max(rest / steps_per_epoch, 0.01), 0.99), 2)


def epochs_trained(epoch: int, metrics: Mapping[str, Any]) -> int | float:
    """Epochs that a run's weights were trained for, with the fraction of one that --max-minutes has cut.

    Args:
        epoch: whole epochs.
        metrics: the last record of the history.
    """
    last = metrics.get("epoch", epoch)
    # Earlier versions recorded a fraction of an epoch under the number of the whole one
    return last if isinstance(last, int | float) and epoch <= last < epoch + 1 else epoch


def progress_of(trained: float, epochs: int) -> str:
    """`3.43 of 10`, or `10` when all are done."""
    return f"{trained:,.6g}" if trained >= epochs else f"{trained:,.6g} of {epochs:,}"


def parameters_text(trained: int, total: int) -> str:
    """`1,178,660`, or `12,484,160 trained of 24,441,728` where some are not trained."""
    return f"{trained:,}" if trained == total else f"{trained:,} trained of {total:,}"


def held_out(share: float, training: Mapping[str, Any]) -> str | None:
    """What a run held out of its training, `10 % (443 images)`; None: nothing.

    Args:
        share: the setting.
        training: as in `RunInfo`.
    """
    if share == 0:
        return None
    images = training.get("validation_images")
    return f"{100 * share:.4g} %" + ("" if images is None else f" ({images:,} images)")


@dataclass(frozen=True)
class RunInfo:
    """The metadata of a run's weights.

    Attributes:
        epoch: whole epochs that the weights were trained for.
        finished: whether training came to its end, after the last epoch or by --max-minutes.
        training: what was trained, and on what: "parameters" (trained), "all_parameters", "images" and
            "data_digest" of the train split, "monitor_digest" of the split that was measured meanwhile,
            "data_path", see `data_path`, "classes" where the method was trained on them,
            "validation_images", if any were held out, and "notes" on how it ended, if any. Older files
            do not have it.
    """

    folder: Path
    config: "Config"
    epoch: int
    finished: bool
    metrics: dict[str, Any]
    digest: str
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def state(self) -> State:
        """Whether all epochs are done, time ended the training, or something else did."""
        return state_of(self.finished, self.epoch, self.config.epochs)

    @property
    def held_out(self) -> str | None:
        """What was held out of training, as text; None: nothing."""
        return held_out(self.config.holdout, self.training)

    @property
    def epochs_trained(self) -> float:
        """Epochs that the weights were trained for, with the fraction that --max-minutes has cut."""
        return epochs_trained(self.epoch, self.metrics)


@contextlib.contextmanager
def discreet(path: Path) -> Iterator[None]:
    """Where a link leads out of a run's folder, say that its target is of no use, and nothing of its content.

    Raises:
        UserError: as inside, or that alone.
    """
    try:
        yield
    except UserError:
        if (target := paths.target_outside(path)) is None:
            raise
        raise UserError(
            f"{path} is a link out of its folder, to {target}, which is no such file of a run that this "
            "version can read; put the file itself in its place",
            FAILED_RUN,
        ) from None


def inspect(path: Path, *, outside: bool = True) -> RunInfo:
    """Read the metadata of a run folder or model file, without its tensors.

    Args:
        path: of the folder or the file.
        outside: follow a link that leads out of the run's folder, as one does that somebody named: weights
            are kept on other disks, and by the hub's cache beside its snapshots. Not where runs are found.

    Raises:
        UserError: nothing is there or it is damaged.
    """
    file = model_file(path)
    if not outside:
        files.refuse_outside(file)
    with discreet(file):
        return _inspect(file)


def _inspect(file: Path) -> RunInfo:
    _, metadata = files.read_header(file, outside=True)
    config = config_in(metadata, file)
    try:
        training = _record(metadata.get("training", "{}"))
        if odd := [name for name, kind in TRAINING.items() if not _is(training.get(name, kind()), kind)]:
            raise ValueError(f"no usable {', '.join(odd)}")
        return RunInfo(
            folder=file.parent,
            config=config,
            epoch=_epoch(metadata["epoch"]),
            finished=bool(parse_json(metadata["finished"])),
            metrics=_record(metadata["metrics"]),
            digest=metadata[files.TENSORS if files.TENSORS in metadata else files.SHA256],
            training=training,
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} does not say what it is ({error!s:.200}); restore it", FAILED_RUN) from error


# What else than text would be shown, counted or compared
TRAINING: dict[str, type] = {
    "parameters": int, "all_parameters": int, "images": int, "validation_images": int, "data_digest": str,
    "monitor_digest": str, "data_path": str, "classes": list, "notes": list,
}  # fmt: skip


def _is(value: object, kind: type) -> bool:
    """Whether a value is of a kind; of a list all items are texts."""
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return False
    return isinstance(value, kind)


def _record(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _epoch(text: str) -> int:
    """A count of epochs, which is not negative and not of more digits than any has."""
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"epoch {text:.20}")
    return int(text)


def data_path(path: Path) -> str | None:
    """The absolute path of the data of a run folder, where they were named by a relative one; else None.

    Raises:
        UserError: a file of the run is damaged.
    """
    if (path / ENVIRONMENT).exists() and paths.target_outside(path / ENVIRONMENT) is None:
        recorded = files.read_record(path / ENVIRONMENT).get("data_path")
        return recorded if isinstance(recorded, str) else None
    return inspect(path).training.get("data_path") if (path / MODEL).exists() else None


def trained_digest(path: Path) -> str | None:
    """The digest of the images that a run was trained on, as it recorded it; None where it did not.

    Raises:
        UserError: a file of the run is damaged.
    """
    model, state = path / MODEL, path / STATE
    if model.exists() and (digest := inspect(path).training.get("data_digest")) is not None:
        return str(digest)
    # Older weights do not have it, and the state always did
    return files.read_header(state)[1].get("data_digest") if state.exists() else None


def verify(path: Path) -> list[str]:
    """Check every file that a run is read from; the problems found, none when all is well."""
    folder = model_file(path).parent
    readers = {CONFIG: read_config, ENVIRONMENT: files.read_record, HISTORY: files.read_records}
    problems = [
        problem
        for name, read in readers.items()
        if os.path.lexists(folder / name) and (problem := _problem(read, folder / name))
    ]
    for name in (MODEL, STATE):
        file = folder / name
        if not os.path.lexists(file):
            if name == MODEL:
                problems.append(f"{file} is missing")
            continue
        try:
            with discreet(file):
                tensors, _ = files.read_tensors(file, outside=name == MODEL)
            if name == MODEL:
                inspect(file)
        except UserError as error:
            problems.append(str(error))
            continue
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            problems.append(f"{file} holds values that are not finite")
    return problems


def _problem(read: Callable[[Path], object], file: Path) -> str | None:
    try:
        read(file)
    except UserError as error:
        return str(error)
    return None


def read_config(file: Path) -> "Config":
    """The settings in a config.json, which may be a link, too.

    Raises:
        UserError: they are none, or as in `files.read_text`.
    """
    from genssl import config as configs

    with discreet(file):
        return configs.read(files.read_text(file, outside=True), str(file))


def model_file(path: Path) -> Path:
    """The model file of a run folder, or the file itself.

    Raises:
        UserError: there is none.
    """
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        raise UserError(f"no {MODEL} in {path}; give a run folder, its name, or a method")
    return file


def config_in(metadata: Mapping[str, str], file: Path) -> "Config":
    """The config in a model file's metadata.

    Raises:
        UserError: there is none, or it is of another format.
    """
    version = metadata.get("format", "")
    if version.isdecimal() and (len(version) > 9 or int(version) > int(FORMAT)):
        raise UserError(
            f"{file} is of format {version}, which a newer version wrote; update genssl to use it"
        )
    if "config" not in metadata or metadata.get("format") != FORMAT:
        raise UserError(
            f"{file} is no genssl checkpoint of format {FORMAT}; give one that this version wrote"
        )
    from genssl import config as configs  # pydantic takes a tenth of a second to import

    return configs.read(metadata["config"], str(file))
