"""`compare`: which runs are meant, what differs, what is shared, and the command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from genssl import checkpoint, paths, run_info, runs
from genssl.cli import Program
from genssl.commands import study as study_module
from genssl.config import BYOLConfig, VAEConfig
from genssl.errors import UserError
from genssl.eval.result import EvalResult
from genssl.models.build import build
from genssl.run_info import RunInfo
from genssl.studies import compare as study
from genssl.studies.measures import unmeasured
from genssl.studies.results import Findings, Measured
from genssl.training import run
from genssl.training.events import Event, Note
from genssl.training.options import Options
from genssl.training.run_folder import RunFolder

from .fakes import history, run_of, simsiam

app = typer.Typer(cls=Program, pretty_exceptions_enable=False)
app.callback()(lambda: None)
study_module.register(app)

SHIPPED = paths.shipped_root()


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small VAEs, one of them an ablation's."""
    root = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSSL_CHECKPOINTS", str(root))
        patch.setattr(RunFolder, "write_curves", lambda *_: None)
        config = VAEConfig(
            data=str(digits), width=4, z_dim=3, mixture_components=0, epochs=1, batch_size=60, sample_every=0
        )
        run.start(config, Options(device="cpu"))
        run.start(config.updated({"z_dim": 2, "limit": 60}), Options(device="cpu", arm=True, tag="z"))
    return root


@pytest.fixture
def pair(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the two runs, as the one where runs live; nothing ships."""
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(trained))
    monkeypatch.setattr(paths, "shipped_root", lambda: trained / "shipped")
    return trained


def test_the_command_leaves_a_figure_and_pure_json(pair: Path) -> None:
    result = call("vae", "vae-digits-z", "--device", "cpu", "--no-fidelity", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    folder = pair / "compare-vae-digits-vae-digits-z"
    assert json.loads((folder / "compare.json").read_text()) == found
    assert Image.open(folder / "compare.png").size[0] > 800
    first, second = found["runs"]
    assert (first["name"], second["name"]) == ("vae-digits", "vae-digits-z")
    assert first["weights_sha256"] == run_info.inspect(pair / "vae-digits").digest
    assert (first["numbers"]["train_images"], second["numbers"]["train_images"]) == (120, 60)
    assert first["numbers"]["sampling_seconds"] > 0
    assert found["differences"] == [
        {"setting": "limit", "vae-digits": None, "vae-digits-z": 60},
        {"setting": "z_dim", "vae-digits": 3, "vae-digits-z": 2},
    ]
    assert any(
        "train images differ in number (vae-digits: 120, vae-digits-z: 60)" in note for note in found["notes"]
    )
    assert not any("quantities" in note for note in found["notes"])
    assert "fidelity" not in found


def test_data_that_cannot_be_had_end_it_before_anything_is_measured(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        shutil.copytree(trained / "vae-digits", folder, ignore=shutil.ignore_patterns("eval"))
    settings = json.loads((folders[1] / "config.json").read_text())
    model = build(VAEConfig(**{**settings, "data": str(tmp_path / "gone")}))
    checkpoint.save(model, folders[1], epoch=1, finished=True, metrics={})
    events: list[Event] = []
    with pytest.raises(UserError, match=r"no such file or folder: .*gone"):
        study.compare(folders, "cpu", events.append)
    assert [event for event in events if isinstance(event, Note)] == []
    assert not (folders[0] / "eval").exists()


def test_a_run_finds_its_data_from_another_folder(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_info.inspect(trained / "vae-digits").config.updated({"data": digits.name, "sample_every": 0})
    monkeypatch.setattr(RunFolder, "write_curves", lambda *_: None)
    monkeypatch.chdir(digits.parent)
    folder = run.start(config, Options(device="cpu", out=tmp_path / "here"))
    # A folder of the same name that holds nothing
    (tmp_path / "elsewhere" / digits.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (measured,) = unmeasured([folder], torch.device("cpu"))
    assert Path(measured.data) == digits
    study.compare([folder, trained / "vae-digits"], "cpu", lambda _: None)


@pytest.mark.usefixtures("pair")
def test_samples_are_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "shipped_root", lambda: SHIPPED)
    result = call("vae", "vae-digits-z", "-n", 14, "--device", "cpu", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    for words in ("sample quality [95 % interval]", "frechet_distance", "training images", "sharpness"):
        assert words in result.stdout, words
    assert "note: sample quality: 14 samples per run (-n takes another number)" in result.stdout
    found = json.loads((tmp_path / "a" / "compare.json").read_text())
    assert [(run["run"], run["samples"]) for run in found["fidelity"]] == [
        ("vae-digits", 14), ("vae-digits-z", 14),
    ]  # fmt: skip
    assert [run["train_images"] for run in found["fidelity"]] == [120, 60]
    with Image.open(tmp_path / "a" / "compare-samples.png") as picture:
        assert picture.width > 2 * 4 * 2 * 32
    result = call("vae", "vae-digits-z", "--no-fidelity", "--device", "cpu", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert "sample quality" not in result.output
    assert {file.name for file in (tmp_path / "b").iterdir()} == {"compare.png", "compare.json"}


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("options", "samples"), [([], 512), (["-n", 7], 7), (["--no-fidelity"], None), (["-n", 7, "--json"], 7)]
)
def test_how_many_samples(
    options: list[object], samples: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def enough(*arguments: object) -> EvalResult:
        raise UserError(f"asked for {arguments[-1]}")

    monkeypatch.setattr(study, "compare", enough)
    result = call("vae", "vae-digits-z", "--device", "cpu", "--out", tmp_path, *options)
    assert f"asked for {samples}" in result.stderr


@pytest.mark.usefixtures("pair")
def test_the_command_shows_tables_and_notes(tmp_path: Path) -> None:
    result = call("vae-digits", "arms/vae-digits-z", "--device", "cpu", "--no-fidelity", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for words in (
        "what they are",
        "settings that differ",
        "z_dim",
        "numbers",
        "test_images",
        "note: short runs",
    ):
        assert words in result.stdout, words
    assert {file.name for file in tmp_path.iterdir()} == {"compare.png", "compare.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae"], "compare takes two or more runs, not 1"),
        (["vae", "vae-digits"], "vae and vae-digits are the same run"),
        (["vae-digits-z", "arms/vae-digits-z"], "vae-digits-z and arms/vae-digits-z are the same run"),
        (["vae", "vea"], "no run 'vea'"),
        (["vae", "ddpm"], "no finished ddpm run"),
        (["vae", "vae-digits-z", "--out", __file__], "is a file"),
        (["vae", __file__], "is a file; name its run folder"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[object], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line


def test_a_run_is_found_once(pair: Path) -> None:
    file = pair / "vae-digits" / run_info.MODEL
    assert runs.find_several([str(file), "vae-digits-z"]) == [file.parent, pair / "arms" / "vae-digits-z"]
    with pytest.raises(UserError, match="are the same run"):
        runs.find_several([str(file), "vae"])


# What does not compare


def compared(monkeypatch: pytest.MonkeyPatch, *found: Measured) -> Any:
    runs = {run.info.folder: run for run in found}
    monkeypatch.setattr(study, "measured", lambda folder, *_: runs[folder])
    monkeypatch.setattr(study, "unmeasured", lambda *_: [])
    return study.compare([run.info.folder for run in found], "cpu", lambda event: None)


def facts(found: Measured, **texts: str) -> Measured:
    return replace(found, findings=replace(found.findings, facts=texts))


def titles(outcome: Any) -> list[str]:
    (figure,) = outcome.figures.values()
    return [axis.get_title() for axis in figure.axes if axis.get_visible()]


def test_runs_of_one_method_share_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = run_of(name="a"), run_of(simsiam(stop_gradient=False), name="b", std=0.01)
    outcome = compared(monkeypatch, one, two)
    assert titles(outcome)[0] == "training loss"
    assert [each["collapsed"] for each in outcome.values["runs"]] == [False, True]
    assert not any("differ" in note or "compare" in note for note in outcome.notes[:-1])
    assert "one run per side" in outcome.notes[-1]


def test_terms_that_all_have_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (
        replace(run_of(name=name), history=history(variance=1.0, **extra))
        for name, extra in (("a", {"odd": 1.0}), ("b", {}))
    )
    assert titles(compared(monkeypatch, one, two))[-1] == "variance"


def test_the_figure_names_the_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = titles(compared(monkeypatch, *(run_of(simsiam(holdout=0.1), name=name) for name in "ab")))
    assert "kNN accuracy while training (validation)" in shown
    assert "effective rank of the output (RankMe) (validation)" in shown
    config = VAEConfig(data=simsiam().data, holdout=0.1, epochs=4)
    records = [{"epoch": epoch, "loss": 2.0, "validation_loss": 3.0} for epoch in (1, 2)]
    findings = Findings({"training_seconds": 1.0, "bits_per_dim": 2.0})
    one, two = (
        Measured(RunInfo(Path(name), config, 4, True, {}, ""), records, findings) for name in ("a", "b")
    )
    outcome = compared(monkeypatch, one, two)
    assert titles(outcome)[0] == "loss (dashed: train, solid: validation)"
    lines = outcome.figures["study"].axes[0].get_lines()
    assert [line.get_ydata().tolist() for line in lines if len(line.get_ydata())] == [[2, 2], [3, 3]] * 2


def test_losses_of_two_methods_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    byol = run_of(BYOLConfig(data=simsiam().data, epochs=6), name="b")
    outcome = compared(monkeypatch, run_of(name="a"), byol)
    assert not any(title.startswith("training loss") for title in titles(outcome))
    assert "kNN accuracy while training" in titles(outcome)
    assert "the losses of b and of a are different quantities: it changes method" in outcome.notes
    assert "epochs differ (a: 4, b: 6)" in outcome.notes
    settings = [row["setting"] for row in outcome.values["differences"]]
    assert "learning_rate" in settings
    assert "tau" not in settings  # SimSiam has none


@pytest.mark.parametrize(
    ("change", "digest", "images", "note"),
    [
        (
            {"data": "svhn"},
            "x",
            500,
            "do not compare across data (a: somewhere/photos.tar.gz, b: svhn)",
        ),
        ({"image_size": 16}, "x", 500, "the images differ in size (a: 32 pixels, b: 16 pixels)"),
        ({}, "y", 500, "the test images differ, though the data have one name"),
        ({"limit": 50}, "x", 50, "train images differ in number (a: 500, b: 50)"),
        ({"holdout": 0.1}, "x", 450, "some of it is of validation images and some of test images"),
    ],
)
def test_notes_say_what_does_not_compare(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], digest: str, images: int, note: str
) -> None:
    one = facts(run_of(name="a"), test_digest="x")
    two = facts(run_of(simsiam(**change), name="b", train_images=images), test_digest=digest)
    notes = compared(monkeypatch, one, two).notes
    assert sum("differ" in text or "compare" in text or "spread" in text for text in notes) >= 1
    assert any(note in text for text in notes), notes


def test_another_seeds_choice_of_images_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (facts(run_of(simsiam(seed=seed), name=str(seed)), train_digest=str(seed)) for seed in (0, 1))
    notes = compared(monkeypatch, one, two).notes
    assert "the train images are others of the same number: another seed chose them" in notes


def test_runs_of_one_name_are_told_apart_by_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = compared(monkeypatch, run_of(name="x/same"), run_of(name="y/same"), run_of(name="other"))
    assert [each["name"] for each in outcome.values["runs"]] == ["x/same", "y/same", "other"]
