"""How a run is carried out, apart from what it is, and with which settings it goes on."""

import importlib.util
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from genssl.errors import UserError, hint
from genssl.settings import Config, differences

if TYPE_CHECKING:
    import torch

LoggerName = Literal["tensorboard", "wandb", "csv", "mlflow"]
BUILT_IN: frozenset[LoggerName] = frozenset({"csv"})  # loggers without a package; others: one of their name
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
        loggers: where the epochs are written, too; see `genssl.training.loggers`.
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
    loggers: tuple[LoggerName, ...] = ()
    auto_resume: bool = False


def resume_hint(folder: Path, options: Options) -> str:
    """How to continue a run that was stopped: the command, on the same devices."""
    from genssl import distributed

    words = ["genssl", "train", "--resume", str(folder)]
    if distributed.world_size() > 1 and distributed.LAUNCHER in os.environ:
        words += ["--gpus", str(distributed.world_size())]
    if options.device != "auto":
        words += ["--device", options.device]
    words += [word for name in options.loggers for word in ("--logger", name)]
    return f"`{shlex.join(words)}` continues"


def checked_loggers(names: Sequence[str]) -> tuple[LoggerName, ...]:
    """The loggers of these names, each once. Their packages are looked for, and not imported.

    Raises:
        UserError: there is no such logger, or its package is not installed.
    """
    known: dict[str, LoggerName] = {name: name for name in get_args(LoggerName)}
    for name in names:
        if name not in known:
            raise UserError(f"no logger {name!r}{hint(name, known)}; there are {', '.join(known)}")
        if known[name] not in BUILT_IN and not _is_installed(name):
            raise missing_logger(known[name])
    return tuple(known[name] for name in dict.fromkeys(names))


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder of this name in the current folder, such as wandb/, can be imported, too: it has no file
    return spec is not None and spec.origin is not None


def missing_logger(name: LoggerName) -> UserError:
    """The error where a logger's package is not installed."""
    return UserError(f"--logger {name} needs a package that is not installed: pip install 'genssl[{name}]'")


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


def prolongation_note(before: Config, config: Config) -> str:
    """What more epochs change, in words: a schedule over the whole run begins to fall later."""
    text = f"{config.epochs} epochs instead of {before.epochs}"
    schedules = {"the learning rate": config.schedule, "tau": getattr(config, "tau_schedule", "constant")}
    falling = [name for name, kind in schedules.items() if kind != "constant"]
    if not falling:
        return text
    names = " and of ".join(falling)
    return f"{text}: the schedule of {names} is now over all of them, and goes on from an earlier value"


def refuse_changes(config: Config, changes: Mapping[str, Any]) -> None:
    """Refuse to resume a run of `config` with other settings.

    Raises:
        UserError: a setting is unknown, or differs from the run's.
    """
    changed = differences(config, config.updated(changes))
    if changed:
        lines = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()]
        raise UserError(f"cannot resume with other settings ({'; '.join(lines)}); start a new run for them")
