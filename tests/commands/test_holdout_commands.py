"""Evaluations of a run that held images out of its training, as a user types them."""

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from genssl import run_info
from genssl.commands import _run
from genssl.commands._options import Common
from genssl.data.loading import load, load_for_run
from genssl.data.split import Split
from genssl.eval import fidelity as fidelity_module
from genssl.report.load import gather

from ..conftest import SMALL, call
from .test_commands import json_of

LIMIT, TRAINED, HELD_OUT = 110, 88, 22


@pytest.fixture(scope="module")
def held_out_run(digits: Path, workplace: Path) -> Path:
    """A small VAE, trained for an epoch on 110 of 120 digits without 22 of them."""
    result = call(
        "train", "vae", "--data", digits, "--epochs", 1, "--batch-size", 16, "--limit", LIMIT,
        "--holdout", HELD_OUT / LIMIT, *SMALL, "--knn-every", 1, "--tag", "held-out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return workplace / "checkpoints" / "vae-digits-held-out"


def splits(run: Path) -> tuple[Split, Split]:
    config = run_info.inspect(run).config
    return load_for_run(config, "train"), load_for_run(config, "validation")


def test_the_bank_is_what_the_run_was_trained_on(held_out_run: Path, vae_run: Path) -> None:
    found = json_of("knn-eval", held_out_run, "-k", 20, "--no-baselines")
    assert (found["train_images"], found["test_images"], found["part"]) == (TRAINED, 40, "test")
    assert found["held_out"] == f"20 % ({HELD_OUT} images)"
    fewer = json_of("knn-eval", held_out_run, "-k", 20, "--no-baselines", "--limit", 50)
    assert fewer["train_images"] == 50
    linear = json_of("linear-eval", held_out_run, "--epochs", 2)
    assert linear["train_images"] == TRAINED
    assert "held_out" not in json_of("knn-eval", vae_run, "-k", 20, "--no-baselines")


def test_other_data_have_no_images_held_out(held_out_run: Path, digits: Path) -> None:
    other = digits.parent / "other"
    if not other.exists():
        other.symlink_to(digits)
    assert (
        json_of("knn-eval", held_out_run, "-k", 20, "--data", other, "--no-baselines")["train_images"] == 120
    )
    same = json_of("knn-eval", held_out_run, "-k", 20, "--data", digits, "--no-baselines")
    assert same["train_images"] == TRAINED


def test_features_of_the_held_out_images(held_out_run: Path, tmp_path: Path) -> None:
    train, validation = splits(held_out_run)
    for split in (train, validation):
        file = tmp_path / f"{split.part}.safetensors"
        found = json_of("features", held_out_run, "--split", split.part, "--out", file)
        assert (found["images"], found["part"]) == (len(split), split.part)
        assert found["data_digest"] == split.digest
        with safe_open(file, framework="pt") as features:
            assert features.get_tensor("labels").equal(split.labels)


def test_fidelity_takes_the_images_that_the_run_was_trained_on(
    held_out_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Split, Split]] = []
    real = fidelity_module.fidelity

    def watched(samples: Any, images: Split, train: Split, *rest: Any) -> object:
        given.append((images, train))
        return real(samples, images, train, *rest)

    monkeypatch.setattr(fidelity_module, "fidelity", watched)
    few = ["--features", "pixels", "-n", 8, "-k", 1, "--resamples", 0]
    found = json_of("fidelity", held_out_run, *few, "--split", "validation")
    train, validation = splits(held_out_run)
    assert given[0][1].digest == train.digest
    assert given[0][0].digest == validation.take(16, 0).digest
    assert found["part"] == "validation"


def test_of_a_run_without_holdout_fidelity_takes_what_the_limit_left(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ["--epochs", 1, "--limit", 30, *SMALL]
    assert call("train", "vae", "--data", digits, *few, "--out", out).exit_code == 0
    source = _run.open_samples(str(out), "pixels", Common(device="cpu"))
    assert source.training_images().digest == load(str(digits), "train").take(30, 0).digest
    assert len(source.real("train", 200, 0)) == 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "WHOLE"], "has no validation split, since nothing was held out of its training"),
        (["fidelity", "WHOLE", "--features", "pixels"], "has no validation split"),
        (["fidelity", "RUN", "--sensitivity"], "--sensitivity takes --split train or test"),
        (["features", "RUN", "--data", "synthetic"], "a validation split is of the run's own data"),
        (
            ["fidelity", "SAMPLES", "--data", "DIGITS", "--features", "pixels"],
            "a folder of images, which held",
        ),
    ],
)
def test_no_validation_split_is_one_line_and_exit_code_2(
    held_out_run: Path, vae_run: Path, digits: Path, arguments: list[str], message: str
) -> None:
    names = {"RUN": held_out_run, "WHOLE": vae_run, "DIGITS": digits, "SAMPLES": digits / "test"}
    result = call(*(names.get(word, word) for word in arguments), "--split", "validation")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("genssl: ")
    assert message in result.stderr.splitlines()[-1]


def test_reports_say_what_was_held_out(held_out_run: Path, vae_run: Path, tmp_path: Path) -> None:
    (run,) = gather([str(held_out_run)]).runs
    assert run.held_out == f"20 % ({HELD_OUT} images)"
    page = tmp_path / "page.html"
    assert call("report", held_out_run, vae_run, "--out", page).exit_code == 0
    text = page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert f"<dt>held out</dt><dd>20 % ({HELD_OUT} images)</dd>" in text
    assert text.count(", validation images)") == 1
    (whole,) = gather([str(vae_run)]).runs
    assert whole.held_out is None
    assert f"<dt>train images</dt><dd>{TRAINED}</dd>" in text
