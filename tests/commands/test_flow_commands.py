"""The flow on the command line: an eighth method, served by what is there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from genssl.models import unet
from genssl.models.unet import Layout

from ..conftest import call


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet.LAYOUTS, "tiny", Layout((16, 16), (1, 1), (False, False)))
        yield


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "run"
    result = call(
        "train", "flow", "--data", digits, "--out", folder, "--set", "conditional=true", "--epochs", 1,
        "--set", "network=tiny", "--batch-size", 30, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def test_it_is_sampled(run: Path, tmp_path: Path) -> None:
    for options, nfe in (
        ((), 19),
        (("--sampler", "euler", "--steps", 4), 4),
        (("--class", "3", "--steps", 3), 5),
    ):
        result = call(
            "sample", run, "-n", 4, *options, "--json", "--out", tmp_path / f"{nfe}{len(options)}.png"
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["nfe"] == nfe
    result = call("sample", run, "-n", 4, "--sampler", "dpm++", "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "unknown sampler 'dpm++'; use heun or euler" in result.stderr


def test_it_is_measured(run: Path, tmp_path: Path) -> None:
    result = call("bits-per-dim", run, "--limit", 4, "--json", "--out", tmp_path / "b.png", "--device", "cpu")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert 4 < values["bits_per_dim"] < 20
    assert values["standard_error"] > 0
    result = call("knn-eval", run, "-k", 5, "--json", "--out", tmp_path / "k.png", "--device", "cpu")
    assert result.exit_code == 0, result.output
    result = call("reconstruct", run, "-n", 4, "--out", tmp_path / "r.png", "--device", "cpu")
    assert result.exit_code == 2
