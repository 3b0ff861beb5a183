"""What an evaluating command works on, and how its outcome is delivered."""

import atexit
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genssl.commands.screen import say, show_values, ticking
from genssl.data.known import source_of
from genssl.errors import UserError
from genssl.invocation import command_line, rank
from genssl.states import progress_of

if TYPE_CHECKING:
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


def open_run(reference: str, named: str | None, device: str, data: str | None = None) -> Subject:
    """Load the run that REF and --checkpoint name, and say which it is.

    Args:
        reference: the command's REF; with --checkpoint, a method that must be the run's.
        named: --checkpoint.
        device: --device.
        data: take a method's newest run on these data.
    """
    from genssl import checkpoint, config, places, processes, runs
    from genssl.runtime import choose_device

    where = choose_device(device)
    if processes.join(where):
        atexit.register(processes.leave)
    method = config.config_class(reference).model_fields["method"].default if named else None
    path = runs.find(named or reference, method, data)
    info = checkpoint.inspect(path)
    done: str = info.state
    if places.is_shipped(info.folder):
        done = "weights that come with genssl"
    epochs = progress_of(info.epochs_trained, info.config.epochs)
    say(f"using {path} ({info.config.method}, {info.config.data}, epoch {epochs}, {done})")
    return Subject(checkpoint.load(path, where), info, where)


def deliver(
    subject: Subject,
    name: str,
    outcome: "Outcome",
    out: Path | None,
    as_json: bool,
    split: "Split | None" = None,
) -> None:
    """Write the picture and the numbers of a run, and show the numbers."""
    title, picture = f"{name} {subject.info.name}", picture_path(subject, name, out)
    write_outcome(title, provenance(subject, split), outcome, picture, as_json)


def write_outcome(
    title: str, about: Mapping[str, Any], outcome: "Outcome", picture: Path, as_json: bool
) -> None:
    """Write the pictures, and the numbers with what they are `about` beside them; show the numbers."""
    from genssl import files

    if rank() > 0:  # the first process has the same ones
        return
    values = {"command": command_line(), **about, **outcome.values, "notes": list(outcome.notes)}
    values = finite(values)
    for place, (name, figure) in enumerate(outcome.figures.items()):
        path = picture if place == 0 else picture.with_stem(f"{picture.stem}-{name.replace(' ', '-')}")
        files.write_picture(path, figure)
        say(f"{name}: {path}")
    files.write_json(picture.with_suffix(".json"), values)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        show_values(title, outcome.values, outcome.notes)


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


def picture_path(subject: Subject, name: str, out: Path | None) -> Path:
    """`out`, else <run>/eval/<name>.png, else ./<run>-<name>.png where the run's folder takes no results."""
    from genssl.places import takes_results

    folder = subject.info.folder
    kept = folder / "eval" / f"{name}.png" if takes_results(folder) else Path(f"{folder.name}-{name}.png")
    return chosen_path(name, out) or kept


def chosen_path(name: str, out: Path | None) -> Path | None:
    """The picture that --out means: `out`, or `name` in it where it is a folder; None where it was not given.

    Raises:
        UserError: it has no suffix.
    """
    if out is None or (out.suffix and not out.is_dir()):
        return out
    if out.is_dir():
        return out / f"{name}.png"
    raise UserError(f"--out {out} has no suffix; name a picture such as {out}.png")
