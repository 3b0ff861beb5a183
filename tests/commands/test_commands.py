"""Every command, as a user types it, on rendered digits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from safetensors.torch import load_file, save_file

import genssl
from genssl import checkpoint, files, paths, run_info
from genssl.cli import Program, app
from genssl.commands import data as data_module
from genssl.data.augment.views import Standard, choose_views
from genssl.data.loading import load
from genssl.data.synthetic import render
from genssl.eval import importance_ll as evaluation
from genssl.eval.latent_profile import latent_profile
from genssl.eval.result import EvalResult
from genssl.metrics.sharpness import mean_sharpness
from genssl.models.method import CanSample
from genssl.training import run as run_module

from ..conftest import call
from ..pictures import native_grid


def json_of(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_version_and_help() -> None:
    assert call("--version").stdout.strip() == f"genssl {genssl.__version__}"
    for words in (["-h"], ["train", "-h"], ["sample", "--help"], ["runs", "-h"], ["data", "-h"]):
        assert call(*words).exit_code == 0


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        (("features", "RUN"), ("--part", "train"), ("--split", "train")),
        (("features", "RUN"), ("--part=train",), ("--split=train",)),
        (("fidelity", "RUN"), ("--no-originals",), ("--no-memorization",)),
        (("knn-eval", "RUN"), ("--floors",), ("--baselines",)),
        (("interpolate", "RUN"), ("--way", "noise", "--calls", "9"), ("--method", "noise", "--nfe", "9")),
        (("train", "vae"), ("--go-on",), ("--auto-resume",)),
    ],
)
def test_old_option_names_still_work(
    command: tuple[str, ...], old: tuple[str, ...], new: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    root = typer.main.get_group(app)
    assert isinstance(root, Program)
    assert root.rename([*command, *old]) == [*command, *new]
    assert f"{old[0].split('=')[0]} is deprecated; use {new[0].split('=')[0]}" in capsys.readouterr().err
    assert root.rename([*command, *new]) == [*command, *new]
    assert capsys.readouterr().err == ""
    shown = call(command[0], "-h").stdout.split()
    assert new[0].split("=")[0] in shown
    assert old[0].split("=")[0] not in shown


def test_the_part_of_an_export_is_no_split(capsys: pytest.CaptureFixture[str]) -> None:
    root = typer.main.get_group(app)
    assert isinstance(root, Program)
    words = ["export", "RUN", "--format", "onnx", "--part", "encoder"]
    assert root.rename(words) == words
    assert root.rename(["data", "export", "x", "--part", "train"])[-2] == "--split"


def test_train_prints_its_numbers_and_leaves_its_folder(vae_run: Path) -> None:
    assert (vae_run / "samples" / "epoch-002.png").exists()
    record = json.loads((vae_run / "history.jsonl").read_text().splitlines()[-1])
    assert record["epoch"] == 2
    assert "decoder_std" in record


def test_a_second_run_gets_its_own_folder(digits: Path, workplace: Path) -> None:
    small = ["--data", digits, "--epochs", 1, "--set", "width=4", "--sample-every", 0, "--tag", "twice"]
    for name in ("vae-digits-twice", "vae-digits-twice-2"):
        found = json_of("train", "vae", *small)
        assert Path(str(found["run"])).name == name
        assert (workplace / "checkpoints" / name / "model.safetensors").exists()


def test_train_from_a_saved_config(vae_run: Path, tmp_path: Path) -> None:
    found = json_of("train", "--config", vae_run / "config.json", "--epochs", 1, "--out", tmp_path / "again")
    assert found["epoch"] == 1
    assert (
        run_info.inspect(tmp_path / "again").config.updated({"epochs": 2}) == run_info.inspect(vae_run).config
    )


def test_dry_run_shows_settings_and_leaves_nothing(digits: Path, workplace: Path) -> None:
    before = sorted((workplace / "checkpoints").iterdir())
    result = call("train", "vae", "--data", digits, "--set", "width=4", "--dry-run")
    assert result.exit_code == 0, result.output
    for word in ("decoder_variance", "parameters", "memory", "time"):
        assert word in result.stdout
    assert sorted((workplace / "checkpoints").iterdir()) == before


def test_sample_writes_a_grid_and_numbers(vae_run: Path, tmp_path: Path) -> None:
    found = json_of("sample", "vae", "-n", 12, "--checkpoint", vae_run, "--out", tmp_path / "grid.png")
    assert found["prior"] == "normal"
    native_grid(Image.open(tmp_path / "grid.png"), 3, 4)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]  # --json shows the numbers


def test_a_run_knows_how_sharp_its_training_images_are(vae_run: Path, digits: Path) -> None:
    known = run_info.inspect(vae_run).metrics["train_sharpness"]
    assert known == pytest.approx(mean_sharpness(load(str(digits), "train").images))
    found = json_of("sample", vae_run, "-n", 16)  # two epochs: fog
    assert found["train_sharpness"] == known
    assert "they are blurred" in found["notes"][0]


def test_image_i_is_the_same_for_every_batch_size(vae_run: Path, tmp_path: Path) -> None:
    for batch in (1, 3, 64):
        call("sample", vae_run, "-n", 7, "--batch-size", batch, "--out", tmp_path / str(batch))
    for place in range(7):
        one, three, many = (
            torch.tensor(list(Image.open(tmp_path / b / f"{place:05d}.png").tobytes()))
            for b in ("1", "3", "64")
        )
        # a product's rounding depends on the batch: one level at the edge of a bin
        assert (one - three).abs().max() <= 1
        assert (one - many).abs().max() <= 1


def test_a_folder_holds_the_samples_and_their_settings(vae_run: Path, tmp_path: Path) -> None:
    result = call("sample", vae_run, "-n", 3, "--out", tmp_path / "images", "--prior", "mixture")
    assert result.exit_code == 0, result.output
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "samples.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "images-grid.png"]


def test_reconstruct(vae_run: Path) -> None:
    found = json_of("reconstruct", vae_run, "-n", 4)
    assert found["images"] == 40
    assert found["data_digest"]
    assert found["rmse"] == pytest.approx(float(found["mse"]) ** 0.5)
    picture = Image.open(vae_run / "eval" / "reconstruct-n4.png")
    native_grid(picture, 1, 8)
    assert "4 digits test images and reconstructions, PSNR " in picture.info["Description"]


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("between", ["prior", "test"])
def test_interpolate(vae_run: Path, path: str, between: str, tmp_path: Path) -> None:
    chosen = ["--path", path, "--between", between, "--rows", 3, "--steps", 5]
    found = json_of("interpolate", vae_run, *chosen, "--out", tmp_path / "p.png")
    assert (found["rows"], found["steps"], found["path"]) == (3, 5, path)
    native_grid(Image.open(tmp_path / "p.png"), 3, 5)


def test_latent_profile(vae_run: Path) -> None:
    found = json_of("latent-profile", vae_run)
    assert (found["images"], found["z_dim"]) == (120, 6)
    assert len(found["most_discriminative_dims"]) == 5
    assert (vae_run / "eval" / "latent-profile.png").exists()


def test_a_latent_profile_is_of_the_classes_that_have_images(vae_run: Path) -> None:
    vae, split = checkpoint.load(vae_run), render.make("test", count=12)
    more = replace(split, classes=(*split.classes, "none", "nothing"))
    found = latent_profile(vae, more, batch_size=12, tick=lambda *_: None)
    assert split.labels is not None
    present = {split.classes[label] for label in split.labels}
    assert found.values["largest_peak_by_class"].keys() == present
    expected = latent_profile(vae, split, batch_size=12, tick=lambda *_: None)
    assert heights(found) == heights(expected)


def heights(profile: EvalResult) -> list[float]:
    """The spread within a class of each dimension, as it is drawn."""
    figure = profile.figures["latent profile"]
    assert isinstance(figure, Figure)
    return [bar.get_height() for bar in figure.axes[-2].patches if isinstance(bar, Rectangle)]


def test_few_importance_samples_are_no_bad_weights() -> None:
    values = {"effective_sample_size_median": 4.9, "k": 5}
    model: Any = SimpleNamespace(likelihood_caveat=None)
    assert list(evaluation._notes(model, values)) == []
    assert len([*evaluation._notes(model, {**values, "k": 100})]) == 1


def test_importance_ll(vae_run: Path) -> None:
    found = json_of("importance-ll", vae_run, "-k", 20)
    assert found["images"] == 40
    assert float(found["elbo_nats"]) <= float(found["log_p_nats"])
    assert 1 <= float(found["effective_sample_size_mean"]) <= 20
    assert not any("not comparable" in note for note in found["notes"])


def test_importance_ll_does_not_depend_on_the_batch(vae_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = checkpoint.load(vae_run)
    split = load(vae.config.data, "test")
    found = []
    for decodings in (1024, 7):  # all images at once, or two
        monkeypatch.setattr(evaluation, "DECODINGS", decodings)
        outcome = evaluation.importance_ll(vae, split, 3, seed=0, tick=lambda done, total: None)
        found.append(outcome.values["log_p_nats"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_an_identity_covariance_is_said_not_to_compare(digits: Path, tmp_path: Path) -> None:
    unit = ["--data", digits, "--epochs", 1, "--set", "width=4", "--out", tmp_path / "unit"]
    assert call("train", "vae", *unit).exit_code == 0
    found = json_of("importance-ll", tmp_path / "unit", "-k", 2)
    assert "not comparable" in found["notes"][0]
    assert float(found["bits_per_dim"]) > 8.32


def test_runs(vae_run: Path) -> None:
    assert vae_run.name in call("runs", "list", "--json").stdout
    shown = json_of("runs", "show", vae_run.name)
    assert shown["finished"] is True
    assert "versions" in shown["origin"]
    verified = call("runs", "verify", vae_run)
    assert (verified.exit_code, "is sound" in verified.stderr) == (0, True)


def test_doctor() -> None:
    plain, found = json_of("doctor"), json_of("doctor", "--torch")
    assert {"genssl", "python", "versions", "gpus", "cuda", "cores", "cache"} <= plain.keys()
    assert found.keys() - plain.keys() == {"device", "bf16", "threads"}


def test_data_preview_and_list(digits: Path, tmp_path: Path) -> None:
    result = call("data", "preview", digits, "-n", 9, "--out", tmp_path / "p.png")
    assert result.exit_code == 0, result.output
    native_grid(Image.open(tmp_path / "p.png"), 3, 3)
    assert "synthetic" in call("data", "list").stdout
    smaller = ("--views", "simsiam", "--set", "view_size=16", "--out", tmp_path / "views.png")
    result = call("data", "preview", digits, "-n", 3, *smaller)
    assert result.exit_code == 0, result.output
    native_grid(Image.open(tmp_path / "views.png"), 3, 3)


@pytest.mark.parametrize(("data", "flips"), [("svhn", False), ("cifar10", True)])
def test_views_are_shown_as_training_sees_them(data: str, flips: bool) -> None:
    views = choose_views(data_module._config("simsiam", data, []), tuple("0123456789"))
    assert isinstance(views, Standard)
    assert views.flips == flips


def test_data_export_writes_the_very_pixels(digits: Path, tmp_path: Path) -> None:
    result = call("data", "export", digits, "--out", tmp_path / "real", "-n", 7)
    assert result.exit_code == 0, result.output
    found = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "real").iterdir())]
    given = {np.asarray(Image.open(file)).tobytes() for file in (digits / "test").rglob("*.png")}
    assert len({image.tobytes() for image in found} & given) == 7


def test_a_method_names_its_newest_finished_run(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    small = ["--data", digits, "--epochs", 1, "--set", "width=4", "--sample-every", 0]
    for _ in range(2):
        assert call("train", "vae", *small).exit_code == 0
    result = call("sample", "vae", "-n", 1, "--out", tmp_path / "x.png")
    assert "vae-digits-2" in result.stderr


def test_a_training_makes_the_folder_of_runs_that_it_is_given(digits: Path, tmp_path: Path) -> None:
    small = ["--data", digits, "--epochs", 1, "--set", "width=4", "--sample-every", 0]
    result = call("--checkpoints", tmp_path / "new", "train", "vae", *small)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "vae-digits" / "model.safetensors").exists()
    assert call("--checkpoints", tmp_path / "new", "runs", "list").exit_code == 0


def test_a_run_that_time_stopped_is_called_so_everywhere(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    small = ["--data", digits, "--set", "width=4", "--sample-every", 0, "--batch-size", 24, "--epochs", 40]
    monkeypatch.setattr(
        run_module.RunInProgress, "_out_of_time", lambda self: self.training.step >= 8
    )  # of 5 an epoch
    trained = call("train", "vae", *small)
    assert "time is up after 1.6 of 40 epochs; `genssl train --resume" in trained.output
    assert "vae-digits, epoch 1.6 of 40, stopped by time" in trained.stdout
    listed = call("runs", "list").stdout
    assert ("1.6 of 40" in listed, "stopped by time" in listed, "finished" in listed) == (True, True, False)
    shown = json_of("runs", "show", "vae-digits")
    assert (shown["state"], shown["finished"], shown["epoch"]) == ("stopped by time", False, 1.6)
    sampled = call("sample", "vae", "-n", 1, "--out", tmp_path / "x.png")
    assert "epoch 1.6 of 40, stopped by time" in sampled.stderr
    again = call("train", "vae", *small)
    assert f"{tmp_path / 'runs' / 'vae-digits'} is an unfinished run of these settings" in again.output
    assert "--auto-resume" in again.output
    assert (tmp_path / "runs" / "vae-digits-2").is_dir()
    other = call("train", "vae", *small, "--seed", 1)
    assert "unfinished" not in other.output


def test_a_finished_run_is_not_said_to_be_unfinished(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENSSL_CHECKPOINTS", str(tmp_path / "runs"))
    small = ["--data", digits, "--set", "width=4", "--sample-every", 0, "--epochs", 1]
    outputs = [call("train", "vae", *small).output for _ in range(2)]
    assert not any("unfinished" in output for output in outputs)
    assert ("vae-digits-2" in outputs[1], "epoch 1, finished" in outputs[1]) == (True, True)


def test_load_from_python(vae_run: Path) -> None:
    vae = genssl.load(str(vae_run))
    assert not vae.training
    assert vae.config.method == "vae"
    assert isinstance(vae, CanSample)
    assert vae.sample(2).numpy().shape == (2, 3, 32, 32)


def damaged(run: Path, folder: Path, name: str) -> Path:
    """A copy of a run with one fault."""
    folder.mkdir()
    tensors = load_file(run / run_info.MODEL)
    _, metadata = files.read_tensors(run / run_info.MODEL)
    target = folder / run_info.MODEL
    content = (run / run_info.MODEL).read_bytes()
    match name:
        case "flipped bit":
            target.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
        case "truncated":
            target.write_bytes(content[:-100])
        case "not a number":
            tensors["mean.bias"][0] = torch.nan
            files.write_tensors(target, tensors, metadata)
        case "double precision":
            tensors["mean.bias"] = tensors["mean.bias"].double()
            files.write_tensors(target, tensors, metadata)
        case "missing tensor":
            del tensors["mean.bias"]
            files.write_tensors(target, tensors, metadata)
        case "somebody else's":
            save_file(tensors, target)
    return folder


FAULTS = ["flipped bit", "truncated", "not a number", "double precision", "missing tensor", "somebody else's"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_one_line(vae_run: Path, tmp_path: Path, fault: str) -> None:
    result = call("sample", damaged(vae_run, tmp_path / "bad", fault), "-n", 1)
    assert result.exit_code in {1, 2}
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert "bad" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "vea"], "did you mean 'vae'"),
        (["train"], "which method?"),
        (["train", "vae", "--data", "nowhere.zip"], "nowhere.zip"),
        (["train", "vae", "--data", "DIGITS", "--epochs", 0], "epochs must be greater than 0"),
        (["train", "vae", "--data", "DIGITS", "--set", "widht=3"], "did you mean 'width'"),
        (["train", "vae", "--data", "DIGITS", "--set", "width"], "key=value"),
        (["train", "vae", "--data", "DIGITS", "--image-size", 20], "multiple of 16"),
        (["train", "vae", "--data", "DIGITS", "--device", "gpu"], "unknown device"),
        (["train", "vae", "--data", "DIGITS", "--out", "RUN"], "exists"),
        (["train", "--config", "nothing.json"], "no such config file"),
        (["train", "--resume", "nothing"], "no run folder"),
        (["train", "--resume", "RUN", "--tag", "x"], "keeps its folder"),
        (["train", "--resume", "RUN", "--epochs", 1], "has 2 epochs, and --epochs 1 is fewer"),
        (["train", "--resume", "RUN", "--dry-run"], "omit --dry-run, --config, --init and --remix"),
        (
            ["train", "vae", "--data", "DIGITS", "--batch-size", 1],
            "batch_size must be greater than or equal to 2",
        ),
        (["train", "vae", "--epochs", "many"], "--epochs"),
        (["frobnicate"], "No such command"),
        (["train", "vae", "--set", "width=4", "--set", "width=8"], "--set width has 2 values (4, 8)"),
        (["train", "vae", "--set", "lr=fast"], "learning_rate must be a valid number"),
        (["train", "vae", "--lr", -1], "learning_rate must be greater than 0"),
        (["ablate", "vae", "--set", "lr=1e-4"], "nothing to ablate: learning_rate=0.0001 is the baseline"),
        (["ablate", "vae", "--lr", -1, "--set", "z_dim=2"], "learning_rate must be greater than 0"),
        (["--checkpoints", "nowhere", "sample", "vae"], "no folder of runs nowhere"),
        (["--checkpoints", "nowhere", "runs", "list"], "no folder of runs nowhere"),
        (["--checkpoints", "nowhere", "report"], "no folder of runs nowhere"),
        (["--checkpoints", __file__, "runs", "list"], f"no folder of runs {__file__}"),
        (["sample", "RUN", "--out", "DIGITS"], "is not empty"),
        (["sample", "vae", "--data", "nothing"], "no finished vae run on nothing"),
        (["sample", "RUN", "--steps", 5], "has no --steps"),
        (["sample", "RUN", "--spacing", "karras"], "has no --spacing"),
        (["sample", "RUN", "--trajectory"], "in one step"),
        (["sample", "RUN", "--trajectory", "--out", "samples-with-a-trajectory"], "needs a DDPM or a flow"),
        (["reconstruct", "RUN", "--t-prime", 5], "are for a diffusion model"),
        (["reconstruct", "RUN", "--sampler", "ddim"], "--sampler is not for a vae"),
        (["reconstruct", "RUN", "--steps", 5], "--steps is not for a vae"),
        (["reconstruct", "RUN", "--queries", 3], "--queries is not for a reconstruction without --sweep"),
        (["reconstruct", "RUN", "--features", "pixels"], "--features is not for a reconstruction without"),
        (["interpolate", "RUN", "--method", "ddim"], "--method is not for a vae"),
        (["bits-per-dim", "RUN"], "needs a ddpm"),
        (["sample", "nothing"], "no run 'nothing'"),
        (["sample", "RUN", "-n", 0], "'-n'"),
        (["sample", "RUN", "--out", "x.txt"], "cannot write a picture"),
        (["interpolate", "RUN", "--steps", 1], "'--steps'"),
        (["interpolate", "RUN", "--between", "test", "--rows", 50], "images"),
        (["reconstruct", "RUN", "--data", "nowhere"], "nowhere"),
        (["importance-ll", "RUN", "-k", 0], "'-k'"),
        (["runs", "show", "nothing"], "no run 'nothing'"),
        (["data", "preview", "nowhere"], "nowhere"),
        (["data", "export", "DIGITS", "--out", "DIGITS"], "is not empty"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    vae_run: Path, digits: Path, arguments: list[object], message: str
) -> None:
    places = {"RUN": vae_run, "DIGITS": digits}
    result = call(*[places.get(str(argument), argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("genssl:")]
    assert message in line
    assert "Traceback" not in result.output


def test_an_odd_checkpoint_does_not_hide_the_runs(vae_run: Path, workplace: Path) -> None:
    odd = workplace / "checkpoints" / "odd"
    tensors, metadata = files.read_tensors(vae_run / run_info.MODEL)
    files.write_tensors(odd / run_info.MODEL, tensors, {k: v for k, v in metadata.items() if k != "epoch"})
    listed = call("runs", "list").stdout
    assert vae_run.name in listed
    assert "damaged" in listed
    result = call("runs", "show", "odd")
    assert (result.exit_code, "does not say what it is" in result.stderr) == (1, True)
    shutil.rmtree(odd)


def test_train_takes_the_settings_of_the_weights_that_ship(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--data", digits, "--epochs", 1, "--max-minutes", 0, "--out", "run"]
    assert call("train", "vae", "--config", "shipped", *more).exit_code == 0
    config = run_info.inspect(tmp_path / "run").config
    shipped = run_info.inspect(paths.shipped_root() / "vae").config
    assert config == shipped.updated({"data": str(digits), "epochs": 1})
    # Of data with another number of classes
    two = tmp_path / "two"
    shutil.copytree(digits, two, ignore=shutil.ignore_patterns(*"23456789"))
    changes = ["--set", "network=tiny", "--data", two, "--dry-run", "--device", "cpu"]
    result = call("train", "ddpm", "--config", "shipped", *changes)
    assert result.exit_code == 0, result.output
    assert "no such config file: shipped" in call("train", "--config", "shipped").stderr
    assert "no such config file" in call("train", "byol", "--config", "shipped").stderr


def test_train_takes_the_settings_of_a_run_folder(vae_run: Path) -> None:
    result = call("train", "--config", vae_run, "--epochs", 0)
    assert "epochs must be greater than 0" in result.stderr


def test_brackets_in_names_are_shown(tmp_path: Path, digits: Path) -> None:
    target = tmp_path / "br[z]"
    shutil.copytree(digits, target)
    found = call("data", "preview", target, "--out", tmp_path / "p.png")
    assert found.exit_code == 0
    assert "br[z]" in found.stderr


def test_a_profile_needs_labels(vae_run: Path, digits: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for place, file in enumerate(sorted(digits.rglob("*.png"))[:30]):
        (flat / f"{place}.png").write_bytes(file.read_bytes())
    result = call("latent-profile", vae_run, "--data", flat)
    assert (result.exit_code, "has no labels" in result.stderr) == (2, True)


def test_an_unexpected_error_is_one_line_too(vae_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("genssl.eval.sample.sample", broken)
    result = call("sample", vae_run)
    assert result.exit_code == 1
    assert "unexpected error: ZeroDivisionError: boom; set GENSSL_DEBUG=1" in result.stderr
    monkeypatch.setenv("GENSSL_DEBUG", "1")
    assert isinstance(call("sample", vae_run).exception, ZeroDivisionError)
