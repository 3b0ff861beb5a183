"""The runs in checkpoints/: their names, and which of them a REF means."""

import contextlib
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genssl import config as configs
from genssl import files, hub, paths, run_info
from genssl.data.registry import short_name
from genssl.errors import FAILED_RUN, UserError, hint
from genssl.settings import Config, differences


def known(method: str | None = None, *, arms: bool = False) -> list[run_info.RunInfo]:
    """The readable runs, newest last; only those of `method` if given; with `arms`, also of ablations."""
    infos = []
    models = [file for parent in paths.parents(arms=arms) for file in parent.glob(f"*/{run_info.MODEL}")]
    for file in sorted(models, key=lambda file: file.lstat().st_mtime):
        try:
            info = run_info.inspect(file, outside=False)
        except UserError:
            continue
        if method is None or info.config.method == method:
            infos.append(info)
    return infos


CONDITION = re.compile(r"([A-Za-z_][\w.]*)\s*(=|<|>)\s*(.+)")


@dataclass(frozen=True)
class Condition:
    """What a listed run fulfills: a setting or number of this name is equal to, below or above a value."""

    key: str
    operator: str
    value: str

    def holds(self, info: run_info.RunInfo) -> bool:
        """Whether a run fulfills it; one without this setting or number does not."""
        actual = value_of(info, self.key)
        if self.operator == "=":
            number = _number(self.value)
            is_equal_number = number is not None and _number(actual) == number
            return is_equal_number or str(actual).lower() == self.value.lower()
        left, right = _number(actual), _number(self.value)
        if left is None or right is None:
            return False
        return left < right if self.operator == "<" else left > right


def condition(text: str) -> Condition:
    """Read `data=cifar10`, `epochs>10` or `loss<0.1`.

    Raises:
        UserError: it is none.
    """
    match = CONDITION.fullmatch(text.strip())
    if match is None or (match[2] != "=" and _number(match[3]) is None):
        raise UserError(f"--filter takes data=cifar10, epochs>10 or loss<0.1, not {text!r}")
    return Condition(*match.groups())


def value_of(info: run_info.RunInfo, key: str) -> Any:
    """A setting of a run, one of its last numbers, or its name, state or epoch; None where it has none."""
    progress = {"run": info.name, "state": info.state, "epoch": info.epochs_trained}
    for values in (progress, info.config.model_dump(), info.metrics):
        if key in values:
            return values[key]
    return None


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def select(
    infos: Sequence[run_info.RunInfo],
    conditions: Sequence[Condition] = (),
    sort: str | None = None,
    descending: bool = False,
) -> list[run_info.RunInfo]:
    """The runs that fulfill all conditions, sorted by a setting or number; those without it come last.

    Raises:
        UserError: no run has such a setting or number.
    """
    for key in [*(one.key for one in conditions), *([sort] if sort else [])]:
        if infos and all(value_of(info, key) is None for info in infos):
            raise UserError(f"no run has a setting or number {key}; `genssl runs show RUN` names them")
    chosen = [info for info in infos if all(one.holds(info) for one in conditions)]
    if sort is None:
        return chosen
    having = [info for info in chosen if value_of(info, sort) is not None]
    without = [info for info in chosen if value_of(info, sort) is None]
    return sorted(having, key=lambda info: _order(value_of(info, sort)), reverse=descending) + without


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers by size, before texts by letters."""
    number = _number(value)
    return (False, number, "") if number is not None else (True, 0.0, str(value))


def removable(reference: str) -> Path:
    """The folder of a run that may be deleted, finished or not.

    Raises:
        UserError: there is none, it comes with genssl, or a process trains it.
    """
    candidates = [parent / reference for parent in paths.parents(arms=True)] + [Path(reference)]
    run_folders = (folder for folder in candidates if folder.is_dir() and _has_run(folder))
    folder = next(run_folders, None)
    if folder is None:
        raise UserError(f"no run folder {reference} to remove; `genssl runs list` names them")
    if paths.is_shipped(folder):
        raise UserError(f"{folder} comes with genssl and stays")
    files.FolderLock(folder, f"{folder} is being trained by another process; stop that first").release()
    return folder


def _has_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (run_info.MODEL, run_info.CONFIG))


def remove(folder: Path) -> None:
    """Delete a run folder, or a link to one; nothing that links inside it lead to is touched.

    Raises:
        UserError: a file cannot be deleted.
    """
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename} ({error.strerror})", FAILED_RUN) from error


def folders() -> list[str]:
    """The names of all run folders in the folder of runs, readable or not."""
    return sorted(
        {
            file.parent.name
            for name in (run_info.MODEL, run_info.CONFIG)
            for file in paths.runs_root().glob(f"*/{name}")
        }
    )


def find(reference: str, method: str | None = None, data: str | None = None) -> Path:
    """Resolve REF to a run folder or model file.

    Args:
        reference: a method's name, the name of a run in the folder of runs, or a path. A method's name
            means its newest finished run, else its newest one that was stopped by time after an epoch or
            more, else the shipped weights. hf:OWNER/NAME is a run on the Hugging Face hub.
        method: refuse anything of another method.
        data: of a method's runs, take only those trained on these data.

    Raises:
        UserError: nothing is there, or it is of another method.
    """
    path = hub.download(reference) if hub.is_hub(reference) else _named(reference) or _newest(reference, data)
    if path is None:
        names = [info.name for info in known()]
        guess = hint(reference, dict.fromkeys([*names, *configs.methods()]))
        shipped = sorted(file.parent.name for file in paths.shipped_root().glob(f"*/{run_info.MODEL}"))
        raise UserError(
            f"no run {reference!r} in {paths.runs_root()}/ and no such path{guess}; name a run, a path, or a "
            f"method whose weights ship ({', '.join(shipped)}); runs: {', '.join(names[-5:]) or 'none yet'}"
        )
    if method is not None and (actual := run_info.inspect(path).config.method) != method:
        raise UserError(f"{path} holds a {actual}, and this needs a {method}; choose another --checkpoint")
    return path


def find_several(references: Sequence[str]) -> list[Path]:
    """The run folders that REFs mean, those of ablations by their name, too.

    Raises:
        UserError: fewer than two, the same run twice, no such run, or a model file without its folder.
    """
    if len(references) < 2:
        raise UserError(
            f"compare takes two or more runs, not {len(references)}; `genssl runs list` names them"
        )
    references_by_folder: dict[Path, str] = {}
    folders: list[Path] = []
    for reference in references:
        folder = _run_folder(reference)
        path = folder.resolve()
        if path in references_by_folder:
            first = references_by_folder[path]
            raise UserError(f"{first} and {reference} are the same run, {folder}; name another one")
        references_by_folder[path] = reference
        folders.append(folder)
    return folders


def _run_folder(reference: str) -> Path:
    arm = paths.parents(arms=True)[-1] / reference
    return arm if (arm / run_info.MODEL).exists() else find_folder(reference)


def find_folder(reference: str) -> Path:
    """`find`, for what needs more of a run than its weights.

    Raises:
        UserError: as in `find`, or it is a model file without its folder.
    """
    path = find(reference)
    if path.is_file() and path.name != run_info.MODEL:
        raise UserError(f"{path} is a file; name its run folder, with {run_info.MODEL} in it")
    return path if path.is_dir() else path.parent


def find_unfinished(reference: str) -> Path:
    """Resolve what --resume names to a run folder: a path, a run's name, or a method's newest unfinished run.

    Raises:
        UserError: there is none.
    """
    for path in (paths.runs_root() / reference, Path(reference)):
        if path.is_dir():
            return path
    method = reference.lower().replace("-", "_")
    unfinished = [info for info in known(method) if info.state != "finished"]
    if not unfinished:
        raise UserError(f"no run folder {reference} to resume; `genssl runs list` names them")
    return unfinished[-1].folder


def _named(reference: str) -> Path | None:
    for path in (paths.runs_root() / reference, Path(reference)):
        if (path / run_info.MODEL).exists() or path.is_file():
            return path
        if (path / run_info.CONFIG).exists():
            raise UserError(f"{path} has no weights yet: let it train, or `genssl train --resume {path}`")
    return None


def _newest(reference: str, data: str | None) -> Path | None:
    method = reference.lower().replace("-", "_")
    if method not in configs.methods():
        return None
    usable = [info for info in known(method) if info.finished and data in {None, info.config.data}]
    best = max(reversed(usable), key=_rank, default=None)
    if best is not None and (best.epoch > 0 or data is not None):
        return best.folder
    if data is not None:
        raise UserError(
            f"no finished {method} run on {data} in {paths.runs_root()}/; omit --data, or train one"
        )
    shipped = paths.shipped_root() / method
    if (shipped / run_info.MODEL).exists():
        return shipped
    if best is not None:  # stopped within its first epoch
        return best.folder
    advice = f"train one with `genssl train {method}`"
    if unfinished := known(method):
        advice += f", or name the unfinished {unfinished[-1].name}"
    raise UserError(f"no finished {method} run in {paths.runs_root()}/; {advice}")


def _rank(info: run_info.RunInfo) -> tuple[bool, bool]:
    """A run whose epochs are all done comes first, one that time stopped within its first epoch last."""
    return info.state == "finished", info.epoch > 0


def check_tag(tag: str | None) -> None:
    """Refuse a tag that a run's name would not show as it is.

    Raises:
        UserError: it holds other characters, or too many.
    """
    if tag and re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", tag) is None:
        raise UserError(f"--tag {tag!r} is no part of a name; use up to 100 of A-Z, a-z, 0-9, -, _ and .")


def run_name(config: Config, tag: str | None) -> str:
    """<method>-<data>[-tag], in characters that every file system takes."""
    parts = [config.method, short_name(config.data), *([tag] if tag else [])]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") or "data" for part in parts)


def begun(
    config: Config, tag: str | None = None, out: Path | None = None, *, arm: bool = False
) -> Path | None:
    """The run that a command with these settings would have begun; None when there is none.

    `out` itself where it is given and a run, whatever its settings; else the newest of <root>[/arms]/<name>,
    -2, -3, ... that has the same settings.
    """
    if out is not None:
        return out if (out / run_info.CONFIG).exists() else None
    parent, name = paths.parents(arms=arm)[-1], run_name(config, tag)
    numbered = re.compile(re.escape(name) + r"(-\d+)?")
    same = [
        file
        for file in parent.glob(f"*/{run_info.CONFIG}")
        if numbered.fullmatch(file.parent.name) and _is_of(file, config)
    ]
    return max(same, key=lambda file: file.stat().st_mtime).parent if same else None


def _is_of(file: Path, config: Config) -> bool:
    """Whether a stored config is that of a run that these settings began, which may have read its classes."""
    try:
        return not differences(config, run_info.read_config(file))
    except UserError:
        return False


def check_free(out: Path) -> None:
    """Refuse a folder for a new run that holds something, or is a file.

    Raises:
        UserError: it does.
    """
    if out.is_file() or (out.is_dir() and not files.is_empty(out)):
        raise UserError(f"{out} exists; choose another --out, or --resume it")


def read_config(folder: Path) -> Config:
    """The settings of a run folder, which may have no weights yet.

    Raises:
        UserError: it is no run folder.
    """
    file = folder / run_info.CONFIG
    if not file.exists():
        raise UserError(f"{folder} is no run folder (any more): it has no {run_info.CONFIG}", FAILED_RUN)
    return run_info.read_config(file)


def new_folder(
    config: Config, tag: str | None = None, out: Path | None = None, *, arm: bool = False
) -> tuple[Path, files.FolderLock]:
    """A folder for a run that no other run has, and its lock: `out`, else <root>[/arms]/<name>[-2, -3, ...].

    A folder is taken again where a process was killed before it wrote the settings.

    Raises:
        UserError: `out` exists and is not empty, or another process is about to use it.
    """
    if out is not None:
        check_free(out)
        out.mkdir(parents=True, exist_ok=True)
        return out, files.FolderLock(out, f"another process is training {out}; choose another --out")
    parent = paths.parents(arms=arm)[-1]
    parent.mkdir(parents=True, exist_ok=True)
    name, count = run_name(config, tag), 1
    while True:
        folder = parent / (name if count == 1 else f"{name}-{count}")
        if (lock := _make(folder)) is not None:
            return folder, lock
        count += 1


def _make(folder: Path) -> files.FolderLock | None:
    """The lock of a folder that is made, or that a kill has left without settings; None: it is taken."""
    try:
        folder.mkdir()
        is_new = True
    except FileExistsError:
        is_new = False
        if not _is_unused(folder):
            return None
    try:
        lock = files.FolderLock(folder, f"another process has {folder}")
    except UserError:  # it has made it just now, and not written to it yet
        return None
    # While this one waited another may have written to it; without locks it may be about to
    if _is_unused(folder) and (is_new or lock.is_held):
        return lock
    lock.release()
    return None


def _is_unused(folder: Path) -> bool:
    """Whether a folder is there, and holds nothing but what a killed process has left."""
    with contextlib.suppress(OSError):
        return folder.is_dir() and not folder.is_symlink() and files.is_empty(folder)
    return False
