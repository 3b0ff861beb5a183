"""Checkpoints: save and load weights as safetensors, never pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genssl import files
from genssl.errors import FAILED_RUN, UserError
from genssl.run_info import FORMAT, MODEL, STATE, discreet, inspect, model_file

if TYPE_CHECKING:
    import torch

    from genssl.models.method import Method
    from genssl.settings import Config


HALF = "torch.float16"


def save(
    method: "Method",
    folder: Path,
    *,
    epoch: int,
    finished: bool,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights for inference, with what is known of them in the metadata: one file is complete.

    Args:
        method: with its config.
        folder: the run's.
        epoch: whole epochs of training.
        finished: whether training came to its end.
        metrics: the last record of the history, and what was measured at the end.
        training: as in `RunInfo`.
    """
    metadata = {
        "format": FORMAT,
        "config": method.config.model_dump_json(),
        "data": method.config.data,
        "epoch": str(epoch),
        "finished": json.dumps(finished),
        "metrics": json.dumps(metrics, allow_nan=False),
        "training": json.dumps(dict(training or {})),
    }
    files.write_tensors(folder / MODEL, method.state_dict(), metadata)


def load(path: Path, device: "torch.device | str" = "cpu") -> "Method":
    """Load weights, verified, in eval mode and without gradients, with their config, epoch and class names.

    Args:
        path: a run folder or a model file.
        device: where to put the method.

    Raises:
        UserError: nothing is there, it is damaged, or it does not fit its own config.
    """
    file = model_file(path)
    with discreet(file):
        return _load(file).to(device).eval().requires_grad_(False)


def _load(file: Path) -> "Method":
    from genssl.models.build import build

    info = inspect(file)
    tensors, _ = files.read_tensors(file, outside=True)
    # Weights that are passed on may be of half the size
    tensors = {
        name: tensor.float() if str(tensor.dtype) == HALF else tensor for name, tensor in tensors.items()
    }
    _check_fit(_expected(info.config, file), tensors, file)
    method = build(info.config)
    method.load_state_dict(tensors)
    method.epoch = info.epochs_trained
    method.class_names = tuple(info.training.get("classes", ()))
    return method


def initialize(method: "Method", path: Path) -> list[str]:
    """Copy the weights of a run; what differs in name or shape keeps its initial values.

    Returns:
        The names of the weights that one side alone has, or in another shape.

    Raises:
        UserError: there are none, as in `check_start`, or none of them fits.
    """
    source = load(path)
    check_start(method.config, source.config, path)
    given, initial = source.state_dict(), method.state_dict()
    fitting = {name for name, value in initial.items() if name in given and value.shape == given[name].shape}
    if not fitting:
        raise UserError(f"no weight of {path} fits these settings; start from another run")
    for name in fitting:
        initial[name].copy_(given[name])
    return [name for name in {**initial, **given} if name not in fitting]


def check_start(config: "Config", source: "Config", path: Path) -> None:
    """Check that training may start from a run: one of the same method, or of any method with its encoder.

    The latter is for a method that is trained on labels: it fine-tunes an encoder that was trained without.

    Raises:
        UserError: the run is of another method, or has another encoder.
    """
    if source.method == config.method:
        return
    theirs, ours = (getattr(settings, "encoder", None) for settings in (source, config))
    if not config.needs_labels or theirs is None:
        raise UserError(f"{path} is a {source.method}, and a {config.method} cannot start from it")
    if theirs != ours:
        raise UserError(
            f"{path} has the encoder {theirs}, and this is for {ours}; add --set encoder={theirs}"
        )


def trained_seconds(folder: Path) -> float:
    """Seconds that a run was trained for, those before it was resumed included; 0 where none were saved."""
    if not (folder / STATE).exists():
        return 0.0
    try:
        return float(files.read_header(folder / STATE)[1].get("elapsed", 0.0))
    except ValueError as error:
        raise UserError(f"{folder / STATE} is damaged ({error}); restore it", FAILED_RUN) from error


def _expected(config: "Config", file: Path) -> "Mapping[str, torch.Tensor]":
    """The weights that a config describes, without memory: a few bytes may ask for a very large network.

    Raises:
        UserError: no network can have these sizes.
    """
    import torch

    from genssl.models.build import build

    try:
        with torch.device("meta"):
            return build(config).state_dict()
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{file} is of no possible network ({reason}); restore it", FAILED_RUN) from error


def _check_fit(
    expected: "Mapping[str, torch.Tensor]", tensors: "Mapping[str, torch.Tensor]", file: Path
) -> None:
    # load_state_dict would let another type and not-a-number pass in silence
    if set(expected) != set(tensors):
        name = min(set(expected) ^ set(tensors))
        raise UserError(f"{file} does not fit its own config: {name} is on one side only", FAILED_RUN)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise UserError(
                f"{file} does not fit its own config: {name} differs in shape or type", FAILED_RUN
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{file} holds values that are not finite; use another run", FAILED_RUN)
