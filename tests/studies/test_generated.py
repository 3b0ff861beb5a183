"""The quality of several runs' samples: measured once, alike, and laid side by side."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFont

from genssl import checkpoint, paths, run_info
from genssl.config import SimSiamConfig, VAEConfig
from genssl.eval import fidelity_features
from genssl.eval.feature_cache import FeatureSpace
from genssl.eval.result import EvalResult
from genssl.models.build import build
from genssl.run_info import RunInfo
from genssl.settings import Config
from genssl.studies import compare as compare_module
from genssl.studies.figures import ImagePanel, side_by_side
from genssl.studies.measures import Trained
from genssl.studies.results import Findings, Measured
from genssl.training.events import Event, Note

from ..conftest import call
from .fakes import run_of

CPU = torch.device("cpu")
SAMPLES = 16
SPACE = FeatureSpace("pixel sums", lambda images: images.flatten(1).unfold(1, 256, 256).sum(2), "digest")
DEFAULT = fidelity_features.default_features
SMALL = {"encoder": "small", "projector_dim": 4, "projector_hidden": 4, "predictor_hidden": 4}
MEASURES = [
    "frechet_distance", "frechet_distance_infinity", "kernel_distance", "precision", "recall", "density",
    "coverage", "authenticity", "sharpness", "diversity",
]  # fmt: skip


def write(config: Config) -> None:
    name = f"{config.method}-{config.seed}"
    folder = paths.runs_root() / name
    folder.mkdir(parents=True)
    checkpoint.save(build(config), folder, epoch=1, finished=True, metrics={})


@pytest.fixture
def root(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two untrained VAEs and a SimSiam; sums of pixels stand for the default features."""
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    monkeypatch.setattr(compare_module, "default_features", lambda _: SPACE)
    monkeypatch.setattr(fidelity_features, "default_features", lambda _: SPACE)
    for seed in (0, 1):
        write(VAEConfig(data=str(digits), width=4, z_dim=3, mixture_components=0, seed=seed))
    write(SimSiamConfig(data=str(digits), **SMALL))
    return tmp_path / "runs"


def opened(folder: Path, **facts: str) -> Measured:
    return Measured(run_info.inspect(folder), [], Findings({"sampling_seconds": 1.0}, facts=facts))


def compare(root: Path, said: list[str] | None = None, samples: int = SAMPLES) -> EvalResult:
    def listen(event: Event) -> None:
        if said is not None and isinstance(event, Note):
            said.append(event.text)

    named = {name: opened(root / name) for name in ("vae-0", "vae-1")} | {"encoder": run_of()}
    return compare_module.compare_samples(named, samples, CPU, listen)


def test_numbers_are_those_of_the_fidelity_command(root: Path) -> None:
    outcome = compare(root)
    first, second = outcome.values["fidelity"]
    assert (first["run"], second["run"]) == ("vae-0", "vae-1")
    assert [row["measure"] for row in first["measures"]] == MEASURES
    for run in (first, second):
        result = call("fidelity", run["run"], "-n", SAMPLES, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert run["measures"] == found["measures"]
        for name in ("features_digest", "data_digest", "samples"):
            assert run[name] == found[name], name
    assert first["measures"] != second["measures"]
    picture = outcome.figures["samples"]
    assert isinstance(picture, Image.Image)
    assert picture.width > 2 * 4 * 2 * 32  # two grids of 4 x 4 images of 32 pixels, twice as large


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sampled: the numbers and the grid tell only the seed and how many were asked for."""

    def measure(trained: Trained, space: FeatureSpace, samples: int) -> compare_module.Quality:
        seed = trained.method.config.seed
        values = {**entry("", space.digest), "samples": samples, "sampling": {"prior": "normal"}}
        values["measures"] = [{"measure": "frechet_distance", "samples": seed + 0.5, "train": 0.25}]
        return compare_module.Quality(values, ("beware",), Image.new("RGB", (9, 9), (seed, 0, 0)))

    monkeypatch.setattr(compare_module, "_measure", measure)


@pytest.mark.usefixtures("quickly")
def test_a_run_is_measured_once(root: Path) -> None:
    said: list[str] = []
    first = compare(root, said)
    assert [text for text in said if text.startswith("measuring")] == [
        "measuring 16 samples of vae-0", "measuring 16 samples of vae-1",
    ]  # fmt: skip
    said.clear()
    again = compare(root, said)
    assert not [text for text in said if text.startswith("measuring")]
    assert again.values == first.values
    assert again.notes == first.notes
    kept, made = (outcome.figures["samples"] for outcome in (again, first))
    assert isinstance(kept, Image.Image)
    assert isinstance(made, Image.Image)
    assert kept.tobytes() == made.tobytes()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("change", ["samples", "weights", "features", "device", "picture"])
def test_what_was_kept_is_of_the_same_question(
    root: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(root)
    match change:
        case "weights":
            shutil.copy(root / "vae-1" / run_info.MODEL, root / "vae-0" / run_info.MODEL)
        case "features":
            monkeypatch.setattr(compare_module, "default_features", lambda _: replace(SPACE, digest="7"))
        case "device":
            monkeypatch.setattr(compare_module, "describe", lambda _: "an abacus")
        case "picture":
            (root / "vae-0" / compare_module.GRID).unlink()
    said: list[str] = []
    found = compare(root, said, SAMPLES + (change == "samples")).values["fidelity"]
    assert any(text.endswith("samples of vae-0") for text in said)
    if change == "samples":
        assert [run["samples"] for run in found] == [17, 17]
    if change == "weights":
        assert found[0]["measures"] == found[1]["measures"]
    if change == "features":
        assert [run["data_digest"] for run in found] == ["7", "7"]


@pytest.mark.usefixtures("quickly")
def test_a_folder_that_takes_no_results_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "is_writable_run", lambda _: False)
    assert len(compare(root).values["fidelity"]) == 2
    assert not (root / "vae-0" / "eval").exists()


# What cannot be measured is said, and the comparison goes on


def test_without_the_shipped_weights_there_is_a_note(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: tmp_path / "shipped")
    monkeypatch.setattr(compare_module, "default_features", DEFAULT.__wrapped__)
    outcome = compare(root)
    assert (outcome.values, outcome.figures) == ({}, {})
    (note,) = outcome.notes
    assert "was not measured: " in note
    assert "simsiam is missing" in note


def test_too_few_samples_are_noted(root: Path) -> None:
    (note,) = compare(root, samples=8).notes
    assert "was not measured: 5 neighbors need 12 samples or more, and there are 8" in note


def test_other_sizes_do_not_compare(root: Path) -> None:
    small = opened(root / "vae-1")
    small = replace(small, info=replace(small.info, config=small.info.config.updated({"image_size": 16})))
    named = {"a": opened(root / "vae-0"), "b": small}
    (note,) = compare_module.compare_samples(named, SAMPLES, CPU, lambda event: None).notes
    assert "the images differ in size" in note


def test_one_generative_run_is_no_comparison(root: Path) -> None:
    named = {"a": opened(root / "vae-0"), "b": run_of()}
    assert compare_module.compare_samples(named, SAMPLES, CPU, lambda event: None) == EvalResult({})


# The table


def entry(run: str, data: str = "x", train: str = "y", **changes: Any) -> dict[str, Any]:
    row = {"measure": "recall", "samples": 0.123456, "low": 0.1, "high": 0.2, "better": "higher"}
    row |= {"train": 0.9, "train_low": 0.8, "train_high": 1.0, "other": 0.95, "other_low": None} | changes
    return {"run": run, "data": data, "data_digest": data, "train_digest": train, "measures": [row]}


def test_the_table_has_a_column_per_run_and_one_per_reference() -> None:
    (line,) = compare_module.table([entry("a"), entry("b", samples=0.5)])
    assert line == {
        "": "recall", "a": "0.1235 [0.1, 0.2]", "b": "0.5 [0.1, 0.2]",
        "training images": "0.9 [0.8, 1]", "other real images": "0.95", "better": "higher",
    }  # fmt: skip


@pytest.mark.parametrize("other", [{"data": "z"}, {"train": "z"}])
def test_other_images_have_references_of_their_own(other: dict[str, str]) -> None:
    (line,) = compare_module.table([entry("a"), entry("b", **other, other=0.7), entry("c")])
    assert line["training images of a and c"] == "0.9 [0.8, 1]"
    assert line["other real images of b"] == "0.7"
    (line,) = compare_module.table([entry("a", other=None), entry("b")])
    assert line["other real images"] == "-"


def test_runs_on_other_data_have_a_note(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(info: RunInfo, *_: object) -> compare_module.Quality:
        values = entry("", data=info.name) | {"samples": SAMPLES, "sampling": {}}
        values["measures"] = [{"measure": "frechet_distance", "samples": 2.0, "train": 1.0}]
        return compare_module.Quality(values, (), Image.new("RGB", (9, 9)))

    monkeypatch.setattr(compare_module, "quality", measured)
    notes = [note for note in compare(root).notes if "do not compare" in note]
    assert len(notes) == 1
    assert "they are to other images (vae-0: vae-0, vae-1: vae-1)" in notes[0]


# The picture


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (4.0, 6.0, "b is nearer to real images than a (intervals are apart)"),
        (4.0, 7.5, "b and a are not resolved (intervals overlap)"),
        (None, None, "b and a are not resolved (intervals overlap)"),
    ],
)
def test_distances_rank_runs_only_where_intervals_are_apart(
    low: float | None, high: float | None, verdict: str
) -> None:
    def quality(value: float, low: float | None, high: float | None) -> compare_module.Quality:
        row = {"measure": "frechet_distance", "samples": value, "low": low, "high": high}
        return compare_module.Quality({"measures": [row]}, (), Image.new("RGB", (1, 1)))

    runs = {"a": quality(8.0, 7.0, 9.0), "b": quality(5.0, low, high)}
    assert list(compare_module._rankings(runs)) == [f"Frechet distance: {verdict}"]


def test_panels_lie_side_by_side_and_unscaled() -> None:
    red, blue = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))
    wide = "a title that is a good deal wider than its grid"
    sheet = side_by_side([ImagePanel((wide, "two"), red), ImagePanel(("b",), blue)])
    counts = {color: count for count, color in sheet.getcolors(1 << 16) or []}
    assert counts[(255, 0, 0)] == counts[(0, 0, 255)] == 40 * 30
    left = min(x for x in range(sheet.width) if sheet.getpixel((x, sheet.height - 15)) == (0, 0, 255))
    assert left > ImageFont.load_default(16).getlength(wide) > 40  # no title runs into the next panel


def test_a_fifth_panel_begins_a_new_row() -> None:
    panel = ImagePanel(("a",), Image.new("RGB", (40, 30), "red"))
    four, five = side_by_side([panel] * 4), side_by_side([panel] * 5)
    assert five.width == four.width
    assert five.height > four.height + 30
    counts = {color: count for count, color in five.getcolors(1 << 16) or []}
    assert counts[(255, 0, 0)] == 5 * 40 * 30  # none lies on another
