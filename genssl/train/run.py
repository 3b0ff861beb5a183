"""Start a run, or resume one."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from genssl import processes, runs
from genssl.data.feed import place
from genssl.data.load import load
from genssl.data.rows import limited
from genssl.data.split import Split
from genssl.errors import UserError
from genssl.runtime import choose_device
from genssl.settings import Config, refuse_changes
from genssl.train import board
from genssl.train.events import Listener, Loading, Note, silent
from genssl.train.folder import RunFolder, is_complete
from genssl.train.follow import follow
from genssl.train.options import Options
from genssl.train.runner import Run


def start(config: Config, options: Options, listen: Listener = silent) -> Path:
    """Train a new run to its end; returns its folder.

    Where torchrun started several processes, every one of them calls this; the first one writes.

    Raises:
        UserError: the data or device is not to be had, the run was stopped, or a loss was not finite.
    """
    device = choose_device(options.device)
    with processes.joined(device):
        if begun := _begun(config, options):
            return resume(begun, config.model_dump(), options, listen)
        run = _prepared(config, options, device, listen)
        if not processes.leads():
            return follow(run.training, run.watch)
        _mention_unfinished(config, options, listen)
        folder = RunFolder(runs.new_folder(config, options.tag, options.out, arm=options.arm))
        try:
            folder.write_start(config, run.training.device)
            return run.go(folder)
        finally:
            folder.release()


def _mention_unfinished(config: Config, options: Options, listen: Listener) -> None:
    """Say that the newest run of these settings is not at its end, since a new one is about to begin."""
    if options.out is not None:
        return
    begun = runs.begun(config, options.tag, arm=options.arm)
    if begun is not None and not is_complete(begun, config.epochs):
        ways = f"`genssl train --resume {begun}`, or this command with --go-on, continues it"
        listen(Note(f"{begun} is an unfinished run of these settings; {ways}. Starting a new run"))


def _begun(config: Config, options: Options) -> Path | None:
    """The run to continue, the same in every process: after a restart what was lost, else `go_on`'s."""
    found = processes.noted_folder() if processes.restarts() > 0 else None
    if found is None and options.go_on and processes.leads():
        found = runs.begun(config, options.tag, options.out, arm=options.arm)
    path = processes.told(str(found or ""))
    return Path(path) if path else None


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
    device = choose_device(options.device)
    with processes.joined(device):
        folder = RunFolder(path, held=processes.leads())
        try:
            config = folder.read_config()
            refuse_changes(config, changes)
            if is_complete(path, config.epochs):
                listen(
                    Note(f"{path} is complete: all {config.epochs} epochs are done, nothing is left to do")
                )
                return path
            run = _prepared(config, options, device, listen)
            if not processes.leads():
                processes.told("")  # a state that cannot be read is said once, by the first process
            run.restore(folder)
            if not processes.leads():
                return follow(run.training, run.watch)
            processes.told("")
            return run.go(folder)
        finally:
            folder.release()


def _prepared(config: Config, options: Options, device: torch.device, listen: Listener) -> Run:
    if options.tensorboard:
        board.require()
    train, test = load_splits(config, listen)
    return Run(config, options, listen, place(train, device, options.resident_limit), test)


def load_splits(config: Config, listen: Listener) -> tuple[Split, Split]:
    """The config's train split, limited, and its test split, both on the host."""

    def load_part(part: Literal["train", "test"]) -> Split:
        return load(
            config.data,
            part,
            image_size=config.image_size,
            seed=config.seed,
            skip_bad=config.skip_bad,
            progress=lambda text, done, total: listen(Loading(text, done, total)),
        )

    train = limited(load_part("train"), config.limit, config.seed)
    if len(train) < 2:
        raise UserError(
            f"{config.data} leaves {len(train)} image to train on, and batch norm needs 2 or more"
        )
    return train, load_part("test")


def require_data(configs: Iterable[Config], listen: Listener) -> None:
    """Load the data of several runs, each data set once, so that an error comes before the first run starts.

    Raises:
        UserError: as in `load`.
    """
    checked = set()
    for config in configs:
        source = (config.data, config.image_size, config.skip_bad)
        if source not in checked:
            load_splits(config, listen)
            checked.add(source)
