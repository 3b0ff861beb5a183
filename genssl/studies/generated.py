"""How good the samples of generative runs are, side by side; what was measured is kept beside each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from genssl import checkpoint, figures, files
from genssl.checkpoint import RunInfo
from genssl.errors import UserError
from genssl.eval.fidelity import fidelity
from genssl.eval.fidelity_numbers import Settings
from genssl.eval.outcome import Outcome
from genssl.eval.real_features import Space, choose_encoder, why_chosen
from genssl.eval.sample import sample
from genssl.places import takes_results
from genssl.runtime import describe
from genssl.studies.grids import Panel, side_by_side
from genssl.studies.results import Measured
from genssl.studies.trained import Trained
from genssl.train.events import Listener, Note

KEPT = Path("eval") / "compare-fidelity.json"  # in a run's folder
GRID = Path("eval") / "compare-samples.png"
SHOWN = 64  # samples in a grid
SCALE = 2
SEED = 0
FLOOR = "floor (real images)"


@dataclass(frozen=True)
class Quality:
    """What `fidelity` found of one run's samples.

    Attributes:
        values: its values, and how the samples were drawn.
        notes: what a reader needs to know.
        grid: the first samples.
    """

    values: dict[str, Any]
    notes: tuple[str, ...]
    grid: Image.Image

    def number(self, measure: str) -> dict[str, Any]:
        """The row of a measure."""
        return next(row for row in self.values["measures"] if row["measure"] == measure)


def compare_samples(
    runs: Mapping[str, Measured], samples: int, device: torch.device, listen: Listener
) -> Outcome:
    """Measure as many samples of each generative run, all in the same features, and show their grids.

    Args:
        runs: by the name that they are shown under. Those that do not generate are passed over.
        samples: of each run.
        device: where to measure.
        listen: told what happens.

    Returns:
        "fidelity", one entry a run; nothing where fewer than two generate, and a note where they cannot be
        measured.
    """
    # whatever generates was timed when it was measured
    generative = {name: run for name, run in runs.items() if "sampling_seconds" in run.findings.numbers}
    if len(generative) < 2:
        return Outcome({})
    sizes = {run.info.config.image_size for run in generative.values()}
    if len(sizes) > 1:
        return Outcome({}, notes=("the quality of samples does not compare: the images differ in size",))
    try:
        encoder = choose_encoder(sizes.pop())
        listen(Note(f"samples are compared in features of {why_chosen(encoder)}: {encoder.folder}"))
        found = {
            name: quality(run.info, encoder, samples, device, listen) for name, run in generative.items()
        }
    except UserError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        return Outcome({}, notes=(f"the quality of samples was not measured: {reason}",))
    values = [{"run": name, **each.values} for name, each in found.items()]
    return Outcome({"fidelity": values}, {"samples": draw_grids(found)}, _notes(found, encoder))


def quality(info: RunInfo, encoder: RunInfo, samples: int, device: torch.device, listen: Listener) -> Quality:
    """`fidelity` of a run as it samples by default: as kept for these very weights, else measured now."""
    about = {
        "weights_sha256": info.digest,
        "features_digest": encoder.digest,
        "samples": samples,
        "device": describe(device),
    }
    if (kept := _read_kept(info.folder, about)) is not None:
        return kept
    listen(Note(f"measuring {samples:,} samples of {info.name}"))
    made = _measure(Trained(info.folder, device, listen), encoder, samples)
    if takes_results(info.folder):
        files.write_picture(info.folder / GRID, made.grid)
        files.write_json(
            info.folder / KEPT, {"about": about, "values": made.values, "notes": list(made.notes)}
        )
    return made


def _read_kept(folder: Path, about: Mapping[str, Any]) -> Quality | None:
    if not (folder / KEPT).exists() or not (folder / GRID).exists():
        return None
    kept = files.read_json(folder / KEPT)
    if kept["about"] != about:
        return None
    with Image.open(folder / GRID) as picture:
        return Quality(kept["values"], tuple(kept["notes"]), picture.convert("RGB"))


def _measure(trained: Trained, encoder: RunInfo, samples: int) -> Quality:
    space = Space(encoder.name, checkpoint.load(encoder.folder, trained.device).features, encoder.digest)
    train, test = trained.splits
    real = test.take(2 * samples, SEED)
    settings = Settings(seed=SEED)
    sampled, images = sample(
        trained.method, samples, seed=SEED, batch_size=settings.batch_size,
        tick=trained.tick("sampling"), options={},
    )  # fmt: skip
    outcome = fidelity(images, real, train, space, settings, trained.tick("comparing samples with images"))
    about = {"data": real.name, "part": real.part, "data_digest": real.digest, "train_digest": train.digest}
    values = {**about, **outcome.values, "sampling": sampled.values}
    return Quality(values, outcome.notes, figures.grid(images[:SHOWN], scale=SCALE))


def draw_grids(found: Mapping[str, Quality]) -> Image.Image:
    """The samples of each run, titled by its name, how they were drawn, and their Frechet distance."""
    panels = []
    for name, each in found.items():
        distance = each.number("frechet_distance")
        text = f"Frechet distance {distance['samples']:.4g}, floor {distance['floor']:.4g}"
        panels.append(Panel((name, _how_drawn(each.values["sampling"]), text), each.grid))
    return side_by_side(panels)


def _how_drawn(sampling: Mapping[str, Any]) -> str:
    calls = sampling.get("network_calls_an_image")
    parts = [sampling.get("sampler"), f"{calls} network calls" if calls else None]
    prior = f"{sampling['prior']} prior" if "prior" in sampling else None
    return ", ".join(part for part in (prior, *parts) if part)


def table(fidelity: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row a measure, a column a run, and then a column a floor: one, if the runs have the same images.

    Args:
        fidelity: as in `compare_samples`.
    """
    floors: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in fidelity:
        floors.setdefault((run["data_digest"], run["train_digest"]), []).append(run)
    names = [FLOOR if len(floors) == 1 else f"floor of {_joined(same)}" for same in floors.values()]
    lines = []
    for place, row in enumerate(fidelity[0]["measures"]):
        cells = {run["run"]: _cell(run["measures"][place], "samples", "") for run in fidelity}
        for name, same in zip(names, floors.values(), strict=True):
            cells[name] = _cell(same[0]["measures"][place], "floor", "floor_")
        lines.append({"": row["measure"], **cells, "better": row["better"]})
    return lines


def _joined(runs: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(run["run"] for run in runs)


def _cell(row: Mapping[str, Any], value: str, prefix: str) -> str:
    """A number with its interval."""
    if row[value] is None:
        return "-"
    return f"{row[value]:.4g} [{row[f'{prefix}low']:.4g}, {row[f'{prefix}high']:.4g}]"


def _notes(found: Mapping[str, Quality], encoder: RunInfo) -> tuple[str, ...]:
    first = next(iter(found.values())).values
    notes = [
        f"sample quality: {first['samples']:,} samples a run (-n takes another number) in features of "
        f"{why_chosen(encoder)}, weights {encoder.digest[:12]}"
    ]
    if len({each.values["data_digest"] for each in found.values()}) > 1:
        data = ", ".join(f"{name}: {each.values['data']}" for name, each in found.items())
        notes.append(
            f"distances to real images do not compare: they are to other images ({data}); compare each with "
            "its own floor"
        )
    return (*notes, *dict.fromkeys(note for each in found.values() for note in each.notes))
