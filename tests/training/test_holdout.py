"""Runs that hold a share of the train split out: what they train on, measure on, and say of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from genssl import checkpoint, figures, run_info
from genssl.config import SimSiamConfig
from genssl.data import loading as load_module
from genssl.data.augment.views import choose_views
from genssl.data.loading import load_for_run
from genssl.data.subset import train_validation_split
from genssl.metrics.knn import knn_predict
from genssl.pixels import to_model
from genssl.settings import Config
from genssl.training import run
from genssl.training.events import Started
from genssl.training.monitor import Monitor
from genssl.training.options import Options

from ..conftest import call
from ..narrow import given
from .test_run import config, same_weights, train, train_and_kill, without_time

SIMSIAM = {
    "encoder": "small", "projector_dim": 16, "projector_hidden": 16, "predictor_hidden": 8, "batch_size": 16,
    "epochs": 1, "knn_every": 1, "sample_every": 1,
}  # fmt: skip


@pytest.fixture
def _no_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    real = load_module.load

    def load(data: str, part: Any, **options: Any) -> Any:
        assert part == "train"
        return real(data, part, **options)

    monkeypatch.setattr(load_module, "load", load)


def digest_of(folder: Path) -> str:
    with safe_open(folder / run_info.STATE, framework="pt") as state:
        return str(state.metadata()["data_digest"])


@pytest.mark.usefixtures("_no_test_split")
def test_a_run_is_measured_on_what_it_is_not_trained_on(digits: Path, tmp_path: Path) -> None:
    settled = config(digits, holdout=0.25, limit=100)
    events = train(settled, tmp_path / "run")
    kept, held_out = (load_for_run(settled, part) for part in ("train", "validation"))
    started = next(event for event in events if isinstance(event, Started))
    assert (started.images, started.held_out) == (len(kept), len(held_out))
    assert len(kept) + len(held_out) == 100
    assert digest_of(tmp_path / "run") == kept.digest
    record = without_time(tmp_path / "run")[-1]
    assert record["split"] == "validation"
    assert {"validation_loss", "validation_nll", "validation_kl"} <= set(record)
    assert not any(name.startswith("test_") for name in record)
    info = run_info.inspect(tmp_path / "run")
    assert info.training["validation_images"] == len(held_out)
    assert (info.training["images"], info.training["data_digest"]) == (len(kept), kept.digest)
    assert info.held_out == f"25 % ({len(held_out)} images)"
    monitor = Monitor(choose_views(settled), kept, held_out, settled)
    losses = monitor.held_out_losses(checkpoint.load(tmp_path / "run"))
    assert losses["validation_loss"] == pytest.approx(record["validation_loss"])


@pytest.mark.usefixtures("_no_test_split")
def test_neighbors_and_collapse_are_of_the_held_out_images(digits: Path, tmp_path: Path) -> None:
    settled: Config = SimSiamConfig(data=str(digits), holdout=0.25, **SIMSIAM)
    train(settled, tmp_path / "run")
    kept, held_out = (load_for_run(settled, part) for part in ("train", "validation"))
    method = checkpoint.load(tmp_path / "run")
    bank, queries = (method.features(to_model(split.images)) for split in (kept, held_out))
    predicted = knn_predict(bank, given(kept.labels), queries, 10, k=len(bank))
    record = without_time(tmp_path / "run")[-1]
    assert record["knn_accuracy"] == pytest.approx(
        float((predicted == given(held_out.labels)).float().mean())
    )
    outputs = method.outputs(to_model(held_out.images))
    assert outputs is not None
    units = torch.nn.functional.normalize(outputs, dim=1)
    std = float(units.std(0, unbiased=False).mean()) * outputs.shape[1] ** 0.5
    assert record["output_std"] == pytest.approx(std, rel=1e-4)
    assert run_info.inspect(tmp_path / "run").metrics["knn_images"] == len(held_out)


def test_pictures_say_what_they_show(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[str] = []
    real = figures.contact_sheet

    def noted(*arguments: Any, header: str) -> Any:
        headers.append(header)
        return real(*arguments)

    monkeypatch.setattr(figures, "contact_sheet", noted)
    train(config(digits, epochs=1, holdout=0.25), tmp_path / "run")
    assert [header.partition(": ")[2] for header in headers] == [
        "reconstructions of validation images while training", "samples while training",
    ]  # fmt: skip
    with Image.open(tmp_path / "run" / "reconstructions" / "epoch-001.png") as picture:
        assert "reconstructions of validation images" in picture.info["Description"]
    with Image.open(tmp_path / "run" / "samples" / "epoch-001.png") as picture:
        assert "validation" not in picture.info["Description"]


@pytest.mark.parametrize("at", [3, 8])
def test_a_killed_run_resumes_to_the_same_end(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settled = config(digits, holdout=0.25)
    train(settled, tmp_path / "whole")
    train_and_kill(settled, tmp_path / "cut", at, monkeypatch)
    run.resume(tmp_path / "cut", {}, Options(device="cpu", save_every=0))
    same_weights(tmp_path / "whole", tmp_path / "cut")
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "cut")


def test_a_streamed_run_equals_a_resident_one(digits: Path, tmp_path: Path) -> None:
    settled = config(digits, epochs=2, holdout=0.25)
    train(settled, tmp_path / "resident")
    train(settled, tmp_path / "streamed", resident_limit=0.0)
    same_weights(tmp_path / "resident", tmp_path / "streamed")
    assert without_time(tmp_path / "resident") == without_time(tmp_path / "streamed")


def test_the_images_held_out_change_nothing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights, the mixture among them, are the same whatever the images that are held out look like."""
    settled = config(digits, epochs=1, holdout=0.25)
    train(settled, tmp_path / "run")

    def other_images(*arguments: Any) -> Any:
        kept, held_out = train_validation_split(*arguments)
        return kept, held_out.select(torch.zeros(5, dtype=torch.int64))

    monkeypatch.setattr(load_module, "train_validation_split", other_images)
    train(settled, tmp_path / "other")
    same_weights(tmp_path / "run", tmp_path / "other")


def test_the_option_is_a_setting(digits: Path, tmp_path: Path) -> None:
    settings = ["--set", "width=4", "--set", "z_dim=3", "--set", "mixture_components=2"]
    out = tmp_path / "run"
    result = call("train", "vae", "--data", digits, "--holdout", 0.1, "--epochs", 1, *settings, "--out", out)
    assert result.exit_code == 0, result.output
    assert run_info.inspect(out).config.holdout == 0.1
    assert "images, and 12 held out for validation)" in result.stderr.replace("\n", " ")
    assert "validation_loss" in result.stdout
    refused = call("train", "--resume", out, "--holdout", 0.2)
    assert refused.exit_code == 2
    assert "holdout was 0.1, now 0.2" in refused.stderr
    wrong = call("train", "vae", "--data", digits, "--holdout", 1)
    assert (wrong.exit_code, wrong.stderr) == (2, "genssl: holdout must be less than 1 (got 1.0)\n")
