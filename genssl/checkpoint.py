"""Checkpoints: safetensors and JSON, never pickle. Save, load, find, inspect, verify."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genssl import config as configs
from genssl import files
from genssl.config import Config
from genssl.errors import FAILED_RUN, UserError
from genssl.models.build import build
from genssl.models.method import Method

MODEL = "model.safetensors"
STATE = "state.safetensors"
CONFIG = "config.json"
HISTORY = "history.jsonl"
ENVIRONMENT = "environment.json"
FORMAT = "1"


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says about itself."""

    folder: Path
    config: Config
    epoch: int
    finished: bool
    metrics: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


def root() -> Path:
    """Where runs live: GENSSL_CHECKPOINTS, else ./checkpoints."""
    return Path(os.environ.get("GENSSL_CHECKPOINTS", "checkpoints"))


def shipped_root() -> Path:
    """The weights of the repository."""
    return Path(__file__).parent.parent / "checkpoints" / "shipped"


def save(method: Method, folder: Path, *, epoch: int, finished: bool, metrics: Mapping[str, Any]) -> None:
    """Write the weights for inference with what they are, so that one file stands for itself."""
    metadata = {
        "format": FORMAT,
        "config": method.config.model_dump_json(),
        "data": method.config.data,
        "epoch": str(epoch),
        "finished": json.dumps(finished),
        "metrics": json.dumps(metrics, allow_nan=False),
    }
    files.write_tensors(folder / MODEL, method.state_dict(), metadata)


def load(path: Path, device: torch.device | str = "cpu") -> Method:
    """Load weights, verified, in eval mode and without gradients; `.config` holds the settings.

    Args:
        path: a run folder or a model file.
        device: where to put the method.

    Raises:
        UserError: nothing is there, it is damaged, or it does not fit its own config.
    """
    file = _model_file(path)
    tensors, metadata = files.read_tensors(file)
    config = _config_in(metadata, file)
    method = build(config)
    _check_fit(method, tensors, file)
    method.load_state_dict(tensors)
    return method.to(device).eval().requires_grad_(False)


def inspect(path: Path) -> RunInfo:
    """What a run folder or model file says about itself, without reading its tensors.

    Raises:
        UserError: nothing is there or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = _model_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it", FAILED_RUN) from error
    return RunInfo(
        folder=file.parent,
        config=_config_in(metadata, file),
        epoch=int(metadata["epoch"]),
        finished=bool(json.loads(metadata["finished"])),
        metrics=json.loads(metadata["metrics"]),
        digest=metadata.get("sha256", ""),
    )


def verify(path: Path) -> list[str]:
    """Check every file of a run folder; the problems found, none when all is well."""
    problems = []
    folder = _model_file(path).parent
    for name in (MODEL, STATE):
        file = folder / name
        if not file.exists():
            if name == MODEL:
                problems.append(f"{file} is missing")
            continue
        try:
            tensors, _ = files.read_tensors(file)
        except UserError as error:
            problems.append(str(error))
            continue
        if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
            problems.append(f"{file} holds values that are not finite")
    return problems


def runs(method: str | None = None) -> list[RunInfo]:
    """The readable runs in `root()`, newest last; only those of `method` when it is given."""
    found = []
    folders = sorted(root().glob(f"*/{MODEL}"), key=lambda file: file.stat().st_mtime)
    for file in folders:
        try:
            info = inspect(file)
        except UserError:
            continue
        if method is None or info.config.method == method:
            found.append(info)
    return found


def find(reference: str, method: str | None = None) -> Path:
    """Resolve REF to a run folder or model file.

    Args:
        reference: a method's name (its newest finished run, else the shipped weights), the name of a
            run in `root()`, or a path.
        method: refuse anything of another method.

    Raises:
        UserError: nothing is there, or it is of another method.
    """
    path = _named(reference) or _newest(reference)
    if path is None:
        known = ", ".join(info.name for info in runs()[-5:]) or "none yet"
        raise UserError(f"no run {reference!r} in {root()}/ and no such path; runs: {known}")
    if method is not None and (actual := inspect(path).config.method) != method:
        raise UserError(f"{path} holds a {actual}, and this needs a {method}; choose another --checkpoint")
    return path


def _named(reference: str) -> Path | None:
    for path in (root() / reference, Path(reference)):
        if (path / MODEL).exists() or path.is_file():
            return path
        if (path / CONFIG).exists():
            raise UserError(f"{path} has no weights yet: let it train, or `genssl train --resume {path}`")
    return None


def _newest(reference: str) -> Path | None:
    method = reference.lower().replace("-", "_")
    if method not in configs.methods():
        return None
    finished = [info for info in runs(method) if info.finished]
    if finished:
        return finished[-1].folder
    shipped = shipped_root() / method
    if (shipped / MODEL).exists():
        return shipped
    hint = f"train one with `genssl train {method}`"
    if unfinished := runs(method):
        hint += f", or name the unfinished {unfinished[-1].name}"
    raise UserError(f"no finished {method} run in {root()}/; {hint}")


def run_name(config: Config, tag: str | None) -> str:
    """<method>-<data>[-tag], in characters that every file system takes."""
    data = Path(config.data).name.split(".")[0] or Path(config.data).resolve().name
    parts = [config.method, data, *([tag] if tag else [])]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") or "data" for part in parts)


def new_folder(config: Config, tag: str | None = None, out: Path | None = None) -> Path:
    """Make a folder for a run that no other run has: `out`, else <root>/<name>[-2, -3, ...].

    Raises:
        UserError: `out` exists and is not empty.
    """
    if out is not None:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UserError(f"{out} exists; choose another --out, or --resume it")
        out.mkdir(parents=True, exist_ok=True)
        return out
    root().mkdir(parents=True, exist_ok=True)
    name, count = run_name(config, tag), 1
    while True:
        folder = root() / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
            continue
        return folder


def _model_file(path: Path) -> Path:
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        raise UserError(f"no {MODEL} in {path}; give a run folder, its name, or a method")
    return file


def _config_in(metadata: Mapping[str, str], file: Path) -> Config:
    if "config" not in metadata or metadata.get("format") != FORMAT:
        raise UserError(
            f"{file} is no genssl checkpoint of format {FORMAT}; give one that this version wrote"
        )
    return configs.read(metadata["config"], str(file))


def _check_fit(method: Method, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    # load_state_dict would let another type and not-a-number pass in silence
    expected = method.state_dict()
    if set(expected) != set(tensors):
        odd = sorted(set(expected) ^ set(tensors))[0]
        raise UserError(f"{file} does not fit its own config: {odd} is on one side only", FAILED_RUN)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise UserError(
                f"{file} does not fit its own config: {name} differs in shape or type", FAILED_RUN
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{file} holds values that are not finite; use another run", FAILED_RUN)
