"""Start a run, or resume one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from genssl import runs
from genssl.data.load import load
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.runtime import choose_device
from genssl.settings import Config, differences
from genssl.train.events import Listener, Loading, Note, silent
from genssl.train.folder import RunFolder
from genssl.train.options import Options
from genssl.train.runner import Run


def start(config: Config, options: Options, listen: Listener = silent) -> Path:
    """Train a new run to its end; returns its folder.

    Raises:
        UserError: the data or device is not to be had, the run was stopped, or a loss was not finite.
    """
    train, test = load_splits(config, choose_device(options.device), listen)
    run = Run(config, options, listen, train, test)
    folder = RunFolder(runs.new_folder(config, options.tag, options.out, arm=options.arm))
    try:
        folder.write_start(config, train.images.device)
        return run.go(folder)
    finally:
        folder.release()


def resume(path: Path, changes: Mapping[str, Any], options: Options, listen: Listener = silent) -> Path:
    """Continue an interrupted run from its last saved step; returns its folder.

    Args:
        path: the run folder.
        changes: settings asked for; each must equal the run's own.
        options: as for `start`; tag and out are the run's own.
        listen: told what happens.

    Raises:
        UserError: it is no run, a setting differs, or as in `start`.
    """
    if not path.is_dir():
        raise UserError(f"no run folder {path} to resume; `genssl runs list` names them")
    folder = RunFolder(path)
    try:
        config = folder.read_config()
        _refuse_changes(config, changes)
        if folder.is_complete(config.epochs):
            listen(Note(f"{path} is complete: all {config.epochs} epochs are done, nothing is left to do"))
            return path
        train, test = load_splits(config, choose_device(options.device), listen)
        run = Run(config, options, listen, train, test)
        run.restore(folder)
        return run.go(folder)
    finally:
        folder.release()


def load_splits(config: Config, device: torch.device, listen: Listener) -> tuple[Split, Split]:
    """The config's train split, limited, and its test split, on the device."""

    def load_part(part: Literal["train", "test"]) -> Split:
        return load(
            config.data,
            part,
            image_size=config.image_size,
            seed=config.seed,
            skip_bad=config.skip_bad,
            progress=lambda text, done, total: listen(Loading(text, done, total)),
        )

    train = load_part("train").take(config.limit, config.seed)
    if len(train) < 2:
        raise UserError(
            f"{config.data} leaves {len(train)} image to train on, and batch norm needs 2 or more"
        )
    return train.to(device), load_part("test").to(device)


def _refuse_changes(config: Config, changes: Mapping[str, Any]) -> None:
    changed = differences(config, config.updated(changes))
    if changed:
        lines = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()]
        raise UserError(f"cannot resume with other settings ({'; '.join(lines)}); start a new run for them")
