"""Whose features are compared when nobody names a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genssl import checkpoint, paths, runs
from genssl.config import BYOLConfig, SimSiamConfig, VAEConfig
from genssl.errors import UserError
from genssl.eval.feature_cache import choose_encoder, encoder_reason
from genssl.models.build import build
from genssl.run_info import RunInfo

SMALL = {"data": "d", "encoder": "small", "projector_dim": 4, "projector_hidden": 4, "predictor_hidden": 4}


def info(name: str, *, finished: bool = True, metrics: Any = None, **settings: Any) -> RunInfo:
    return RunInfo(Path(name), SimSiamConfig(**SMALL | settings), 1, finished, metrics or {}, name)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights that ship would be."""
    monkeypatch.setattr(paths, "shipped_root", lambda: tmp_path)
    return tmp_path / "simsiam"


def test_the_newest_finished_run_of_the_size_that_did_not_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = info("byol", metrics={"collapsed": False})
    newest = replace(newest, config=BYOLConfig(data="d"))
    small = info("of 16 pixels", image_size=16)
    generates = replace(info("vae"), config=VAEConfig(data="d"))
    others = [info("collapsed", metrics={"collapsed": True}), info("unfinished", finished=False)]
    monkeypatch.setattr(runs, "known", lambda: [info("older"), newest, *others, small, generates])
    assert choose_encoder(32) == newest
    assert encoder_reason(newest) == "byol, the newest self-supervised run"
    assert choose_encoder(16) == choose_encoder(None) == small


def test_without_one_the_weights_that_ship_where_they_fit(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "known", lambda: [info("of 16 pixels", image_size=16)])
    with pytest.raises(
        UserError, match=r"for images of 32 pixels in .*train one with `genssl train simsiam`"
    ):
        choose_encoder(32)
    shipped.mkdir()
    checkpoint.save(build(info("").config), shipped, epoch=1, finished=True, metrics={})
    assert choose_encoder(32).folder == shipped
    assert encoder_reason(choose_encoder(32)) == "the simsiam that comes with genssl"
    assert choose_encoder(16).folder == Path("of 16 pixels")
    with pytest.raises(UserError, match="for images of 64 pixels"):
        choose_encoder(64)
