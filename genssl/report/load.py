"""Runs and studies, read from disk without torch."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genssl import files, run_info
from genssl.data.registry import short_name
from genssl.errors import UserError
from genssl.hub import download, is_hub
from genssl.paths import ABOUT, ARMS, LABEL, REPORT, is_shipped, is_writable_run, runs_root, shipped_root
from genssl.run_info import CONFIG, ENVIRONMENT, HISTORY, MODEL, RunInfo, State, progress_of

OF_GENSSL = "the weights that come with genssl"
STUDIES = ("ablate", "compare")
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder; what is missing is empty or None.

    Attributes:
        arm: it belongs to an ablation, and a method's name does not mean it.
        info: what its weights say of themselves.
        evaluations: by the name of their file, without those of studies.
        shipped: what the folder says of its weights where they are those of the repository.
        written: when it last became better, in seconds of the system's clock.
    """

    folder: Path
    arm: bool
    config: Record
    origin: Record
    history: list[Record]
    evaluations: dict[str, Record]
    info: RunInfo | None
    shipped: str | None
    written: float

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def method(self) -> str:
        """The method's name, or a question mark."""
        return str(self.config.get("method") or "?")

    @property
    def data(self) -> str:
        """The name of what it was trained on, without folders and suffixes."""
        return data_name(self.config.get("data"))

    @property
    def state(self) -> State:
        """Whether all epochs are done, time ended the training, or something else did."""
        return "unfinished" if self.info is None else self.info.state

    @property
    def epochs(self) -> float | None:
        """How many epochs the weights have seen; what the history says where there are none."""
        if self.info is not None:
            return self.info.epochs_trained
        return self.history[-1].get("epoch") if self.history else None

    @property
    def training(self) -> Record:
        """What the weights say of their training: images, parameters, notes; {} in older files."""
        return dict(self.info.training) if self.info is not None else {}

    @property
    def held_out(self) -> str | None:
        """What was held out of training for validation, as text; None: nothing."""
        share = self.config.get("holdout", 0)
        return run_info.held_out(share, self.training) if isinstance(share, int | float) else None

    @property
    def progress(self) -> str:
        """How many epochs were trained, of how many; a hyphen where that is not known."""
        done, planned = self.epochs, self.config.get("epochs")
        if not isinstance(done, int | float):
            return "-"
        return progress_of(done, planned if isinstance(planned, int) else 0)

    @property
    def seconds(self) -> Any:
        """Of the whole training; None where nothing tells."""
        return self.history[-1].get("seconds") if self.history else None

    @property
    def images_per_second(self) -> float | None:
        """The median over epochs."""
        speeds = [record.get("images_per_second") for record in self.history]
        return (
            statistics.median(known) if (known := [v for v in speeds if isinstance(v, int | float)]) else None
        )


@dataclass(frozen=True)
class Study:
    """What an ablation or a comparison left behind.

    Attributes:
        kind: ablate or compare.
        pictures: by the name of their file.
    """

    folder: Path
    kind: str
    values: Record
    pictures: dict[str, Path]
    written: float


@dataclass
class Contents:
    """Everything that a page is about.

    Attributes:
        folders: the folders of runs that were looked through.
        title: of the page, where one of them gives it.
        notes: what they say of themselves.
        problems: what could not be read.
    """

    runs: list[Run] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    title: str | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def read(self, file: Path) -> Record:
        """The JSON object in a file; {} where there is none, or none that can be read."""
        if not os.path.lexists(file):
            return {}
        try:
            return files.read_record(file)
        except UserError as error:
            self.problems.append(str(error))
            return {}

    def add_folder(self, folder: Path) -> None:
        """Every run and study of a folder of runs, and what it says of itself."""
        self.folders.append(folder)
        details = self.read(folder / ABOUT)
        self.title = self.title or _text(details.get("title"))
        self.notes += [note for note in _list(details.get("notes")) if isinstance(note, str)]
        for child in _folders(folder, self.problems):
            self.add(child)
        for child in _folders(folder / ARMS, self.problems):
            self.add(child, arm=True)

    def add(self, folder: Path, *, arm: bool = False) -> None:
        """A run's or a study's folder, once; nothing where it is neither."""
        known = [run.folder for run in self.runs] + [study.folder for study in self.studies]
        try:
            if any(folder.samefile(item) for item in known):
                return
            if is_run(folder):
                self.runs.append(_read_run(folder, arm, self))
            self.studies += [_read_study(folder, kind, self) for kind in STUDIES if is_study(folder, kind)]
        except OSError as error:
            self.problems.append(f"cannot read {folder} ({error.strerror or error})")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any(os.path.lexists(folder / name) for name in (MODEL, CONFIG))


def is_study(folder: Path, kind: str | None = None) -> bool:
    """Whether a folder is a study's, of this kind if one is given."""
    return any(os.path.lexists(folder / f"{name}.json") for name in ([kind] if kind else STUDIES))


def is_runs_folder(folder: Path) -> bool:
    """Whether a folder holds runs or studies."""
    children = [*_folders(folder, []), *_folders(folder / ARMS, [])]
    return any(is_run(child) or is_study(child) for child in children)


def is_of_study(file: Path) -> bool:
    """Whether a file in eval/ of a run is a study's, whose own table and figure show it."""
    return file.stem.split("-")[0] in STUDIES


def recorded(values: Record) -> str:
    """The command that the numbers say has made them; empty in older files."""
    command = values.get("command")
    return command if isinstance(command, str) else ""


def data_name(data: object) -> str:
    """photos of ../data/photos.tar.gz, as split names have it."""
    text = _text(data)
    return short_name(text) if text else "?"


def _folders(folder: Path, problems: list[str]) -> list[Path]:
    """The folders in a folder; none where it is none, or cannot be read, which is a problem."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    except OSError as error:
        problems.append(f"cannot read {folder} ({error.strerror or error})")
        return []


def _read_run(folder: Path, arm: bool, contents: Contents) -> Run:
    info = _read_info(folder / MODEL, contents.problems)
    results = [file for file in sorted((folder / "eval").glob("*.json")) if not is_of_study(file)]
    evaluations = {file.stem: contents.read(file) for file in results}
    dated = folder / MODEL if info else folder / CONFIG if (folder / CONFIG).exists() else folder
    return Run(
        folder=folder,
        arm=arm,
        config=contents.read(folder / CONFIG) or (info.config.model_dump() if info else {}),
        origin=contents.read(folder / ENVIRONMENT),
        history=_read_history(folder / HISTORY, contents.problems),
        evaluations={name: values for name, values in evaluations.items() if values},
        info=info,
        shipped=_shipped(folder, contents.problems),
        written=dated.stat().st_mtime,
    )


def _read_info(file: Path, problems: list[str]) -> RunInfo | None:
    """What a model file says of itself; None where it is not there or is damaged."""
    try:
        return run_info.inspect(file, outside=False) if os.path.lexists(file) else None
    except UserError as error:
        problems.append(str(error))
        return None


def _shipped(folder: Path, problems: list[str]) -> str | None:
    note = folder / LABEL
    if os.path.lexists(note):
        try:
            return files.read_text(note).strip() or OF_GENSSL
        except UserError as error:
            problems.append(str(error))
    return OF_GENSSL if is_shipped(folder) else None


def _read_study(folder: Path, kind: str, contents: Contents) -> Study:
    file = folder / f"{kind}.json"
    pictures = {item.stem: item for item in sorted(folder.glob(f"{kind}*.png"))}
    return Study(folder, kind, contents.read(file), pictures, os.lstat(file).st_mtime)


def _read_history(file: Path, problems: list[str]) -> list[Record]:
    """The records of a history, without those that cannot be read."""
    if not os.path.lexists(file):
        return []
    try:
        return files.read_records(file, problems)
    except UserError as error:
        problems.append(str(error))
        return []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def gather(references: Sequence[str]) -> Contents:
    """What the REFs mean; everything in `runs_root()` where there are none.

    Args:
        references: a run (a method, a name or a path), a study's folder, or a folder of runs and studies.

    Raises:
        UserError: one of them means nothing, or nothing is there at all.
    """
    result = Contents()
    if not references:
        result.add_folder(runs_root())
    for reference in references:
        _add(reference, result)
    if not result.runs and not result.studies:
        where = ", ".join(references) or f"{runs_root()}/"
        raise UserError(
            f"no run and no study in {where}; `genssl train vae` makes one, or name a folder of runs"
        )
    return result


def usual_page(contents: Contents) -> Path:
    """Where the page goes: into the folder or run that it is about, if that is one and takes it."""
    details = [*contents.folders, *(run.folder for run in contents.runs if not contents.folders)]
    folder = details[0] if len(details) == 1 else runs_root()
    is_closed = folder.exists() and not is_writable_run(folder)
    return Path(REPORT) if is_closed or folder.resolve() == shipped_root().resolve() else folder / REPORT


def ranked(runs: Sequence[Run], method: str) -> list[Run]:
    """The runs of a method: finished ones first, then those stopped by time; one's own before shipped ones,
    the newest first.
    """
    current = [run for run in runs if run.method == method and not run.arm]
    states = ("unfinished", "stopped by time", "finished")
    return sorted(
        current, key=lambda run: (states.index(run.state), not run.shipped, run.written), reverse=True
    )


def _add(reference: str, contents: Contents) -> None:
    path = download(reference) if is_hub(reference) else Path(reference)
    if path.is_file() and path.name != MODEL:
        raise UserError(f"{path} is a file; name its run folder, with {MODEL} in it")
    for folder in (
        runs_root() / reference,
        runs_root() / ARMS / reference,
        path.parent if path.is_file() else path,
    ):
        if is_run(folder) or is_study(folder):
            return contents.add(folder)
    if is_runs_folder(path):
        return contents.add_folder(path)
    if path.is_dir():
        raise UserError(f"{path} holds no run and no study; `genssl runs list` names those of {runs_root()}/")
    method = reference.lower().replace("-", "_")
    everything = Contents()
    everything.add_folder(runs_root())
    current = [*(run.folder for run in ranked(everything.runs, method)), shipped_root() / method]
    if not is_run(current[0]):
        raise UserError(
            f"no run {reference!r} in {runs_root()}/, and no such folder of runs; "
            "`genssl runs list` names them"
        )
    return contents.add(current[0])
