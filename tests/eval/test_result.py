"""What a result says of itself, which console, JSON and report iterate over."""

import json
from pathlib import Path

import pytest

from genssl.eval.result import EvalResult

from ..conftest import call

NESTED = EvalResult(
    {"psnr_db": 21.0, "t_star": {"level": 176.0, "low": None}, "seconds": 3.0},
    notes=("a note",),
    name="reconstruct",
    title="Reconstructions",
    headline=("t_star.level", "psnr_db", "nfe", "t_star.low", "psnr_db.level"),
    units={"psnr_db": "dB"},
)


def test_a_summary_has_the_headline_values_in_their_order() -> None:
    assert list(NESTED.summary().items()) == [("t_star.level", 176.0), ("psnr_db", 21.0)]


def test_values_stay_at_the_top_level_of_the_json() -> None:
    record = NESTED.to_json()
    assert record["psnr_db"] == 21.0
    assert (record["title"], record["units"]) == ("Reconstructions", {"psnr_db": "dB"})
    assert list(record)[-1] == "notes"
    assert EvalResult({"rows": []}).to_json() == {"rows": [], "notes": []}


@pytest.mark.parametrize("command", ["sample", "reconstruct", "interpolate", "latent-profile", "features"])
def test_every_evaluation_has_a_title_and_a_headline(vae_run: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / ("f.safetensors" if command == "features" else "f.png")
    printed = call(command, vae_run, "--out", out, "--json")
    assert printed.exit_code == 0, printed.output
    record = json.loads(printed.stdout)
    result = EvalResult(record, headline=tuple(record["headline"]))
    assert record["title"]
    assert result.summary()
