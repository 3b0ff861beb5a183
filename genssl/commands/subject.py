"""What an evaluating command works on, and how its outcome is delivered."""

import atexit
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from genssl.commands.outputs import Target
from genssl.commands.screen import say, show_values, ticking
from genssl.data.known import source_of
from genssl.invocation import command_line, rank
from genssl.states import progress_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from genssl.checkpoint import RunInfo
    from genssl.data.split import Split
    from genssl.eval.outcome import Outcome
    from genssl.models.method import Method


Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")


@dataclass(frozen=True)
class Subject:
    """A loaded run."""

    method: "Method"
    info: "RunInfo"
    device: "torch.device"

    def split(
        self, data: str | None, part: Part, limit: int | None = None, seed: int = 0, skip_bad: bool = False
    ) -> "Split":
        """A part of `data`, else of the run's own data, on the device."""
        from genssl.data.rows import limited

        config = self.method.config
        if data and data != config.data and source_of(data) == source_of(config.data):
            say(
                f"note: {data} and {config.data}, which the run learnt from, are split differently: "
                f"images of its {part} part may be ones that it was trained on"
            )
        split = read_split(
            data or config.data, part, config.image_size, config.seed, skip_bad or config.skip_bad
        )
        return limited(split, limit, seed).to(self.device)


def read_split(data: str, part: Part, image_size: int = 32, seed: int = 0, skip_bad: bool = False) -> "Split":
    """Load a part of a data set, showing what takes long."""
    from genssl.data.load import load

    with ticking(f"reading {data}") as tick:
        return load(
            data,
            part,
            image_size=image_size,
            seed=seed,
            skip_bad=skip_bad,
            progress=lambda _, done, total: tick(done, total or done),
        )


def find_run(reference: str, named: str | None, data: str | None = None) -> "tuple[Path, RunInfo]":
    """The run folder or model file that REF and --checkpoint name, and what it says of itself. No torch.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from genssl import checkpoint, config, runs

    method = config.config_class(reference).model_fields["method"].default if named else None
    path = runs.find(named or reference, method, data)
    return path, checkpoint.inspect(path)


def open_run(reference: str, named: str | None, device: str, data: str | None = None) -> Subject:
    """Load the run that REF and --checkpoint name, and say which it is.

    Args:
        reference: the command's REF; with --checkpoint, a method that must be the run's.
        named: --checkpoint.
        device: --device.
        data: take a method's newest run on these data.
    """
    path, info = find_run(reference, named, data)
    from genssl import checkpoint, places, processes
    from genssl.runtime import choose_device

    where = choose_device(device)
    if processes.join(where):
        atexit.register(processes.leave)
    done: str = info.state
    if places.is_shipped(info.folder):
        done = "weights that come with genssl"
    epochs = progress_of(info.epochs_trained, info.config.epochs)
    say(f"using {path} ({info.config.method}, {info.config.data}, epoch {epochs}, {done})")
    return Subject(checkpoint.load(path, where), info, where)


def deliver(
    subject: Subject,
    title: str,
    outcome: "Outcome",
    target: Target,
    as_json: bool,
    split: "Split | None" = None,
) -> None:
    """Write the picture and the numbers of a run, and show the numbers under `title`."""
    write_outcome(f"{title} {subject.info.name}", provenance(subject, split), outcome, target, as_json)


def write_outcome(
    title: str, about: Mapping[str, Any], outcome: "Outcome", target: Target, as_json: bool
) -> None:
    """Write the pictures, and the numbers with what they are `about`; show the numbers."""
    from genssl import files

    if rank() > 0:  # the first process has the same ones
        return
    values = {"command": command_line(), **about, **outcome.values, "notes": list(outcome.notes)}
    values = finite(values)
    for place, (name, figure) in enumerate(outcome.figures.items()):
        path = target.picture if place == 0 else target.further(name)
        files.write_picture(path, figure, origin_of(values))
        say(f"{name}: {path}")
    if target.with_numbers:
        files.write_json(target.picture.with_suffix(".json"), values)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        show_values(title, outcome.values, outcome.notes)


def origin_of(values: Mapping[str, Any]) -> dict[str, str]:
    """What a picture says of itself: the command, and the run and weights where it is of one."""
    return {name: str(values[name]) for name in ("command", "run", "weights_sha256") if name in values}


def finite(value: Any) -> Any:
    """The same JSON value with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance(subject: Subject, split: "Split | None") -> dict[str, Any]:
    """What a number was measured on."""
    from genssl.runtime import describe

    about: dict[str, Any] = {
        "run": subject.info.name,
        "method": subject.info.config.method,
        "epoch": subject.info.epochs_trained,
        "weights_sha256": subject.info.digest,
        "device": describe(subject.device),
    }
    return about if split is None else about | origin(split)


def origin(split: "Split") -> dict[str, str]:
    """Which images a number was measured on."""
    return {"data": split.name, "part": split.part, "data_digest": split.digest}
