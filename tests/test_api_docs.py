"""The page on the Python API runs as it is written."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_docs import ROOT

PAGE = ROOT / "docs" / "api.md"


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the page reads: shipped weights, and an image folder called digits."""
    (tmp_path / "digits").symlink_to(digits)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_on_the_api_runs(folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in code_blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["losses"]) == len(names["trained"].history) == 2
    assert names["result"].values["psnr_db"] > 0
    assert [row["k"] for row in names["neighbors"].values["accuracy_by_k"]] == [1, 5]
    assert names["other"].config.seed == 1
    assert names["samples"].shape == (16, 3, 32, 32)
    assert len(names["features"]) == 16
    assert names["reconstructions"].shape == names["images"].shape == (4, 3, 32, 32)
    assert (folder / "sample.png").exists()
    assert (len(names["train"]), len(names["test"]), len(names["few"])) == (120, 40, 100)
    assert names["distance"] > 0
    assert all(math.isfinite(names[name]) for name in ("mean", "deviation", "precision", "density"))
    assert 0.1 < names["accuracy"] <= 1
    assert (folder / "my-vae" / "model.safetensors").exists()
    assert names["model"].config == names["settings"]
    history = (names["validated_vae"] / "history.jsonl").read_text()
    assert len(names["validation"]) == 12
    assert '"validation_loss"' in history
    assert '"test_loss"' not in history


def test_samples_on_the_page_are_reproducible(folder: Path) -> None:
    (block,) = (block for block in code_blocks() if "generators" in block)
    drawn = []
    for _ in range(2):
        names: dict[str, Any] = {}
        exec("import genssl\nvae = genssl.load('checkpoints/shipped/vae')", names)
        exec(block, names)
        drawn.append(names["images"])
    assert torch.equal(*drawn)
