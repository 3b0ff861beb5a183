"""How a run is carried out, apart from what it is, and with which settings it goes on."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genssl.config import Config, differences
from genssl.errors import UserError

if TYPE_CHECKING:
    import torch

COMPILE_PAYS_AFTER = 2000  # steps on CUDA: compiling costs about a minute


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its weights.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps.
        save_every: seconds between saved states; 0 saves after every step.
        max_minutes: end the run cleanly after this many minutes.
        compile: one graph for views, network and losses; auto: on one GPU, for runs long enough to pay.
        tag: added to the run's name.
        out: the run folder, instead of a new one in checkpoints/.
        arm: the run is an ablation's, and its folder is in checkpoints/arms/.
        resident_limit: GiB up to which the train split is held on the device; larger ones are streamed from
            the cache. Half of the free memory when None.
        tensorboard: write events for TensorBoard, too.
        auto_resume: continue the run of these settings if there is one.
    """

    device: str = "auto"
    save_every: float = 60.0
    max_minutes: float | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    tag: str | None = None
    out: Path | None = None
    arm: bool = False
    resident_limit: float | None = None
    tensorboard: bool = False
    auto_resume: bool = False


def continuing(folder: Path, options: Options) -> str:
    """How to continue a run that was stopped: the command, on the same devices."""
    from genssl import distributed

    words = ["genssl", "train", "--resume", str(folder)]
    if distributed.world_size() > 1 and distributed.LAUNCHER in os.environ:
        words += ["--gpus", str(distributed.world_size())]
    if options.device != "auto":
        words += ["--device", options.device]
    return f"`{shlex.join(words)}` continues"


def should_compile(options: Options, device: "torch.device", steps: int) -> bool:
    """Whether to compile: if asked for, or where it pays; several processes were never tried compiled."""
    from genssl import distributed

    if options.compile == "auto":
        return distributed.world_size() == 1 and device.type == "cuda" and steps >= COMPILE_PAYS_AFTER
    return options.compile == "on"


def compiler_problem(device: "torch.device") -> str | None:
    """Why torch.compile does not work here, tried on a tiny function, in a line; None: it does.

    It may have no C compiler, or no name of the user for the folder of its files.
    """
    import torch

    def tiny(x: "torch.Tensor") -> "torch.Tensor":
        return (x.sin() + 1).square().sum()

    try:
        torch.compile(tiny)(torch.ones(64, device=device, requires_grad=True)).backward()
    except Exception as error:  # of the compilers below torch, which have types of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(": ")
    return None


def resumed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings with which a run of `config` goes on: its own, or more epochs.

    Raises:
        UserError: a setting is unknown, or another one than the run's, or epochs are fewer.
    """
    epochs = changes.get("epochs")
    longer = config if epochs is None else config.updated({"epochs": epochs})
    if longer.epochs < config.epochs:
        raise UserError(
            f"the run has {config.epochs} epochs, and --epochs {longer.epochs} is fewer; "
            "--max-minutes ends a run earlier"
        )
    refuse_changes(longer, changes)
    return longer


def refuse_changes(config: Config, changes: Mapping[str, Any]) -> None:
    """Refuse to resume a run of `config` with other settings.

    Raises:
        UserError: a setting is unknown, or differs from the run's.
    """
    changed = differences(config, config.updated(changes))
    if changed:
        lines = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()]
        raise UserError(f"cannot resume with other settings ({'; '.join(lines)}); start a new run for them")
