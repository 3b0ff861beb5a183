"""More epochs for a finished run, and runs that start from the weights of another."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genssl import run_info
from genssl.config import BYOLConfig, SimSiamConfig, VAEConfig
from genssl.errors import UserError
from genssl.models.build import build
from genssl.training import run
from genssl.training.events import Event, Note
from genssl.training.options import Options, prolongation_note

from ..conftest import call

CPU = Options(device="cpu")


def vae(digits: Path, **settings: object) -> VAEConfig:
    small = {"width": 4, "z_dim": 3, "mixture_components": 0, "batch_size": 40, "sample_every": 0}
    return VAEConfig.model_validate({"data": str(digits), "epochs": 2, **small, **settings})


def start(config: VAEConfig | SimSiamConfig, folder: Path) -> list[str]:
    events: list[Event] = []
    run.start(config, Options(device="cpu", out=folder), events.append)
    return [event.text for event in events if isinstance(event, Note)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / run_info.MODEL)


def test_a_prolonged_run_is_one_that_was_longer_from_the_start(digits: Path, tmp_path: Path) -> None:
    start(vae(digits, epochs=3), tmp_path / "whole")
    start(vae(digits), tmp_path / "run")
    events: list[Event] = []
    run.resume(tmp_path / "run", {"epochs": 3}, CPU, events.append)
    assert "3 epochs instead of 2" in [event.text for event in events if isinstance(event, Note)]
    whole, prolonged = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(value, prolonged[name]) for name, value in whole.items())
    info = run_info.inspect(tmp_path / "run")
    assert (info.epoch, info.config.epochs, info.state) == (3, 3, "finished")


def test_the_change_of_a_schedule_is_said(digits: Path, tmp_path: Path) -> None:
    start(vae(digits, schedule="cosine"), tmp_path / "run")
    events: list[Event] = []
    run.resume(tmp_path / "run", {"epochs": 4}, CPU, events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("the schedule of the learning rate is now over all of them" in note for note in notes)


def test_the_schedule_of_a_target_network_is_a_schedule() -> None:
    before = BYOLConfig(epochs=2, schedule="constant")
    note = prolongation_note(before, before.updated({"epochs": 3}))
    assert note.startswith("3 epochs instead of 2: the schedule of tau is now over all of them, and goes on")
    steady = before.updated({"tau_schedule": "constant"})
    assert prolongation_note(steady, steady.updated({"epochs": 3})) == "3 epochs instead of 2"


def test_a_prolongation_that_fails_leaves_the_settings_alone(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    start(vae(data), tmp_path / "run")
    before = (tmp_path / "run" / run_info.CONFIG).read_text()
    for image in sorted(data.rglob("*.png"))[::5]:
        image.unlink()
    with pytest.raises(UserError, match="not what"):
        run.resume(tmp_path / "run", {"epochs": 5}, CPU)
    assert (tmp_path / "run" / run_info.CONFIG).read_text() == before


def test_fewer_epochs_and_other_settings_are_refused(digits: Path, tmp_path: Path) -> None:
    start(vae(digits), tmp_path / "run")
    with pytest.raises(UserError, match="has 2 epochs, and --epochs 1 is fewer"):
        run.resume(tmp_path / "run", {"epochs": 1}, CPU)
    with pytest.raises(UserError, match="cannot resume with other settings"):
        run.resume(tmp_path / "run", {"epochs": 3, "z_dim": 5}, CPU)
    assert call("train", "--resume", tmp_path / "run", "--epochs", 3, "--device", "cpu").exit_code == 0


def test_a_run_starts_from_the_weights_of_another(digits: Path, tmp_path: Path) -> None:
    start(vae(digits), tmp_path / "first")
    first = weights(tmp_path / "first")
    # so slow that it stays where it begins
    notes = start(
        vae(digits, epochs=1, init=str(tmp_path / "first"), learning_rate=1e-12), tmp_path / "second"
    )
    assert not any("were not taken" in note for note in notes)
    second = weights(tmp_path / "second")
    trained = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(first[name], second[name], atol=1e-8) for name in trained)
    initial = build(vae(digits)).state_dict()
    assert not all(torch.allclose(first[name], initial[name], atol=1e-8) for name in trained)


def test_a_resumed_run_needs_no_weights_of_another(digits: Path, tmp_path: Path) -> None:
    start(vae(digits), tmp_path / "first")
    start(vae(digits, epochs=1, init=str(tmp_path / "first"), z_dim=5), tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    events: list[Event] = []
    run.resume(tmp_path / "second", {"epochs": 2}, CPU, events.append)
    assert run_info.inspect(tmp_path / "second").epoch == 2
    assert not any("not taken" in event.text for event in events if isinstance(event, Note))


def test_what_does_not_fit_is_named(digits: Path, tmp_path: Path) -> None:
    start(vae(digits), tmp_path / "first")
    notes = start(vae(digits, epochs=1, init=str(tmp_path / "first"), z_dim=5), tmp_path / "second")
    [note] = [note for note in notes if "were not taken" in note]
    assert "mean.weight" in note


def test_weights_that_may_have_seen_the_test_images_are_noted(digits: Path, tmp_path: Path) -> None:
    # A folder without parts is divided by the seed
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(sorted((digits / "train").rglob("*.png"))):
        shutil.copy(image, images / f"{i}.png")
    start(vae(images), tmp_path / "first")

    def notes(**settings: object) -> list[str]:
        later = vae(images, epochs=1, init=str(tmp_path / "first"), **settings)
        said = start(later, tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        return [note for note in said if "may be among its training images" in note]

    assert notes() == []
    assert notes(holdout=0.2) != []
    [note] = notes(seed=1)
    assert "the random seed of first chose other images for testing" in note


def test_another_method_is_refused(digits: Path, tmp_path: Path) -> None:
    start(vae(digits), tmp_path / "first")
    result = call("train", "ddpm", "--data", digits, "--init", tmp_path / "first", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "is a vae, and a ddpm cannot start from it" in result.stderr
    result = call(
        "train", "vae", "--data", digits, "--init", tmp_path / "first", "--out", tmp_path / "third",
        "--epochs", 1, "--batch-size", 40, "--device", "cpu", "--set", "width=4", "--set", "z_dim=3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"starting from {tmp_path / 'first'} (epoch 2)" in result.stderr
