"""The data of a run are found from another folder, and other images are noticed by their digest."""

import json
import shutil
from pathlib import Path

import pytest

from genssl.data.registry import absolute, locate
from tests.conftest import SMALL, call

TRAIN = ("train", "vae", "--data", "digits", "--epochs", 1, "--batch-size", 16, "--limit", 32, *SMALL)


@pytest.fixture
def run(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was trained in `home` on `digits` there; the present folder is another one."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    shutil.copytree(digits, tmp_path / "home" / "digits")
    monkeypatch.chdir(tmp_path / "home")
    result = call(*TRAIN, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


def test_data_are_found_from_another_folder(run: Path, tmp_path: Path) -> None:
    assert json.loads((run / "config.json").read_text())["data"] == "digits"
    assert json.loads((run / "environment.json").read_text())["data_path"] == str(
        tmp_path / "home" / "digits"
    )
    result = call("reconstruct", run, "-n", 2)
    assert result.exit_code == 0, result.output
    assert "note" not in result.output
    shutil.copytree(
        tmp_path / "home" / "digits" / "test", tmp_path / "elsewhere" / "digits"
    )  # of this name, too
    result = call("reconstruct", run, "-n", 2)
    assert str(tmp_path / "home" / "digits") in result.output
    assert "note" not in result.output
    assert call("reconstruct", run, "--data", "digits", "-n", 2).exit_code == 0  # which means what is here


def test_other_content_is_noticed(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "digits"
    (tmp_path / "home" / "digits").rename(moved)
    assert "note" not in call("reconstruct", run, "-n", 2).output
    next((moved / "test").glob("*/*.png")).unlink()
    result = call("reconstruct", run, "-n", 2)
    assert result.exit_code == 0, result.output
    assert "note: the test images of digits are not those that run had when it was trained" in result.output
    shutil.rmtree(moved)
    result = call("reconstruct", run, "-n", 2)
    assert result.exit_code == 2
    assert "digits" in result.output


def test_a_resumed_run_finds_its_data(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "home")
    result = call(*TRAIN[:4], "--epochs", 3, *TRAIN[6:], "--max-minutes", 0, "--out", tmp_path / "other")
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call("train", "--resume", tmp_path / "other")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "other" / "config.json").read_text())["data"] == "digits"
    assert "note" not in call("reconstruct", tmp_path / "other", "-n", 2).output


def test_which_path_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert absolute("photos") == str(tmp_path / "photos")
    assert absolute("photos-remix") == str(tmp_path / "photos") + "-remix"
    assert all(absolute(data) is None for data in ("svhn", "svhn-remix", "hf:a/b", str(tmp_path / "photos")))
    assert locate("photos", str(tmp_path / "photos")) == "photos"
    assert locate("photos", str(tmp_path / "gone")) == "photos"
    (tmp_path / "there").mkdir()
    assert locate("photos", str(tmp_path / "there")) == str(tmp_path / "there")
    assert locate("photos-remix", f"{tmp_path}/there-remix") == f"{tmp_path}/there-remix"
    assert locate("svhn", None) == "svhn"


def test_a_second_run_may_have_been_trained_on_test_images(tmp_path: Path, digits: Path) -> None:
    heap = tmp_path / "heap"
    for i, file in enumerate(sorted((digits / "train").glob("*/*.png"))):
        (heap / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, heap / file.parent.name / f"{i}.png")
    for seed, method in enumerate(("vae", "simsiam")):
        settings = SMALL if method == "vae" else ("--set", "encoder=small", "--set", "projector_dim=16")
        result = call(
            "train", method, "--data", heap, "--epochs", 1, "--batch-size", 16, "--seed", seed, *settings,
            "--out", tmp_path / method,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    options = ("--label-fractions", "1", "--epochs", 1, "--no-baselines", "--beside")
    result = call("probe", tmp_path / "vae", *options, tmp_path / "simsiam")
    assert result.exit_code == 0, result.output
    assert "the random seed of simsiam chose other images for testing: images of the test split may" in (
        " ".join(result.output.split())
    )
    # The parts of `digits` do not depend on a seed
    result = call("probe", tmp_path / "vae", "--data", digits, *options, tmp_path / "simsiam")
    assert "random seed" not in result.output
