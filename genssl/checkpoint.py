"""Checkpoints: safetensors and JSON, never pickle. Save, load, inspect, verify.

`inspect` reads headers, and does so without torch, which takes seconds to import.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genssl import config as configs
from genssl import files
from genssl.errors import FAILED_RUN, UserError
from genssl.settings import Config
from genssl.states import State, epochs_trained, state_of

if TYPE_CHECKING:
    import torch

    from genssl.models.method import Method

MODEL = "model.safetensors"
STATE = "state.safetensors"
CONFIG = "config.json"
HISTORY = "history.jsonl"
ENVIRONMENT = "environment.json"
FORMAT = "1"


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says about itself.

    Attributes:
        epoch: whole epochs that the weights have seen.
        finished: the weights were written at the end of a training: the last epoch's or --max-minutes'.
    """

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

    @property
    def state(self) -> State:
        """Whether all epochs are done, time ended the training, or something else did."""
        return state_of(self.finished, self.epoch, self.config.epochs)

    @property
    def epochs_trained(self) -> float:
        """The epochs that the weights have seen, with the part of one that --max-minutes has cut."""
        return epochs_trained(self.epoch, self.metrics)


def save(method: "Method", folder: Path, *, epoch: int, finished: bool, metrics: Mapping[str, Any]) -> None:
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


def load(path: Path, device: "torch.device | str" = "cpu") -> "Method":
    """Load weights, verified, in eval mode and without gradients, with their `.config` and `.epoch`.

    Args:
        path: a run folder or a model file.
        device: where to put the method.

    Raises:
        UserError: nothing is there, it is damaged, or it does not fit its own config.
    """
    from genssl.models.build import build

    file = _model_file(path)
    tensors, metadata = files.read_tensors(file)
    config = _config_in(metadata, file)
    method = build(config)
    _check_fit(method, tensors, file)
    method.load_state_dict(tensors)
    method.epoch = int(metadata["epoch"])
    return method.to(device).eval().requires_grad_(False)


def inspect(path: Path) -> RunInfo:
    """What a run folder or model file says about itself, without reading its tensors.

    Raises:
        UserError: nothing is there or it is damaged.
    """
    file = _model_file(path)
    _, metadata = files.read_header(file)
    config = _config_in(metadata, file)
    try:
        return RunInfo(
            folder=file.parent,
            config=config,
            epoch=int(metadata["epoch"]),
            finished=bool(json.loads(metadata["finished"])),
            metrics=json.loads(metadata["metrics"]),
            digest=metadata["sha256"],
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} does not say what it is ({error!r}); restore it", FAILED_RUN) from error


def trained_seconds(folder: Path) -> float:
    """The seconds that a run has been trained for, over all sittings; 0 where none were saved."""
    from safetensors import SafetensorError, safe_open

    if not (folder / STATE).exists():
        return 0.0
    try:
        with safe_open(folder / STATE, framework="pt") as opened:
            return float((opened.metadata() or {}).get("elapsed", 0.0))
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{folder / STATE} is damaged ({error}); restore it", FAILED_RUN) from error


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


def _check_fit(method: "Method", tensors: "Mapping[str, torch.Tensor]", file: Path) -> None:
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
